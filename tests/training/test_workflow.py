"""`train`: from data and a recipe to a result, in this process, as a script or a notebook calls it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import CheckpointError, RecipeError, SourceError
from pipeline.dataset import manifest, open_dataset
from pipeline.training import TrainOptions, make_job, train
from pipeline.training.workflow import new_run
from tests.support.pictures.images import make_tree

RECIPE = make_recipe("seed-cnn", epochs=1, global_batch_size=12)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the folders whose manifests have been read since."""
    found, parse = list[str](), manifest.parse_stored

    def counted(data: bytes, uri: str) -> manifest.Manifest:
        found.append(uri.rpartition("/")[0])
        return parse(data, uri)

    monkeypatch.setattr(manifest, "parse_stored", counted)
    return found


@pytest.mark.ray
def test_train_returns_the_result_and_returns_it_again_without_training(
    tree_dataset: str, ray_variables: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, reads: list[str]
) -> None:
    stages: set[str] = set()
    run = tmp_path / "run"
    arguments = (open_dataset(tree_dataset), run, RECIPE)
    result = train(*arguments, workers=0, progress=lambda stage, done, total, remark="": stages.add(stage))
    assert result == json.loads((run / "result.json").read_text())
    assert (result["steps"], result["val"]["rows"]) == (5, 51)
    assert {"load", "train", "evaluate"} <= stages
    assert (run / "report.html").exists()
    assert reads == [tree_dataset]  # given with the data set, and handed on to all stages
    with caplog.at_level(logging.INFO, logger="pipeline"):
        assert train(tree_dataset, str(run), RECIPE, workers=0) == result
    assert "this run is finished already" in caplog.text
    with pytest.raises(CheckpointError, match=r"holds another run \(seed was 0, now 1\)"):
        train(tree_dataset, run, RECIPE, workers=0, options=TrainOptions(seed=1))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_train_takes_raw_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    result = train(make_tree(tmp_path / "tree"), recipe=RECIPE, workers=0)
    assert result["dataset"]["rows"] == {"train": 18, "val": 18}
    assert len(list((tmp_path / "runs").glob("seed-cnn-*/model.safetensors"))) == 1


def test_what_cannot_be_trained_is_an_error_with_its_remedy(tree_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"data=.*nowhere: no such file, folder or data set"):
        train(tmp_path / "nowhere", tmp_path / "run", RECIPE)
    with pytest.raises(RecipeError, match="did you mean cifar10"):
        train(tree_dataset, tmp_path / "run", "cifr10")
    with pytest.raises(RecipeError, match="workers=-1 must be 0"):
        train(tree_dataset, tmp_path / "run", RECIPE, workers=-1)
    with pytest.raises(CheckpointError, match=r"teacher=.*no such file"):
        make_job(tree_dataset, "/run", RECIPE, 0, TrainOptions(teacher=str(tmp_path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["max_skipped_steps", "hang_minutes", "wait_minutes"])
def test_options_that_cannot_work_are_an_error(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name.replace('_', '-')}=-1 must be 0 or more"):
        TrainOptions(**{name: -1})


def test_a_run_without_a_name_is_called_by_recipe_data_and_time() -> None:
    assert new_run(RECIPE, "photos").startswith("runs/seed-cnn-photos-20")
    assert new_run(replace(RECIPE, name="../mine"), "photos").startswith("runs/..-mine-photos-20")
