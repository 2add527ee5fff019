from dataclasses import replace
from pathlib import Path

from pipeline.ingestion.sources import open_source
from pipeline.ingestion.sources.index import sample_table
from pipeline.versions.compare import compare_datasets
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tree


def test_a_diff_tells_added_removed_relabelled_and_changed_rows(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=5)
    ingest_here(open_source(str(tree), spool=str(tmp_path / "s")), str(tmp_path / "old"))
    (tree / "train/ant/000.jpg").unlink()
    (tree / "train/ant/001.jpg").write_bytes(jpeg(999))
    (tree / "train/dog").mkdir()
    (tree / "train/dog/000.jpg").write_bytes(jpeg(998))
    ingest_here(open_source(str(tree), spool=str(tmp_path / "s")), str(tmp_path / "new"))
    changes = compare_datasets(str(tmp_path / "old"), str(tmp_path / "new"))
    assert changes.added == ("train/dog/000.jpg",)
    assert changes.removed == ("train/ant/000.jpg",)
    assert changes.content_changed == ("train/ant/001.jpg",)
    assert changes.relabelled == ()
    assert len(changes.unchanged) == 28
    assert changes.classes == ("+dog",)
    back = compare_datasets(str(tmp_path / "new"), str(tmp_path / "old"))
    assert (back.added, back.removed, back.classes) == (changes.removed, changes.added, ("-dog",))


def test_a_row_of_another_class_is_relabelled(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=5)
    index = open_source(str(tree), spool=str(tmp_path / "s"))
    ingest_here(index, str(tmp_path / "old"))
    table = index.splits["train"]
    labels = table["label"].to_pylist()
    labels[0] = 2
    columns = [table[name].to_pylist() for name in ("key", "object", "offset", "length")]
    changed = sample_table(columns[0], labels, *columns[1:])
    ingest_here(replace(index, splits={**index.splits, "train": changed}), str(tmp_path / "new"))
    changes = compare_datasets(str(tmp_path / "old"), str(tmp_path / "new"))
    assert changes.relabelled == (table["key"][0].as_py(),)
    assert (changes.added, changes.removed, changes.content_changed) == ((), (), ())
