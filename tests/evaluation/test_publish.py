"""A push to the Hugging Face Hub: its files, its card, and the calls of the real client to a stand-in of the hub."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.config.presets import make_recipe
from pipeline.core.errors import CheckpointError, MissingPackageError, RecipeError, StorageError, UnavailableError
from pipeline.core.shares import wilson_interval
from pipeline.dataset import manifest
from pipeline.evaluation import load_model
from pipeline.evaluation.publish.hub import check_login, check_repository, push, write_folder
from pipeline.evaluation.publish.model_files import model_files, plain_pytorch
from pipeline.models.factory import recipe_model
from pipeline.models.load import find_model
from pipeline.models.tensor_file import serialize_tensors
from pipeline.training.job import TrainJob
from pipeline.training.outputs.result import build_result, write_result
from tests.support.jobs import call_job, one_line_error
from tests.support.servers.model_hub import ModelHub, model_hub

TOKEN = "hf_" + "x" * 34


@pytest.fixture(scope="module")
def finished(trained: str, digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run `trained`, with the result that `train` writes at its end."""
    run = str(tmp_path_factory.mktemp("publish") / "run")
    shutil.copytree(trained, run)
    job = TrainJob(digits_dataset, run, make_recipe("digits", epochs=3), hold_out=0.1)
    write_result(run, build_result(job, manifest.load(digits_dataset)))
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A stand-in that the client of this process takes for the hub."""
    with model_hub(TOKEN) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # else large files go elsewhere
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.mark.ray
def test_a_run_that_was_pushed_predicts_as_it_did(finished: str, hub: ModelHub, tmp_path: Path) -> None:
    contents = model_files(finished, "me/digits", "apache-2.0")
    url = push(contents, "me/digits", private=True, message="digits")
    assert url == f"{hub.url}/me/digits/commit/{'0' * 40}"
    assert (hub.repos, hub.messages) == ({"me/digits": True}, ["digits"])
    assert hub.files == contents
    assert set(contents) == {"README.md", "config.json", "model.safetensors", "model.json", "metrics.json"}
    write_folder(hub.files, str(tmp_path / "pulled"))
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    before, after = (load_model(each).predict(list(images)) for each in (finished, str(tmp_path / "pulled")))
    assert np.array_equal(before.probabilities, after.probabilities)
    assert make_recipe(str(tmp_path / "pulled")) == find_model(finished).recipe


@pytest.mark.ray
def test_the_card_has_the_metadata_that_the_hub_reads_and_intervals(finished: str) -> None:
    from huggingface_hub import ModelCard

    contents = model_files(finished, "me/digits", "apache-2.0")
    data: Any = ModelCard(contents["README.md"].decode()).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "pytorch", "image-classification")
    val = json.loads(Path(finished, "result.json").read_text())["val"]
    assert next(result.metric_value for result in data.eval_results) == pytest.approx(val["top1"], abs=1e-6)
    low, high = wilson_interval(val["correct"], val["rows"])
    assert f"{100 * val['top1']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" in contents["README.md"].decode()
    config = json.loads(contents["config.json"])
    assert config["num_classes"] == len(config["id2label"]) == 10
    front = contents["README.md"].decode().split("---")[1]
    assert yaml.safe_load(front)["model-index"][0]["name"] == "digits"
    assert "license" not in model_files(finished, "me/digits")["README.md"].decode()


@pytest.mark.ray
def test_a_dry_run_writes_what_would_be_pushed(finished: str, tmp_path: Path) -> None:
    arguments = ["--checkpoint", finished, "--repo", "me/digits", "--dry-run", "--out", "out"]
    ended = call_job("push", *arguments, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == model_files(finished, "me/digits")
    assert all(name in ended.stdout for name in written)


@pytest.mark.ray
def test_a_push_that_the_hub_refuses_or_that_does_not_arrive_is_one_line(
    finished: str, hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"README.md": b"# x"}
    hub.token = "another"
    with pytest.raises(StorageError, match=r"refuses the push, 401 .*; give a token that may write there") as refused:
        push(contents, "me/digits")
    assert "\n" not in str(refused.value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"http://127.0.0.1:9 doesn't answer .*--dry-run"):
        push(contents, "me/digits")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    message = one_line_error(call_job("push", "--checkpoint", finished, "--repo", "me/digits", cwd=tmp_path))
    assert "no token of the Hugging Face Hub; run `hf auth login`, or set HF_TOKEN" in message


def test_without_the_package_a_push_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"push needs huggingface_hub; .*image-pipeline\[hub\]"):
        check_login()


@pytest.mark.parametrize(
    "name", ["photos", "a/b/c", "-a/b", "a/b--c", "a/..", "a/b.git", "a b/c", "a/" + "b" * 96, "/b"]
)
def test_a_name_that_the_hub_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"give OWNER/NAME"):
        check_repository(name)
    check_repository("me/photos-2.1_b")


def test_only_a_finished_run_is_pushed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished run"):
        model_files(str(tmp_path))
    with pytest.raises(CheckpointError, match="give the folder of the finished run"):
        model_files(f"{tmp_path}/checkpoints/000000007")


@pytest.mark.parametrize(
    ("model", "size_px", "blur_pool", "shown"),
    [
        ("resnet18", 128, False, True),
        ("resnet18", 64, False, False),  # another first layer
        ("resnet18", 128, True, False),
        ("densenet121", 96, False, True),
        ("timm:mobilenetv3_small_050", 64, False, True),
        ("airbench94", 32, False, False),
    ],
)
def test_the_lines_for_plain_pytorch_load_the_weights(
    model: str, size_px: int, blur_pool: bool, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(make_recipe("resnet18-smoke"), model=model, image_size_px=size_px, blur_pool=blur_pool)
    lines = plain_pytorch(recipe, 7)
    assert bool(lines) is shown
    if not shown:
        return
    net = recipe_model(recipe, 7).eval()
    (tmp_path / "model.safetensors").write_bytes(serialize_tensors(net.state_dict()))
    monkeypatch.chdir(tmp_path)
    found: dict[str, torch.nn.Module] = {}
    exec(lines, found)
    images = torch.rand(2, 3, size_px, size_px)
    with torch.no_grad():
        assert torch.equal(found["net"](images), net(images))
