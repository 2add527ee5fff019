"""Epochs of new rows and a share of old ones: exact, and the same whenever they are computed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.config.sampling import Sampling
from pipeline.core.errors import RecipeError
from pipeline.dataset import manifest
from pipeline.ingestion.plan import SHARD_BYTES
from pipeline.ingestion.sources import open_source
from pipeline.loader.sampling.plan import expected_counts
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining.decision.data_changes import new_rows
from pipeline.retraining.plan import RetrainOptions
from pipeline.retraining.replay import replay_weights, with_replay
from pipeline.training.job import TrainJob
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tree
from tests.support.trained.retraining import planned_run


@pytest.mark.parametrize(
    ("new", "share", "least", "length"),
    [
        (100, 0.5, 1, 200),
        (100, 0.0, 1, 100),  # new rows alone
        (100, 0.9, 1, 1000),
        (100, 0.5, 256, 256),  # a batch: old rows fill it
        (0, 0.5, 1, None),  # nothing is new
        (600, 0.5, 1, None),  # all rows are needed
        (1200, 0.5, 1, None),
    ],
)
def test_an_epoch_is_as_long_as_what_is_new(new: int, share: float, least: int, length: int | None) -> None:
    is_new = np.arange(1200) >= 1200 - new
    found = replay_weights(is_new, share, least)
    assert (found is None) == (length is None)
    if found is not None:
        weights, rows = found
        assert rows == length
        assert weights.sum() == pytest.approx(rows)  # so each weight is the row's expected count
        assert (weights[is_new] == 1).all()
        assert weights.max() <= 1


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, set[str]]:
    """(a data set, the same with new and changed images, the keys of these)."""
    folder = tmp_path_factory.mktemp("grown")
    tree = make_tree(folder / "tree")
    ingest_here(open_source(str(tree), spool=str(folder / "s1")), str(folder / "old"), shard_size=SHARD_BYTES)
    for number in range(3):
        (tree / "train" / "bee" / f"new{number}.jpg").write_bytes(jpeg(500 + number))
    sorted((tree / "train" / "ant").iterdir())[0].write_bytes(jpeg(600))
    ingest_here(open_source(str(tree), spool=str(folder / "s2")), str(folder / "new"), shard_size=SHARD_BYTES)
    changed = sorted((tree / "train" / "ant").iterdir())[0].name
    names = {f"bee/new{number}.jpg" for number in range(3)} | {f"ant/{changed}"}
    return str(folder / "old"), str(folder / "new"), names


def test_each_new_row_comes_once_an_epoch_and_old_ones_in_turn(
    grown: tuple[str, str, set[str]], tmp_path: Path
) -> None:
    old, new, names = grown
    recipe = replace(make_recipe("digits"), global_batch_size=2)
    found, details = with_replay(recipe, new, old, 0.5, str(tmp_path))
    data = manifest.load(new)
    assert details == {"share": 0.5, "new_rows": 4, "epoch_rows": 8}
    expected = expected_counts(new, data, found.sampling)
    assert expected is not None
    assert expected.num_samples == 8
    lines = (tmp_path / "replay.csv").read_text().splitlines()[1:]
    is_new = np.array([any(name in line for name in names) for line in lines])
    assert is_new.sum() == 4
    total = np.zeros(data.split("train").rows, dtype=np.int64)
    for epoch in range(12):
        counts = expected.counts(seed=3, epoch=epoch)
        assert (counts[is_new] == 1).all()
        assert counts.sum() == 8
        total += counts
    assert np.ptp(total[~is_new]) <= 1  # every old row has its turn
    assert total[~is_new].min() > 0


def test_the_order_is_the_same_whenever_it_is_computed(grown: tuple[str, str, set[str]], tmp_path: Path) -> None:
    """A run that was killed finds the identity of its checkpoints again, and a new share gives another one."""
    old, new, _ = grown
    recipe = replace(make_recipe("digits"), global_batch_size=2)

    def identity(share: float) -> dict[str, object]:
        found, _ = with_replay(recipe, new, old, share, str(tmp_path))
        return TrainJob(new, str(tmp_path / "run"), found).identity("digest")

    first = identity(0.5)
    assert identity(0.5) == first
    assert identity(0.6) != first


def test_without_new_rows_every_epoch_holds_all(grown: tuple[str, str, set[str]], tmp_path: Path) -> None:
    old, _, _ = grown
    recipe = make_recipe("digits")
    assert with_replay(recipe, old, old, 0.5, str(tmp_path))[0] == recipe


def test_a_renamed_class_and_a_renamed_file_are_not_new(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    ingest_here(open_source(str(tree), spool=str(tmp_path / "s1")), str(tmp_path / "old"), shard_size=SHARD_BYTES)
    for split in ("train", "val"):
        (tree / split / "bee").rename(tree / split / "wasp")
    ant = sorted((tree / "train" / "ant").iterdir())[0]
    ant.rename(ant.with_name("renamed.jpg"))
    cow = sorted((tree / "train" / "cow").iterdir())[0]
    cow.rename(tree / "train" / "ant" / "moved.jpg")  # another class
    ingest_here(open_source(str(tree), spool=str(tmp_path / "s2")), str(tmp_path / "new"), shard_size=SHARD_BYTES)
    new = str(tmp_path / "new")
    data = manifest.load(new)
    class_map = ClassMap(("ant", "bee", "cow"), data.classes, {"bee": "wasp"})
    keys, is_new = new_rows(new, data, str(tmp_path / "old"), class_map.name_since)
    assert [key for key, found in zip(keys.to_pylist(), is_new, strict=True) if found] == ["train/ant/moved.jpg"]
    recipe = replace(make_recipe("digits"), global_batch_size=2)
    _, details = with_replay(recipe, new, str(tmp_path / "old"), 0.5, str(tmp_path), class_map)
    assert details["new_rows"] == 1
    assert new_rows(new, data, str(tmp_path / "old"))[1].sum() == 7  # without the name


def test_what_cannot_be_replayed_is_an_error(grown: tuple[str, str, set[str]], tmp_path: Path) -> None:
    old, new, _ = grown
    sampled = replace(make_recipe("digits"), sampling=Sampling(share=0.5))
    with pytest.raises(RecipeError, match="both say what an epoch holds"):
        with_replay(sampled, new, old, 0.5, str(tmp_path))
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(RecipeError, match=r"must lie in \[0, 1\)"):
            RetrainOptions(replay_share=share, from_champion=True)
    with pytest.raises(RecipeError, match="needs --from-champion"):
        RetrainOptions(replay_share=0.5)


def test_a_run_without_replay_keeps_its_id_and_one_with_it_has_another() -> None:
    run = planned_run("w")
    assert "replay_share" not in run.as_json()
    assert replace(run, replay_share=0.5).id != run.id
