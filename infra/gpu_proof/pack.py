"""Pack what `jobs/bench_gpu.py` needs on a bare GPU machine into pieces of less than 60 MiB.

The machine has Linux on x86-64, glibc, Python 3.12, torch and torchvision; no network is needed there. The pieces hold
the last commit, packages that torch's environment lacks (Ray without the parts that training doesn't use), the
compiled decoder with its libjpeg, and data. There, `sh start.sh` unpacks them and starts the proof:

    python3 infra/gpu_proof/pack.py --out pieces --cifar cifar-10-binary.tar.gz --photos photos.tar
    sh pieces/start.sh --seconds 450

`--have NAME...` leaves out packages that the machine has already: `pip list` there names them.
"""

import argparse
import hashlib
import importlib.metadata
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIECE_BYTES = 59 << 20
PYTHON = "3.12"
# What the sections import, found by running them; not what only other commands need.
NEEDED = (
    "cloudpickle", "colorama", "dill", "fsspec", "jinja2", "matplotlib", "msgspec", "pandas", "psutil", "pyarrow",
    "pydantic", "pyyaml", "ray", "requests", "rich", "safetensors", "scikit-learn", "simplejpeg", "tensorboardx",
    "tqdm", "tyro", "zstandard",
)  # fmt: skip
# A machine with torch and torchvision has these.
ALWAYS_THERE = ("torch", "torchvision", "numpy", "pillow", "typing-extensions", "sympy", "networkx", "setuptools")
_RAY_UNUSED = re.compile(
    r"^ray/(rllib|jars|dashboard/client|serve|llm|cpp|core/src/ray/thirdparty|_private/.*_test)/|\.(pyx|pxd|h|cc)$"
)
_UNUSED = re.compile(
    r"(^|/)(tests?|testing/data|include|sample_data|mpl-data/sample_data)/|\.dist-info/(RECORD|licenses/)"
    r"|^pyarrow/src/|\.pyi$|\.a$"
)


def main() -> None:
    """Packs, and prints the pieces with their sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", required=True, help="folder for the pieces")
    parser.add_argument("--cifar", help="archive of CIFAR-10 in its binary form")
    parser.add_argument("--photos", help="tar of JPEGs")
    parser.add_argument("--have", nargs="*", default=[], help="packages that the machine has already")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pack-") as folder:
        stage = Path(folder, "proof")
        pack_code(stage / "code")
        pack_packages(stage / "site", [*ALWAYS_THERE, *args.have], Path(folder, "wheels"))
        pack_decoder(stage)
        whole = Path(folder, "proof.tar")
        print("compressing program and images: some minutes", flush=True)
        with tarfile.open(whole, "w") as tar:
            add_bytes(tar, "program.tar.xz", compressed(stage))
            if args.photos:
                tar.add(args.photos, "photos.tar")
            if args.cifar:
                for name, mosaic in mosaics(args.cifar):
                    add_bytes(tar, f"cifar/{name}", mosaic)
        pieces = split(whole, out)
    sums = [f"{hashlib.sha256(piece.read_bytes()).hexdigest()}  {piece.name}\n" for piece in pieces]
    (out / "pieces.sha256").write_text("".join(sums))
    for name in ("start.sh", "unpack.py"):
        shutil.copy(Path(__file__).parent / name, out)
    for piece in pieces:
        print(f"{piece}  {piece.stat().st_size / 2**20:.1f} MiB")


def pack_code(folder: Path) -> None:
    """Writes the last commit's library, jobs and this folder to `folder`, and the commit's name."""
    parts = ["pipeline", "jobs", "infra/gpu_proof", "infra/__init__.py", "pyproject.toml"]
    archive = subprocess.run(["git", "archive", "HEAD", *parts], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (folder / "COMMIT").write_text(commit)


# --- packages ----------------------------------------------------------------------------------------------------


def pack_packages(site: Path, have: Iterable[str], wheels: Path) -> None:
    """Downloads the wheels of what is needed and not there, in the versions of this environment, and unpacks them."""
    site.mkdir(parents=True)
    wheels.mkdir(parents=True)
    named = sorted(closure(NEEDED) - {normal(name) for name in have})
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in named]
    platforms = [f"--platform=manylinux{each}_x86_64" for each in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")]
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms]
    if not wanted:
        return
    print(f"downloading {len(wanted)} packages", flush=True)
    pip = shutil.which("pip") or "pip3"  # an environment of uv has none of its own
    subprocess.run([pip, "download", "-q", "-d", str(wheels), *options, *wanted], check=True)
    for wheel in sorted(wheels.glob("*.whl")):
        unpack_wheel(wheel, site)


def closure(names: Iterable[str]) -> set[str]:
    """Returns the names, and those of all packages that they require here, without extras."""
    found: set[str] = set()
    waiting = [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another platform or version of Python
            continue
        found.add(name)
        plain = (each for each in required if "extra ==" not in each)
        waiting += [normal(re.split(r"[^\w.-]", each)[0]) for each in plain]
    return found


def normal(name: str) -> str:
    """Returns the normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unpack_wheel(wheel: Path, site: Path) -> None:
    """Unpacks a wheel, without tests, headers, and the parts of Ray that training doesn't use."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", info.filename)
            if info.is_dir() or _UNUSED.search(name) or (name.startswith("ray/") and _RAY_UNUSED.search(name)):
                continue
            target = site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(info))
            target.chmod(0o755 if info.external_attr >> 16 & 0o111 else 0o644)


def pack_decoder(stage: Path) -> None:
    """Copies the compiled decoder and the libjpeg that it needs, if they can be built here."""
    code = "from pipeline.loader.native.kernel import load_kernel; print(load_kernel()._name)"
    library = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (stage / "lib").mkdir()
    shutil.copy(library.strip(), stage / "lib" / "decoder.so")
    listed = subprocess.run(["ldd", library.strip()], check=True, capture_output=True, text=True).stdout
    for name, path in re.findall(r"(libjpeg\S+) => (\S+)", listed):
        shutil.copy(path, stage / "lib" / name)


# --- data and pieces ---------------------------------------------------------------------------------------------


def mosaics(cifar: str) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of labels and lossless mosaics of each batch: a fifth smaller than the published archive.

    A mosaic holds up to 2,500 images, 50 in a row.
    """
    import numpy as np
    from PIL import Image

    with tarfile.open(cifar, "r|*") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None or not member.name.endswith(".bin"):
                continue
            records = np.frombuffer(content.read(), np.uint8).reshape(-1, 3073)
            batch = Path(member.name).stem
            yield f"{batch}.labels", records[:, 0].tobytes()
            for first in range(0, len(records), 2500):
                pixels = records[first : first + 2500, 1:].reshape(-1, 50, 3, 32, 32)
                picture = pixels.transpose(0, 3, 1, 4, 2).reshape(-1, 1600, 3)
                out = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(picture)).save(out, "WEBP", lossless=True, method=4, quality=75)
                yield f"{batch}-{first:05d}.webp", out.getvalue()


def compressed(folder: Path) -> bytes:
    """Returns a tar.xz of a folder's content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", preset=6) as tar:
        tar.add(folder, ".")
    return out.getvalue()


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file of this content to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def split(path: Path, out: Path) -> list[Path]:
    """Cuts a file into pieces of at most PIECE_BYTES in `out`, and returns them. Older pieces there are removed."""
    for old in out.glob("piece-*"):
        old.unlink()
    pieces: list[Path] = []
    with path.open("rb") as file:
        while part := file.read(PIECE_BYTES):
            pieces.append(out / f"piece-{len(pieces):02d}")
            pieces[-1].write_bytes(part)
    return pieces


if __name__ == "__main__":
    main()
