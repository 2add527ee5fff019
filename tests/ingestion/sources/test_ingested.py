"""The same images in several layouts, ingested by Ray: one data set."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.parquet import read_table
from pipeline.ingestion.api import ingest
from tests.support.pictures.images import make_tree, tree_files, write_tree

Files = dict[str, bytes]


def named_tree(root: Path) -> Path:
    """Writes class folders whose file names occur once, and returns `root`."""
    names = iter(range(1000))
    for path in sorted(make_tree(root).rglob("*.jpg")):
        path.rename(path.with_name(f"im{next(names):03d}.jpg"))
    return root


def zipped(root: Path, files: Files) -> Path:
    path = root / "photos.zip"
    root.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tabled(root: Path, files: Files) -> Path:
    parts = [name.split("/") for name in files]
    lines = "".join(f"{base},{label},{split}\n" for split, label, base in parts)
    images = {f"images/{name.split('/')[-1]}": data for name, data in files.items()}
    return write_tree(root / "photos", {"all.csv": b"file,label,split\n" + lines.encode(), **images})


def parquets(root: Path, files: Files) -> Path:
    for split in ("train", "val"):
        names = [name for name in files if name.startswith(split)]
        images = pa.array([{"bytes": files[name], "path": name.split("/")[-1]} for name in names])
        out = io.BytesIO()
        pq.write_table(pa.table({"image": images, "label": [name.split("/")[1] for name in names]}), out)
        write_tree(root / "photos/data", {f"{split}-00000-of-00001.parquet": out.getvalue()})
    return root / "photos"


@pytest.mark.ray
@pytest.mark.parametrize("make", [zipped, tabled, parquets])
def test_the_same_images_give_the_same_data_set(
    ray_cluster: None, tmp_path: Path, make: Callable[[Path, Files], Path]
) -> None:
    tree = named_tree(tmp_path / "photos")
    expected = ingest(tree, tmp_path / "expected")
    done = ingest(make(tmp_path / "source", tree_files(tree)), tmp_path / "out")
    assert done.manifest == expected.manifest


@pytest.mark.ray
def test_what_a_table_names_and_what_is_not_there_ends_in_quarantine(ray_cluster: None, tmp_path: Path) -> None:
    source = tabled(tmp_path / "s", tree_files(named_tree(tmp_path / "t")))
    with (source / "all.csv").open("a") as table:
        table.write("gone.jpg,ant,val\n")
    done = ingest(source, tmp_path / "out", max_quarantined=1)
    (row,) = read_table(str(tmp_path / "out/quarantine.parquet")).to_pylist()
    assert (row["split"], row["key"], row["reason"]) == ("val", "val/ant/gone.jpg", "missing: all.csv names it")
    assert sum(done.manifest.quarantined.values()) == 1
    assert done.manifest.rows == 36
