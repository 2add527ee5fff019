"""Training on the images that a proxy finds hard: what is kept, and that it is part of the order."""

import contextlib
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.config.sampling import ProxyFilter
from pipeline.core.errors import CheckpointError, DivergedError
from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.loader.resident import ResidentSplit, load_resident
from pipeline.loader.sampling.selection import Selection
from pipeline.models import checkpoint
from pipeline.models.factory import make_model
from pipeline.training import worker_data
from pipeline.training.job import TrainJob
from pipeline.training.loop import run_steps
from pipeline.training.on_device.waits import count_waits
from pipeline.training.optim.schedules import learning_rate_factor
from pipeline.training.selection.choose import SELECTION_NAME, select_rows
from pipeline.training.selection.proxy import Proxy, make_proxy
from pipeline.training.setup import Place, set_up
from pipeline.training.worker import Worker
from pipeline.training.worker_data import Batches
from tests.support.trained.steps import Steps

FILTER = ProxyFilter("seed-cnn", keep=0.4, update_every_steps=3)
CPU = torch.device("cpu")


def recipe_of(**changes: Any) -> Recipe:
    """Two epochs of six steps on 288 digits, with what an image's place or epoch changes."""
    fields: dict[str, Any] = {
        "epochs": 2, "global_batch_size": 50, "precision": "float32", "optimizer": "nesterov", "learning_rate": 0.05,
        "augment": Augment(crop_padding_px=2, flip_probability=0.5), "proxy_filter": FILTER, "image_size_px": 32,
        "schedule": "one-cycle", "label_smoothing": 0.2, "weight_decay": 1e-3,
    }  # fmt: skip
    return make_recipe("seed-cnn", **{**fields, **changes})


def job_of(dataset: str, run: Path, **changes: Any) -> TrainJob:
    return TrainJob(dataset, str(run), recipe_of(**changes), seed=5, hold_out=0.8)


def batches_of(job: TrainJob, world_size: int = 1, rank: int = 0) -> Batches:
    return Batches(job, manifest.load(job.dataset), world_size, rank, CPU, silent)


def selection_of(job: TrainJob, world_size: int = 1, rank: int = 0) -> Selection:
    batches, _ = select_rows(job, batches_of(job, world_size, rank), silent, lambda _: None)
    assert batches.order.selection
    return batches.order.selection


def train(job: TrainJob, schedule: Steps) -> tuple[dict[str, torch.Tensor], Worker]:
    """Trains in this process; returns all tensors of its state, and the worker."""
    with contextlib.ExitStack() as exits:
        worker = set_up(job, exits, Place.alone(CPU))
        run_steps(worker, schedule)
        worker.writer.wait()
        tensors = worker.learner.tensors(worker.state)
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}, worker


@pytest.fixture(scope="module")
def chosen(digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, Selection]:
    """A run whose rows are chosen, and the rows."""
    job = job_of(digits_dataset, tmp_path_factory.mktemp("chosen"))
    return job, selection_of(job)


def test_the_share_of_every_batch_is_kept_and_no_row_twice(chosen: tuple[TrainJob, Selection]) -> None:
    job, selection = chosen
    batches = batches_of(job)
    order, all_rows = replace(batches.order, selection=selection), batches.order
    assert order.steps_per_epoch == all_rows.steps_per_epoch
    assert order.trained_rows == sum(len(order.rows(step)) for step in range(order.steps_per_epoch))
    for step in range(2 * order.steps_per_epoch):
        candidates, kept = all_rows.rows(step), order.rows(step)
        assert len(kept) == order.batch_size(step) == round(0.4 * len(candidates))
        assert [row for row in candidates if row in set(kept)] == kept.tolist()  # in their order, each once
        for world_size in (2, 3):
            parts = [order.rows(step, world_size, rank) for rank in range(world_size)]
            assert np.array_equal(np.concatenate(parts), kept)
        assert order.epochs(step) == all_rows.epochs(step)


def test_the_rows_depend_on_seed_and_data_alone(chosen: tuple[TrainJob, Selection], tmp_path: Path) -> None:
    job, selection = chosen
    torch.rand(3)  # whatever the process has drawn
    assert selection_of(replace(job, run=str(tmp_path / "again"))).digest == selection.digest
    other = selection_of(replace(job, run=str(tmp_path / "other"), seed=6))
    assert other.digest != selection.digest
    assert not np.array_equal(selection.kept[0], selection.kept[1])


def test_a_proxys_dropout_depends_on_the_seed_alone(digits_dataset: str, tmp_path: Path) -> None:
    drops = ProxyFilter("alexnet", keep=0.4, update_every_steps=3)
    job = job_of(digits_dataset, tmp_path / "once", learning_rate=0.01, epochs=1, proxy_filter=drops)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = selection_of(job)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)  # whatever the process has drawn
    assert selection_of(replace(job, run=str(tmp_path / "again"))).digest == first.digest
    batches = batches_of(job)
    batch = next(batches.candidates(1))
    proxy = make_proxy(job.recipe, drops, batches, 5)
    losses = [proxy.keep(batch, step)[1].item() for step in (1, 1, 2)]  # without updates
    assert losses[0] == losses[1] != losses[2]


def test_the_proxy_is_the_published_one_in_plain_torch(digits_dataset: str, tmp_path: Path) -> None:
    """airbench96_faster (KellerJordan/cifar10-airbench): the loss of the hardest, summed; SGD with Nesterov momentum,
    every few steps, at the schedule's rate of all steps."""
    batches = batches_of(job_of(digits_dataset, tmp_path))
    recipe, steps = recipe_of(bias_weight_decay=1e-3), 12
    torch.manual_seed(0)
    net = make_model("seed-cnn", 10, 32)
    theirs = make_model("seed-cnn", 10, 32)
    theirs.load_state_dict(net.state_dict())
    proxy = Proxy(recipe, FILTER, net, batches.order, steps)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for step, batch in enumerate(batches.candidates(steps)):
        kept, total = proxy.keep(batch, step)
        logits = theirs(proxy.normalise(batch.images))
        losses = F.cross_entropy(logits, batch.labels, label_smoothing=0.2, reduction="none")
        mask = torch.zeros(len(losses), dtype=torch.bool)
        mask[losses.argsort()[-round(0.4 * len(losses)) :]] = True
        assert torch.equal(mask.nonzero()[:, 0], kept.sort().values)
        assert total.item() == pytest.approx(losses.sum().item(), rel=1e-5)
        if step % 3 == 0:
            sgd.param_groups[0]["lr"] = 0.05 * learning_rate_factor("one-cycle", step, steps, 0)
            sgd.zero_grad()
            ((losses * mask).sum() / mask.sum()).backward()
            sgd.step()
    for one, other in zip(net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_choosing_waits_for_nothing(digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.optim.factory._fused", lambda groups: {"fused": True})
    batches = batches_of(job_of(digits_dataset, tmp_path))
    proxy, stream = make_proxy(recipe_of(), FILTER, batches, 5), batches.candidates(6)
    proxy.keep(next(stream), 0)
    with count_waits(CPU) as waits:
        for step, batch in enumerate(stream, 1):
            proxy.keep(batch, step)
    assert not waits.total, waits.table(steps=5)


def test_a_run_that_is_resumed_trains_on_the_same_rows(digits_dataset: str, tmp_path: Path) -> None:
    whole, worker = train(job_of(digits_dataset, tmp_path / "whole"), Steps(10, checkpoint_every=5))
    assert worker.state.seconds["select"] > 0
    job = job_of(digits_dataset, tmp_path / "parts")
    train(job, Steps(5, checkpoint_every=5))
    written = (tmp_path / "parts" / SELECTION_NAME).read_bytes()
    assert checkpoint.load(checkpoint.folder(job.run, 5)).state["selection"] == worker.state.selection
    (tmp_path / "parts" / SELECTION_NAME).unlink()  # a CPU chooses the same again
    parts, again = train(job, Steps(10))
    assert (tmp_path / "parts" / SELECTION_NAME).read_bytes() == written
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert again.state.losses == worker.state.losses


def test_another_selection_is_refused(digits_dataset: str, tmp_path: Path) -> None:
    job, place = job_of(digits_dataset, tmp_path / "run"), tmp_path / "run" / SELECTION_NAME
    train(job, Steps(3, checkpoint_every=3))
    other = replace(job, run=str(tmp_path / "other"), seed=6)
    selection_of(other)
    place.write_bytes((tmp_path / "other" / SELECTION_NAME).read_bytes())
    with pytest.raises(CheckpointError, match=r"selection\.safetensors: .* another selection of rows; put .* back"):
        train(job, Steps(6))
    selection_of(replace(other, run=str(tmp_path / "longer"), recipe=recipe_of(epochs=3)))
    place.write_bytes((tmp_path / "longer" / SELECTION_NAME).read_bytes())
    with pytest.raises(CheckpointError, match="holds no selection for 2 epochs of 288 rows; remove the run"):
        train(job, Steps(6))


def test_a_run_that_starts_again_lists_the_images_left_out(
    digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: Any) -> ResidentSplit:
        whole = load_resident(*arguments)
        whole.corrupt[5] = True
        return whole

    monkeypatch.setattr(worker_data, "load_resident", damaged)
    job = replace(job_of(digits_dataset, tmp_path, epochs=1), on_corrupt="quarantine")
    for _ in ("chooses", "reads what was chosen"):
        batches, _ = select_rows(job, batches_of(job), silent, lambda _: None)
        assert 5 not in np.concatenate([batch.rows for batch in batches.training(0, 6)])
        assert batches.quarantined([]) == [("train", 5)]


def test_a_proxy_that_diverges_ends_the_run(digits_dataset: str, tmp_path: Path) -> None:
    job = job_of(digits_dataset, tmp_path, learning_rate=1e30)
    with pytest.raises(DivergedError, match="isn't finite in epoch 0; lower learning_rate"):
        selection_of(job)
    assert not (tmp_path / SELECTION_NAME).exists()


def run_rank(rank: int, dataset: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    job = job_of(dataset, Path(folder) / "run")
    Path(folder, str(rank)).write_text(selection_of(job, 2, rank).digest)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_on_the_rows_of_one(
    digits_dataset: str, chosen: tuple[TrainJob, Selection], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, digits_dataset, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert {(tmp_path / name).read_text() for name in "01"} == {chosen[1].digest}
