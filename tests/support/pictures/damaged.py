"""Copies of a data set with damaged images."""

import shutil
from pathlib import Path

from pipeline.dataset import manifest
from pipeline.dataset.row_reader import load_index


def damaged_copy(uri: str, folder: Path, rows: list[tuple[str, int]]) -> str:
    """Returns the URI of a copy of a local data set with one flipped bit in the images of `rows`, (split, row)."""
    shutil.copytree(uri, folder)
    for name, row in rows:
        index = load_index(uri, manifest.load(uri).split(name))
        path = folder / Path(index.paths[index.shard[row]]).relative_to(uri)
        data = bytearray(path.read_bytes())
        data[int(index.offset[row]) + int(index.length[row]) // 2] ^= 16
        path.write_bytes(data)
    return str(folder)
