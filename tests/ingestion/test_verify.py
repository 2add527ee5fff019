import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from pipeline.dataset.edits import DELETIONS_SCHEMA, edit_file, read_edits
from pipeline.dataset.parquet import parquet_bytes
from pipeline.dataset.version import Changes
from pipeline.ingestion.sources import Index, open_source
from pipeline.ingestion.verify import verify_dataset
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tree
from tests.support.pictures.versions import corrections, deletions, make_version


def test_verify_names_each_damaged_file(tree_index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = ingest_here(tree_index, str(out), shard_size=9000)
    assert verify_dataset(str(out)) == []
    shards = data.splits["train"].shards
    flipped = bytearray((out / shards[0].path).read_bytes())
    flipped[500] ^= 1
    (out / shards[0].path).write_bytes(flipped)
    (out / shards[1].path).unlink()
    (out / shards[0].provenance_path).write_bytes(b"")
    with (out / data.splits["val"].shards[0].path).open("ab") as stream:
        stream.write(b"more")
    found = {damage.path: damage.what for damage in verify_dataset(str(out))}
    assert set(found) == {
        shards[0].path,
        shards[1].path,
        shards[0].provenance_path,
        data.splits["val"].shards[0].path,
    }
    assert found[shards[0].path].startswith("SHA-256 ")
    assert found[shards[1].path] == "missing"
    assert "bytes" in found[data.splits["val"].shards[0].path]


def test_verify_names_damaged_edit_files_and_shards_of_a_version(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=17)
    ingest_here(open_source(str(tree), spool=""), str(tmp_path / "v1"), shard_size=9000)
    changes = {"train": Changes(deletions({1: "gone", 30: "gone"}), corrections({3: "cow"}))}
    made = make_version(str(tmp_path / "v1"), str(tmp_path / "v2"), changes)
    assert verify_dataset(tmp_path / "v2") == []

    def damaged(name: str, data: bytes | None) -> dict[str, str]:
        place = shutil.copytree(tmp_path / "v2", tmp_path / f"v2-{len(list(tmp_path.iterdir()))}") / name
        place.unlink() if data is None else place.write_bytes(data)
        return {damage.path: damage.what for damage in verify_dataset(place.parents[name.count("/")])}

    for name in ("deletions.parquet", "corrections.parquet"):
        data = (tmp_path / "v2" / name).read_bytes()
        assert damaged(name, None)[name].startswith("is missing")
        assert damaged(name, data[:-1] + b"x")[name].startswith("edited or damaged (SHA-256)")
    assert made.version is not None
    assert made.version.deletions is not None
    table = read_edits(str(tmp_path / "v2"), made.version.deletions, DELETIONS_SCHEMA)
    for rows, expected in (
        (table.slice(0, 1), "the manifest counts other deleted rows"),
        (table.set_column(1, "row", pa.array([1, 10**6], pa.int32())), "1 row that no shard has, first"),
        (pa.concat_tables([table.slice(0, 1)] * 2), "a row more than once"),
    ):
        data = parquet_bytes(rows)
        edited = replace(made.version, deletions=edit_file("deletions.parquet", data))
        (tmp_path / "v2" / "manifest.json").write_bytes(replace(made, version=edited).with_digest().to_json())
        assert expected in " ".join(damaged("deletions.parquet", data).values())
    (tmp_path / "v2" / "manifest.json").write_bytes(made.to_json())
    first = tmp_path / "v2" / made.resolved.splits["train"].shards[0].path
    first.write_bytes(first.read_bytes()[:-1])
    assert {damage.path for damage in verify_dataset(tmp_path / "v2")} == {made.resolved.splits["train"].shards[0].path}
