"""The kind of a file by its name: an image, text or data, something unknown, or a file that systems leave behind."""

import posixpath

# Suffixes of images, those that are refused later with a reason (svg, heic, raw photographs) included.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".jif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico",
    ".pcx", ".psd", ".cr2", ".nef", ".arw", ".dng", ".orf", ".rw2",
)  # fmt: skip
_TEXT_AND_DATA = frozenset((
    ".txt", ".text", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".conf", ".md", ".rst", ".html", ".htm", ".css", ".js", ".py", ".ipynb", ".sh", ".r", ".m", ".c",
    ".h", ".cpp", ".java", ".mat", ".npy", ".npz", ".pkl", ".pickle", ".h5", ".hdf5", ".pt", ".pth", ".onnx",
    ".safetensors", ".ckpt", ".parquet", ".arrow", ".feather", ".tfrecord", ".tfrecords", ".record", ".lmdb",
    ".mdb", ".db", ".sqlite", ".log", ".lst", ".list", ".idx", ".index", ".names", ".cls", ".lock", ".md5",
    ".sha1", ".sha256", ".sum", ".tex", ".bib", ".xls", ".xlsx", ".ods", ".doc", ".docx", ".odt", ".ppt",
    ".pptx", ".info", ".properties", ".url", ".license",
))  # fmt: skip
# Archives, documents, films and sounds: they begin like no image, and needn't be looked at.
_OTHERS = frozenset((
    ".zip", ".tar", ".gz", ".tgz", ".xz", ".txz", ".bz2", ".zst", ".7z", ".rar", ".pdf", ".ps", ".eps", ".svg",
    ".ai", ".mp4", ".avi", ".mov", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".mp3", ".wav", ".flac",
    ".ogg", ".m4a", ".aac", ".exe", ".dll", ".so", ".o", ".a", ".pyc", ".class", ".jar", ".bak", ".tmp",
    ".part", ".crdownload", ".torrent", ".obj", ".ply", ".stl", ".pcd", ".off", ".dcm", ".nii", ".hdr", ".exr",
))  # fmt: skip
# Files and folders that systems and programs leave behind. Names that begin with a dot are among them, too.
_LEFT_BEHIND = frozenset((
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "zbthumbnail.info", "@eadir",
    "@__thumb", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found", "__macosx",
    "__pycache__", "node_modules", "system volume information", "icon\r",
))  # fmt: skip
NO_SUFFIX = "no suffix"


def kind_of(name: str) -> str:
    """Returns the kind of a file by its name: its suffix in lower case, or NO_SUFFIX."""
    base = name.rsplit("/", 1)[-1]
    suffix = posixpath.splitext(base)[1].lower()
    return suffix if suffix and not suffix[1:].isspace() else NO_SUFFIX


def is_image(name: str) -> bool:
    """Whether a file is an image by its name. Hidden files, such as the `._x.jpg` of macOS, aren't."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


def is_text_or_data(kind: str) -> bool:
    """Whether files of a kind hold text or data."""
    return kind in _TEXT_AND_DATA


def is_known(kind: str) -> bool:
    """Whether the suffix tells what a file is; other files are looked at."""
    return kind in _TEXT_AND_DATA or kind in _OTHERS or kind.endswith("~")


def left_behind(name: str) -> str | None:
    """Returns the part of a path that systems and programs leave behind, such as `__MACOSX`, or None."""
    for part in name.split("/"):
        if part.startswith(".") and part not in (".", ".."):
            return "._*" if part.startswith("._") else part
        if part.lower() in _LEFT_BEHIND:
            return part
    return None
