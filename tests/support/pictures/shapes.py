"""Ten shapes in which people have their images: folders, archives and tables, made of the same pictures."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from tests.support.pictures.images import shared

Pictures = dict[str, list[bytes]]
"""Files of each class."""


def photographs(per_class: int, classes: int = 3, after: int = 0) -> Pictures:
    """Returns photographs of Imagenette's first classes, those after the first `after` of each.

    Skips the test where they are absent.
    """
    found: Pictures = {}
    with tarfile.open(shared("imagenette-mini.tar")) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            files = found.setdefault(member.name.split("/")[1], []) if member.isfile() else []
            if member.isfile() and len(files) < after + per_class:
                files.append(tar.extractfile(member).read())
    return {name: files[after:] for name, files in sorted(found.items())[:classes]}


def forty_of_five_classes(root: Path) -> Path:
    """Writes 40 training photographs of each of Imagenette's first five classes and all their validation images."""
    left: dict[tuple[str, str], int] = {}
    with tarfile.open(shared("imagenette-mini.tar")) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        classes = sorted({member.name.split("/")[1] for member in members})[:5]
        for member in members:
            split, label, _ = member.name.split("/")
            left[split, label] = left.get((split, label), 40) - 1
            if label in classes and left[split, label] >= 0:
                _write(root, iter([(member.name, tar.extractfile(member).read())]))
    return root


def plain_colours(per_class: int, side: int = 48) -> Pictures:
    """Returns pictures whose classes are colours: learnt within a few steps."""
    colours = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 200)}
    return {
        name: [_encoded(Image.new("RGB", (side + n, side), tuple(min(255, value + n) for value in colour)))
               for n in range(per_class)]
        for name, colour in colours.items()
    }  # fmt: skip


def _encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, quality=92)
    return out.getvalue()


def _files(pictures: Pictures, splits: tuple[str, ...], suffix: str = "jpg") -> Iterator[tuple[str, bytes]]:
    """Yields (path, bytes): four of five files of a class in the first of `splits`, the rest shared by the others."""
    for label, files in pictures.items():
        for number, data in enumerate(files):
            others = splits[1:] or splits
            split = splits[0] if number % 5 else others[number // 5 % len(others)]
            yield f"{split}/{label}/{number:03d}.{suffix}".lstrip("/"), data


def _write(root: Path, files: Iterator[tuple[str, bytes]]) -> Path:
    for path, data in files:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return root


def _tar(pictures: Pictures, root: Path) -> Path:
    root.mkdir(parents=True)
    with tarfile.open(root / "photos.tar", "w") as tar:
        for path, data in _files(pictures, ("",)):
            member = tarfile.TarInfo(f"photos/{path}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return root / "photos.tar"


def _zip(pictures: Pictures, root: Path) -> Path:
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for path, data in _files(pictures, ("train", "val")):
            archive.writestr(path, data)
    return root / "photos.zip"


def _table(pictures: Pictures, root: Path) -> Path:
    names = [(f"{label}-{n}.jpg", label, data) for label, files in pictures.items() for n, data in enumerate(files)]
    _write(root, ((f"images/{name}", data) for name, _, data in names))
    lines = [f"images/{name},{label}" for name, label, _ in names]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    return root


def grey(pictures: Pictures) -> Pictures:
    """Returns pictures as grey PNGs."""
    return {
        label: [_encoded(Image.open(io.BytesIO(data)).convert("L"), "PNG") for data in files]
        for label, files in pictures.items()
    }


def _grey(pictures: Pictures, root: Path) -> Path:
    return _write(root, _files(grey(pictures), ("train", "val"), "png"))


def _large(pictures: Pictures, root: Path) -> Path:
    large = {
        label: [_encoded(Image.open(io.BytesIO(data)).convert("RGB").resize((1600, 1200))) for data in files]
        for label, files in pictures.items()
    }
    return _write(root, _files(large, ("train", "val")))


def _tiny(pictures: Pictures, root: Path) -> Path:
    few = {label: files[:15] for label, files in list(pictures.items())[:2]}  # 12 of each class to train on
    return _write(root, _files(few, ("train", "val")))


SHAPES: dict[str, Callable[[Pictures, Path], Path]] = {
    "train and val": lambda pictures, root: _write(root, _files(pictures, ("train", "val"))),
    "train and test": lambda pictures, root: _write(root, _files(pictures, ("train", "test"))),
    "train alone": lambda pictures, root: _write(root, _files(pictures, ("train",))),
    "class folders": lambda pictures, root: _write(root, _files(pictures, ("",))),
    "Train, Valid and Test": lambda pictures, root: _write(root, _files(pictures, ("Train", "Valid", "Test"))),
    "one level down": lambda pictures, root: _write(root / "photos-main", _files(pictures, ("train", "val"))).parent,
    "tar": _tar,
    "zip": _zip,
    "table": _table,
    "grey PNGs": _grey,
    "large photographs": _large,
    "two classes of twelve": _tiny,
}
"""Shapes by name: each writes the pictures below a folder and returns what `--data` is given."""
