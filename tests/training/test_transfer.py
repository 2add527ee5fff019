"""Pretrained networks on few images: the last layer fitted to features, and layers that are frozen at first."""

import contextlib
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.models.factory import make_model, recipe_model
from pipeline.models.load import find_model, load_net
from pipeline.models.tensor_file import read_tensors, serialize_tensors
from pipeline.training.job import TrainJob
from pipeline.training.loop import run_steps
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.optim.schedules import set_learning_rates
from pipeline.training.setup import Place, set_up
from pipeline.training.transfer.head import fit_head, fit_linear
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


# --- the last layer, fitted ---------------------------------------------------------------------------------------


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
    weight, bias = fit_linear(features, labels, 6)
    assert weight.dtype == np.float32
    assert weight.shape == (6, 5)
    logits = torch.from_numpy(features @ weight.T + bias)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(features, labels)
    expected = torch.zeros(len(labels), 6, dtype=torch.float64)
    expected[:, list(classes)] = torch.from_numpy(theirs.predict_proba(features)).double()
    torch.testing.assert_close(logits.softmax(dim=1).double(), expected, atol=1e-3, rtol=1e-3)
    assert np.array_equal(logits.argmax(dim=1).numpy(), labels)


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


# --- layers that are frozen at first --------------------------------------------------------------------------------


def frozen(**changes: Any) -> Recipe:
    return make_recipe(
        "resnet18", image_size_px=32, evaluate_resize_px=32, epochs=8, optimizer="adamw", learning_rate=0.1,
        weight_decay=0.1, warmup_epochs=0, schedule="constant", **changes,
    )  # fmt: skip


def test_layers_are_frozen_and_thaw_one_by_one_from_the_last() -> None:
    recipe = frozen(frozen_epochs=2.0, thaw_epochs=4.0)
    net: Any = recipe_model(recipe, 10)
    (optimizer,) = make_optimizers(net, recipe)
    of_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    begins: dict[str, int] = {}
    for step in range(8 * 3):  # three steps an epoch
        set_learning_rates([optimizer], recipe, step, 24, 3)
        for name, parameter in net.named_parameters():
            if of_parameter[id(parameter)]["lr"]:
                begins.setdefault(name, step)
    assert begins["fc.weight"] == begins["fc.bias"] == 0
    assert begins["layer4.1.conv1.weight"] == 6
    assert begins["conv1.weight"] == begins["bn1.bias"] == 18
    blocks = [begins[f"layer{stage}.{block}.conv1.weight"] for stage in (4, 3, 2, 1) for block in (1, 0)]
    assert blocks == sorted(blocks)
    assert blocks[-1] < 18


def test_frozen_weights_keep_their_bits_and_learn_afterwards() -> None:
    recipe = frozen(frozen_epochs=1.0)
    torch.manual_seed(0)
    net: Any = recipe_model(recipe, 10)
    (optimizer,) = make_optimizers(net, recipe)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for step in range(3):
        set_learning_rates([optimizer], recipe, step, 16, 2)
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        same = {name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])}
        assert same == ({name for name in before if not name.startswith("fc.")} if step < 2 else set())


def test_freezing_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"frozen_epochs=5\.0 and thaw_epochs=3\.0 leave no epoch .* fit_head=only"):
        frozen(frozen_epochs=5.0, thaw_epochs=3.0)
    with pytest.raises(RecipeError, match="don't go together with optimizer=muon; use adamw"):
        replace(frozen(), optimizer="muon", frozen_epochs=1.0)
    with pytest.raises(RecipeError, match="frozen_epochs=-1 must be 0 or more"):
        frozen(frozen_epochs=-1)
    with pytest.raises(RecipeError, match="has no blocks that are known here; set layer_decay=1, frozen_epochs=0"):
        make_optimizers(make_model("seed-cnn", 10, 32), frozen(frozen_epochs=1.0))
