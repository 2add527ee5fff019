"""Pretrained networks on few images: the last layer, fitted to features that are computed once."""

import contextlib
import multiprocessing
import time
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.loader.normalise import Normalise
from pipeline.models.factory import make_model
from pipeline.models.layers import last_layer
from pipeline.models.load import find_model, load_net
from pipeline.models.tensor_file import read_tensors, serialize_tensors
from pipeline.training.job import TrainJob, weights_of
from pipeline.training.loop import run_steps
from pipeline.training.setup import Place, set_up
from pipeline.training.transfer.head import _features, fit_head, fit_linear
from pipeline.training.worker_data import Batches
from pipeline.training.workflow import TrainOptions, make_job, train_job
from tests.support.trained.steps import Steps

CPU = torch.device("cpu")


def recipe_of(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {"epochs": 2, "global_batch_size": 50, "optimizer": "adamw", "residency": "resident"}
    return make_recipe("seed-cnn", **{**fields, **changes})


@pytest.fixture(scope="module")
def weights(digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights that have learnt half of the digits a little, without their last layer."""
    folder = tmp_path_factory.mktemp("weights")
    job = TrainJob(digits_dataset, str(folder / "run"), recipe_of(learning_rate=2e-3), seed=1, hold_out=0.5)
    with contextlib.ExitStack() as exits:
        worker = set_up(job, exits, Place.alone(CPU))
        run_steps(worker, Steps(20))
        worker.writer.wait()
        tensors = worker.learner.net.state_dict()
        for name in list(tensors)[-2:]:
            tensors[name].zero_()  # the last layer knows nothing
        (folder / "w.safetensors").write_bytes(serialize_tensors(tensors))
    return str(folder / "w.safetensors")


def job_of(dataset: str, run: Path, weights: str, **changes: Any) -> TrainJob:
    options = TrainOptions(seed=5, hold_out=0.5, pretrained=weights)
    return make_job(dataset, str(run), recipe_of(**changes), 0, options)


def clouds(classes: tuple[int, ...], rows: int = 60) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.array(classes), rows)
    centres = 10 * np.eye(6)[:, :5] + 100  # far from 0, as features may be
    return (centres[labels] + generator.normal(size=(len(labels), 5))).astype(np.float32), labels


@pytest.mark.parametrize("classes", [(0, 1, 2, 3), (1, 4), (0, 3, 5)])
def test_the_line_through_features_is_scikit_learns_whichever_classes_have_images(classes: tuple[int, ...]) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = clouds(classes)
    weight, bias = fit_linear(features.copy(), labels, 6)
    assert weight.dtype == np.float32
    assert weight.shape == (6, 5)
    logits = torch.from_numpy(features @ weight.T + bias)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(features, labels)
    expected = torch.zeros(len(labels), 6, dtype=torch.float64)
    expected[:, list(classes)] = torch.from_numpy(theirs.predict_proba(features)).double()
    torch.testing.assert_close(logits.softmax(dim=1).double(), expected, atol=1e-3, rtol=1e-3)
    assert np.array_equal(logits.argmax(dim=1).numpy(), labels)


def test_a_class_without_images_is_unlikely_but_costs_no_huge_loss() -> None:
    features, labels = clouds((1, 4))
    weight, bias = fit_linear(features.copy(), labels, 6)
    logits = features @ weight.T + bias
    below = logits.max(axis=1) - logits[:, [0, 2, 3, 5]].max(axis=1)
    assert below.min() == pytest.approx(10, abs=0.01)
    assert below.max() < 30


def test_without_biases_the_line_goes_through_zero() -> None:
    features, labels = clouds((0, 1, 2))
    features -= 100
    weight, bias = fit_linear(features.copy(), labels, 3, with_bias=False)
    assert not bias.any()
    assert (np.argmax(features @ weight.T, axis=1) == labels).mean() > 0.99


def test_a_fit_that_does_not_converge_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.transfer.head._MOST_ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight, _ = fit_linear(*clouds((0, 1, 2)), 3)
    assert weight.any()


def test_the_fit_keeps_no_copy_of_the_features() -> None:
    features = np.random.default_rng(0).random((4000, 500), dtype=np.float32)
    fit_linear(*clouds((0, 1)), 2)  # imports
    tracemalloc.start()
    fit_linear(features, np.arange(4000) % 2, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes / 2


def test_one_class_alone_teaches_nothing() -> None:
    weight, bias = fit_linear(*clouds((2,)), 6)
    assert not weight.any()
    assert not bias.any()


def test_a_run_may_fit_its_last_layer_alone(digits_dataset: str, weights: str, tmp_path: Path) -> None:
    job = job_of(digits_dataset, tmp_path / "run", weights, fit_head="only", fit_seconds=9.0, early_stop_epochs=2)
    result = train_job(job)
    assert (result["steps"], result["epochs"]) == (0, 0)
    assert result["val"]["top1"] > 0.7
    assert result["images_per_second"] > 0
    assert result["seconds"]["features"] > 0
    start = make_model("seed-cnn", 10, 32)
    forward = result["operations"]["per_image"]
    assert result["operations"]["total"] == forward * result["operations"]["images_per_epoch"]
    net = load_net(find_model(job.run))
    torch.manual_seed(0)
    with contextlib.ExitStack() as exits:
        untrained = set_up(replace(job, run=str(tmp_path / "plain"), recipe=recipe_of()), exits, Place.alone(CPU))
        start = untrained.learner.net
    changed = [
        name
        for (name, one), other in zip(net.state_dict().items(), start.state_dict().values(), strict=True)
        if not torch.equal(one, other)
    ]
    names = list(net.state_dict())
    assert changed == names[-2:]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "computing features and fitting the last layer to them" in page
    assert "Training curves" not in page


def fitted_head(dataset: str, folder: Path, weights: str, world_size: int = 1, rank: int = 0) -> torch.Tensor:
    """Returns the weights of the last layer after the fit."""
    job = job_of(dataset, folder, weights, fit_head="first")
    net: Any = make_model("seed-cnn", 10, 32)
    net.load_state_dict(read_tensors(weights))
    batches = Batches(job, manifest.load(dataset), world_size, rank, CPU, silent)
    fit_head(net, job.recipe, batches, silent, lambda _: None)
    return list(net.parameters())[-2].detach()


def test_each_image_is_computed_once_and_the_fit_beats(
    digits_dataset: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several versions of an image in a batch, as training has them, would take memory and time several times."""
    job = job_of(digits_dataset, tmp_path / "run", weights, fit_head="first", repeats=2)
    net: Any = make_model("seed-cnn", 10, 32)
    batches = Batches(job, manifest.load(digits_dataset), 1, 0, CPU, silent)
    seen, beats = list[int](), list[str]()

    def slow_fit(features: Any, labels: Any, num_classes: int, with_bias: bool) -> tuple[Any, Any]:
        seen.append(len(features))
        while beats.count("the fit of the last layer") < 2:
            time.sleep(0.001)
        return np.zeros((num_classes, features.shape[1]), np.float32), np.zeros(num_classes, np.float32)

    monkeypatch.setattr("pipeline.training.transfer.head.fit_linear", slow_fit)
    monkeypatch.setattr("pipeline.training.transfer.head._BEAT_SECONDS", 0.01)
    fit_head(net, job.recipe, batches, silent, beats.append)
    assert seen == [batches.order.num_rows]
    assert beats[0] == "features of batch 1"
    assert batches.order.repeats == 2


def test_features_that_are_not_finite_are_named_in_a_line(digits_dataset: str, weights: str, tmp_path: Path) -> None:
    read = read_tensors(weights)
    tensors = {n: torch.full_like(t, torch.nan) if t.is_floating_point() else t for n, t in read.items()}
    (tmp_path / "w.safetensors").write_bytes(serialize_tensors(tensors))
    message = r"features of (\d+) of \1 images aren't finite, row \d+'s first; use other weights, or set fit_head=none$"
    with pytest.raises(CheckpointError, match=message):
        fitted_head(digits_dataset, tmp_path / "run", str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("model", ["fast-resnet", "airbench-small"])
def test_logits_that_a_network_scales_are_those_of_the_fit(model: str, digits_dataset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = make_model(model, 10, 32)
    (tmp_path / "w.safetensors").write_bytes(serialize_tensors(net.state_dict()))
    recipe = make_recipe("seed-cnn", model=model, epochs=1, global_batch_size=50, residency="resident", fit_head="only")
    options = TrainOptions(seed=5, hold_out=0.8, pretrained=str(tmp_path / "w.safetensors"))
    job = make_job(digits_dataset, str(tmp_path / "run"), recipe, 0, options)
    batches = Batches(job, manifest.load(digits_dataset), 1, 0, CPU, silent)
    fit_head(net, recipe, batches, silent, lambda _: None)
    seen: list[Any] = []
    hook = last_layer(net).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    batch = next(iter(batches.training(0, 1)))
    normalise = Normalise(recipe.pixel_mean, recipe.pixel_std)
    with torch.no_grad():
        logits = net(normalise(batch.images))
        hook.remove()
        parts = [(f, y, r) for f, y, r in _features(net, recipe, batches, batches.order.steps_per_epoch)]
    features, labels = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    weight, _ = fit_linear(features, labels, 10, with_bias=False)
    torch.testing.assert_close(logits, seen[0] @ torch.from_numpy(weight).T, rtol=1e-2, atol=1e-2)


def fit_rank(rank: int, dataset: str, folder: str, weights: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(fitted_head(dataset, Path(folder) / "run", weights, 2, rank), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_fit_the_last_layer_of_one(digits_dataset: str, weights: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    given = digits_dataset, str(tmp_path), weights
    processes = [context.Process(target=fit_rank, args=(rank, *given)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one, other)
    # Batches of other sizes round otherwise.
    torch.testing.assert_close(one, fitted_head(digits_dataset, tmp_path / "alone", weights), rtol=1e-3, atol=1e-4)


def test_training_after_the_fit_begins_with_what_was_fitted(digits_dataset: str, weights: str, tmp_path: Path) -> None:
    losses = {}
    for fit in ("none", "first"):
        job = job_of(digits_dataset, tmp_path / fit, weights, fit_head=fit)
        with contextlib.ExitStack() as exits:
            worker = set_up(job, exits, Place.alone(CPU))
            run_steps(worker, Steps(6))
            worker.writer.wait()
            losses[fit] = worker.state.losses
            assert worker.state.epochs == 2
    assert losses["first"][0] < 0.8 * losses["none"][0]


def test_without_pretrained_weights_there_is_nothing_to_fit_to(digits_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="fit_head=only needs pretrained weights; add --pretrained timm, or set fit_head"
    ):
        make_job(digits_dataset, str(tmp_path), recipe_of(fit_head="only"), 0, TrainOptions())
    with pytest.raises(RecipeError, match="fit_head=first needs pretrained weights"):  # as a search's trials
        TrainJob(digits_dataset, str(tmp_path), recipe_of(fit_head="first"))


def test_weights_that_the_caller_has_are_what_the_layer_is_fitted_to(
    digits_dataset: str, weights: str, tmp_path: Path
) -> None:
    """As a retraining run that begins with its champion."""
    own = weights_of("champion", weights)
    job = make_job(digits_dataset, str(tmp_path), recipe_of(fit_head="first"), 0, TrainOptions(), own)
    assert job.pretrained == own
