"""The folders of a source as a tree, with the numbers of images in them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.ingestion.sources.recognise.split_words import is_annotation, is_generic, split_name

Path = tuple[str, ...]


@dataclass
class Folder:
    """A folder that has images, in it or below it."""

    path: Path  # below the source
    num_images: int = 0  # in the folder itself
    folders: dict[str, "Folder"] = field(default_factory=dict)  # by name

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path[-1] if self.path else ""

    @property
    def total(self) -> int:
        """Images in the folder and below it."""
        return sum(folder.num_images for folder in self.walk())

    def walk(self) -> Iterator["Folder"]:
        """Yields the folder itself, then all folders below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    def below(self) -> list[Path]:
        """Returns the paths of the folders that hold images, relative to this one, which is ()."""
        return [folder.path[len(self.path) :] for folder in self.walk() if folder.num_images]


def folder_tree(counts: Mapping[str, int]) -> Folder:
    """Returns the tree of {folder with "/" between its parts: images in it}."""
    root = Folder(())
    for name in sorted(counts):
        folder = root
        for part in name.split("/") if name else ():
            folder = folder.folders.setdefault(part, Folder((*folder.path, part)))
        folder.num_images += counts[name]
    return root


def wrapped(folder: Folder) -> Iterator[Folder]:
    """Yields a folder, then what lies inside it while that is one folder with folders: `data` of `data/train/cat`."""
    yield folder
    while not folder.num_images and len(folder.folders) == 1:
        folder = next(iter(folder.folders.values()))
        if not folder.folders:
            return
        yield folder


def take_annotations(root: Folder) -> dict[str, int]:
    """Takes folders of masks and the like, beside one folder of images, out of a tree. Returns {its path: its images}.

    So `masks` beside `images` is no class, while `mask` beside `no_mask` may be one.
    """
    *_, top = wrapped(root)
    taken = [name for name in top.folders if is_annotation(name)]
    rest = [name for name in top.folders if name not in taken]
    if not taken or len(rest) != 1 or not is_generic(rest[0]) or top.num_images:
        return {}
    return {"/".join(folder.path): folder.total for folder in map(top.folders.pop, taken)}


def is_flat(folder: Folder, classes: set[str]) -> bool:
    """Whether the images of a folder lie in no class folder: in it, or in `images` alone. classes: known names."""
    while not folder.num_images and len(folder.folders) == 1:
        folder = next(iter(folder.folders.values()))
        if folder.name in classes or not (is_generic(folder.name) or split_name(folder.name)):
            return False
    return not folder.folders
