import logging
from pathlib import Path

import pytest

from pipeline.core.errors import DatasetError, PipelineError, SourceError
from pipeline.dataset import Dataset, open_dataset
from pipeline.ingestion import (
    ImageHandling,
    IngestSettings,
    Source,
    ingest,
    prepare_dataset,
    preview_ingest,
    verify_dataset,
)
from pipeline.ingestion.sources import open_source
from pipeline.storage import files
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tree, tree_files


def test_a_preview_counts_and_writes_nothing(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "notes.txt").write_text("hello")
    preview = preview_ingest(tree, tmp_path / "out", workers=3)
    assert {name: table.num_rows for name, table in preview.index.splits.items()} == {"train": 18, "val": 18}
    assert (len(preview.shards), preview.cost.rows, preview.cost.reads, preview.cpus) == (2, 36, 0, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"workers": 0}, "workers=0 must be 1 or more"), ({"max_quarantined": -1}, "max_quarantined=-1 must not be neg")],
)
def test_values_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        ingest(tmp_path, tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"shorter_side_px": 7}, "shorter_side_px=7 must be 0"), ({"jpeg_quality": 101}, "jpeg_quality=101 must be 0")],
)
def test_handling_out_of_range_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        ImageHandling(**arguments)


@pytest.mark.parametrize(
    ("source", "resolved"),
    [
        (Source("digits"), Source("digits", "digits")),
        (Source("digits", "folders"), Source(str(Path("digits").resolve()), "folders")),
        (Source("a/b.tar", md5="any"), Source(str(Path("a/b.tar").resolve()), md5="any")),
        (Source("s3://bucket/raw"), Source("s3://bucket/raw")),
    ],
)
def test_a_source_is_a_path_a_uri_or_the_word_digits(source: Source, resolved: Source) -> None:
    assert source.resolved() == resolved


def test_a_finished_data_set_needs_no_preparation(tree_dataset: str, tmp_path: Path) -> None:
    assert prepare_dataset(tree_dataset, str(tmp_path)) == tree_dataset
    assert not list(tmp_path.iterdir())


def test_data_that_is_not_there_is_named_with_the_folder_it_is_looked_for_in(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"data=\S+/nothere: no such file.*relative paths start from"):
        prepare_dataset("nothere", str(tmp_path))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
class TestOnRay:
    def test_ingest_returns_the_data_set_that_it_wrote(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        tree = make_tree(tmp_path / "tree")
        (tree / "train" / "ant" / "000.jpg").write_bytes(b"I am text")
        (tree / "notes.txt").write_text("hello")
        caplog.set_level(logging.INFO, "pipeline")
        settings = IngestSettings(shard_bytes=9000)
        done = ingest(tree, tmp_path / "out", settings=settings, max_quarantined=1)
        assert isinstance(done, Dataset)
        assert (done.uri, done.manifest) == (str(tmp_path / "out"), open_dataset(tmp_path / "out").manifest)
        assert (len(done["train"]), done.manifest.quarantined, done.trusted_shards) == (17, {"no image": 1}, 0)
        assert "found 37 files (folders): 36 labelled images (18 train, 18 val), 1 left out" in caplog.text
        assert "3 classes: ant 12, bee 12, cow 12" in caplog.text
        assert "left out: 1 x .txt" in caplog.text
        assert verify_dataset(tmp_path / "out") == []
        index = open_source(str(tree), spool="")
        assert ingest_here(index, str(tmp_path / "here"), shard_size=9000).digest == done.manifest.digest

    def test_ingest_leaves_the_data_context_of_its_caller_alone(self, tmp_path: Path) -> None:
        from ray.data import DataContext

        context = DataContext.get_current()
        before = (context.enable_progress_bars, context.raise_original_map_exception)
        context.enable_progress_bars, context.raise_original_map_exception = True, False
        try:
            ingest(make_tree(tmp_path / "tree", per_class=2), tmp_path / "out")
            assert DataContext.get_current() is context
            assert (context.enable_progress_bars, context.raise_original_map_exception) == (True, False)
        finally:
            context.enable_progress_bars, context.raise_original_map_exception = before

    def test_raw_images_are_ingested_once_until_they_change(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tree = make_tree(tmp_path / "tree", per_class=2)
        caplog.set_level(logging.INFO, "pipeline")
        first = prepare_dataset(str(tree), str(tmp_path / "kept"))
        assert "ingested 12 images of tree in" in caplog.text
        before = tree_files(tmp_path / "kept")
        assert prepare_dataset(str(tree), str(tmp_path / "kept")) == first
        assert tree_files(tmp_path / "kept") == before
        (tree / "train" / "ant" / "new.jpg").write_bytes(jpeg(77))
        second = prepare_dataset(str(tree), str(tmp_path / "kept"))
        assert second != first
        assert len(open_dataset(second)["train"]) == 7
        assert len(files.list_directories(str(tmp_path / "kept"))) == 2

    def test_too_many_damaged_files_are_an_error_and_the_next_call_goes_on(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tree = make_tree(tmp_path / "tree", per_class=2)
        (tree / "val" / "cow" / "001.jpg").write_bytes(b"")
        with pytest.raises(DatasetError, match=r"1 of 12 files can't be used \(val/cow/001\.jpg: empty: zero bytes\)"):
            ingest(tree, tmp_path / "out", max_quarantined=0.05)
        caplog.set_level(logging.INFO, "pipeline")
        done = ingest(tree, tmp_path / "out")  # the default leaves out what can't be used, and says so
        assert "warning: 1 of 12 files can't be used (val/cow/001.jpg: empty: zero bytes); they are left" in caplog.text
        assert (done.trusted_shards, done.manifest.rows) == (2, 11)
