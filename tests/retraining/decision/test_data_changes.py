"""What has changed in the data is counted by split, without a loop over rows."""

import shutil
from pathlib import Path

from pipeline.dataset import manifest
from pipeline.ingestion.plan import SHARD_BYTES
from pipeline.ingestion.sources import open_source
from pipeline.retraining.decision.data_changes import data_changes
from pipeline.versions import compare_datasets
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tree


def ingested(tree: Path, out: Path) -> str:
    ingest_here(open_source(str(tree), spool=f"{out}-spool"), str(out), shard_size=SHARD_BYTES)
    return str(out)


def test_rows_and_classes_are_counted_as_a_comparison_lists_them(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    old = ingested(tree, tmp_path / "old")
    ants = sorted((tree / "train" / "ant").iterdir())
    ants[0].unlink()
    ants[1].write_bytes(jpeg(77))  # other bytes
    (tree / "train" / "owl").mkdir()
    (tree / "train" / "owl" / "new.jpg").write_bytes(jpeg(78))
    for split in ("train", "val"):
        shutil.rmtree(tree / split / "bee")
    new = ingested(tree, tmp_path / "new")
    data = manifest.load(new)
    changes, listed = data_changes(new, data, old), compare_datasets(old, new)
    for name, rows in (("added", listed.added), ("removed", listed.removed), ("changed", listed.content_changed)):
        of_train = sum(row.startswith("train/") for row in rows)
        assert changes[name]["train"] == of_train > 0, name
    assert (changes["added"]["val"], changes["removed"]["val"] > 0) == (0, True)
    assert changes["since"] == "old"
    assert (changes["classes_added"], changes["classes_removed"]) == (["owl"], ["bee"])
    assert changes["rows"] == {name: split.rows for name, split in data.splits.items()}
    assert changes["quarantined_share"] == 0


def test_without_a_data_set_of_before_only_rows_are_counted(tmp_path: Path) -> None:
    new = ingested(make_tree(tmp_path / "tree"), tmp_path / "new")
    for before in (None, str(tmp_path / "dropped")):
        assert set(data_changes(new, manifest.load(new), before)) == {"rows", "quarantined", "quarantined_share"}
