"""A version is trained on and evaluated like any other data set: each row that is left once, with its class."""

import shutil
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Recipe, recipes
from pipeline.config.presets import make_recipe
from pipeline.core.errors import CertificateError
from pipeline.core.keyed_random import key_hash
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.version import Changes
from pipeline.evaluation import EvaluateOptions, evaluate, verify
from pipeline.evaluation.certificate import certify
from pipeline.evaluation.predictions import read_predictions
from pipeline.evaluation.runner import EvaluateJob
from pipeline.loader import Loader
from pipeline.loader.sample_order import training_order
from pipeline.models.load import find_model
from pipeline.training import launch
from pipeline.training.job import TrainJob
from pipeline.versions.compaction import compact
from tests.support.pictures.versions import corrections, deletions, make_version
from tests.support.trained.predictions import evaluated
from tests.support.trained.runs import traced

STREAM = replace(
    recipes["resnet18-smoke"], global_batch_size=9, image_size_px=24, evaluate_resize_px=24, shuffle_window_row_groups=2
)
RESIDENT = replace(recipes["digits"], global_batch_size=11, image_size_px=24, evaluate_resize_px=24)

Pairs = list[tuple[int, int]]


def pairs_of(uri: str | Path, split: str = "train") -> Pairs:
    """Returns (hash of the key, label) of each row of a split, sorted; read from provenance, and not by the loader."""
    table = read_split_provenance(str(uri), manifest.load(str(uri)).split(split), ["key", "label"])
    return sorted(zip(key_hash(table["key"].to_pylist()).tolist(), table["label"].to_pylist(), strict=True))


def steps_of(uri: Path, recipe: Recipe, steps: int, world_size: int = 1, from_step: int = 0) -> list[Pairs]:
    """Returns (hash of the key, label) of each row of the global batches of some steps, made by so many ranks."""
    found: list[Pairs] = [[] for _ in range(steps - from_step)]
    for rank in range(world_size):
        loader = Loader(uri, recipe, seed=5, rank=rank, world_size=world_size)
        if from_step:
            state = loader.state_dict()
            epoch, done = divmod(from_step, len(loader))
            loader.load_state_dict({**state, "epoch": epoch, "done": done})
        step = 0
        while step < len(found):
            for batch in loader:
                found[step] += zip(batch.keys.tolist(), batch.labels.tolist(), strict=True)
                step += 1
                if step == len(found):
                    break
    return found


@pytest.mark.parametrize("recipe", [STREAM, RESIDENT], ids=["streamed", "resident"])
@pytest.mark.parametrize("name", ["v2", "v3"])
def test_an_epoch_has_each_row_that_is_left_once_for_any_number_of_ranks(
    family: Path, name: str, recipe: Recipe
) -> None:
    expected, epoch = pairs_of(family / name), len(Loader(family / name, recipe))
    first = steps_of(family / name, recipe, 2 * epoch)
    assert sorted(chain(*first[:epoch])) == sorted(chain(*first[epoch:])) == expected
    assert first[:epoch] != first[epoch:]
    for world_size in (2, 3, 5):
        ranks = steps_of(family / name, recipe, 2 * epoch, world_size)
        assert [sorted(step) for step in ranks] == [sorted(step) for step in first]


@pytest.mark.parametrize("recipe", [STREAM, RESIDENT], ids=["streamed", "resident"])
def test_a_loader_goes_on_at_any_step_also_with_other_ranks(family: Path, recipe: Recipe) -> None:
    epoch = len(Loader(family / "v3", recipe))
    steps = steps_of(family / "v3", recipe, epoch + 3)
    for begin in (1, epoch - 1, epoch, epoch + 2):
        assert steps_of(family / "v3", recipe, epoch + 3, from_step=begin) == steps[begin:]
        ranks = steps_of(family / "v3", recipe, epoch + 3, world_size=2, from_step=begin)
        assert [sorted(step) for step in ranks] == [sorted(step) for step in steps[begin:]]


def test_the_order_follows_from_the_manifest_alone(family: Path) -> None:
    """Not from where the versions lie, and not from what else is there."""
    data = manifest.load(str(family / "v3"))
    moved = shutil.move(family, family.parent / "elsewhere" / "deeper")
    shutil.rmtree(Path(moved) / "v2" / "_state", ignore_errors=True)
    order = training_order(STREAM, data.split("train").row_group_rows, 5)
    index = read_split_provenance(str(Path(moved) / "v3"), manifest.load(f"{moved}/v3").split("train"), ["key"])
    keys = key_hash(index["key"].to_pylist())
    steps = steps_of(Path(moved) / "v3", STREAM, 12)
    for step, pairs in enumerate(steps):
        assert [key for key, _ in pairs] == keys[order.rows(step)].tolist()


def test_a_compacted_version_has_the_same_rows_in_each_epoch(family: Path) -> None:
    compact(family / "v3", family / "v4")
    assert pairs_of(family / "v4") == pairs_of(family / "v3")
    steps = steps_of(family / "v4", STREAM, len(Loader(family / "v4", STREAM)))
    assert sorted(chain(*steps)) == pairs_of(family / "v3")


@pytest.fixture(scope="module")
def digits_version(digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits without some rows of several row groups, and with other classes for some."""
    folder = tmp_path_factory.mktemp("digits-versions")
    shutil.copytree(digits_dataset, folder / "v1")
    data = manifest.load(digits_dataset)
    changes = {}
    for name, split in data.splits.items():
        gone = dict.fromkeys(range(0, split.rows, 7), "gone")
        labels = read_split_provenance(digits_dataset, split, ["label"])["label"].to_pylist()
        other = {row: data.classes[(labels[row] + 1) % 10] for row in range(1, split.rows, 50)}
        changes[name] = Changes(deletions(gone), corrections(other))
    make_version(str(folder / "v1"), str(folder / "v2"), changes)
    return str(folder / "v2")


def test_a_run_sees_each_row_of_a_version_once_an_epoch(
    digits_version: str, ray_variables: None, tmp_path: Path
) -> None:
    recipe = make_recipe("digits", epochs=2)
    launch.run_training(TrainJob(digits_version, str(tmp_path / "run"), recipe, trace_rows=True))
    steps = traced(tmp_path / "run")
    split = manifest.load(digits_version).split("train")
    keys = read_split_provenance(digits_version, split, ["key"])["key"].to_pylist()
    seen = Counter(key for step in steps.values() for key in step)
    assert seen == Counter(dict.fromkeys(keys, 2))


def test_an_evaluation_has_each_row_that_is_left_once_and_its_certificate_holds(
    trained: str, digits_dataset: str, digits_version: str, tmp_path: Path
) -> None:
    split = manifest.load(digits_version).split("val")
    certificate = evaluated(trained, digits_version, tmp_path / "new")
    assert certificate.rows == split.rows < manifest.load(digits_dataset).split("val").rows
    found, keys = read_predictions(str(tmp_path / "new"))
    table = read_split_provenance(digits_version, split, ["key", "label"])
    assert keys == table["key"].to_pylist()
    assert found.label.tolist() == table["label"].to_pylist()
    evaluated(trained, digits_dataset, tmp_path / "old")
    before, old_keys = read_predictions(str(tmp_path / "old"))
    old = {
        key: (label, classes.tolist())
        for key, label, classes in zip(old_keys, before.label, before.classes, strict=True)
    }
    assert [
        old[key][1] for key in keys
    ] == found.classes.tolist()  # an image is predicted as before, whatever its class
    assert sum(old[key][0] != label for key, label in zip(keys, found.label, strict=True)) == len(
        [row for row in range(1, manifest.load(digits_dataset).split("val").rows, 50) if row % 7]
    )
    job = EvaluateJob(trained, digits_dataset, str(tmp_path / "new"))
    with pytest.raises(CertificateError, match="missing"):
        certify(job, manifest.load(digits_dataset), find_model(trained))


def test_metrics_and_certificate_of_a_version_verify_on_it_alone(
    trained: str, digits_dataset: str, digits_version: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    metrics = evaluate(trained, digits_version, out, EvaluateOptions(views="none"), workers=0)
    found, _ = read_predictions(str(out))
    right = np.mean(found.classes[:, 0] == found.label)
    assert metrics["metrics"]["top1"] == pytest.approx(right)
    assert verify(out, digits_version).rows == len(found.label)
    with pytest.raises(CertificateError):
        verify(out, digits_dataset)
