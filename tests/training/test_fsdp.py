"""FSDP: weights in parts, spread over ranks, train as whole ones do, and a checkpoint fits any number of ranks."""

import contextlib
import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.core.errors import RecipeError
from pipeline.models import checkpoint
from pipeline.models.device.sharding import blocks
from pipeline.models.factory import make_model
from pipeline.models.load import find_model, load_net
from pipeline.models.run_state import AVERAGE, MODEL
from pipeline.training import launch
from pipeline.training.job import TrainJob
from pipeline.training.loop import evaluate, run_steps
from pipeline.training.safeguards.checkpoints import save_checkpoint
from pipeline.training.setup import Place, set_up
from pipeline.training.workflow import check_fsdp
from tests.support.trained.steps import Steps

CPU = torch.device("cpu")


def train(job: TrainJob, rank: int, world_size: int, last_step: int) -> None:
    """Trains to a step and evaluates, as one rank; writes a checkpoint and, on rank 0, what it has seen."""
    with contextlib.ExitStack() as exits:
        worker = set_up(job, exits, Place(rank, world_size, world_size, CPU))
        run_steps(worker, Steps(last_step))
        save_checkpoint(worker)
        evaluate(worker)
        parts = [getattr(p, "_local_tensor", p).numel() for p in worker.learner.net.parameters()]
        found = {"losses": worker.state.losses, "scores": worker.state.evaluations[-1], "numbers": sum(parts)}
        Path(job.run, f"found-{rank}.json").write_text(json.dumps(found))


def run_rank(job: TrainJob, rank: int, world_size: int, last_step: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    train(job, rank, world_size, last_step)
    torch.distributed.destroy_process_group()


def trained(job: TrainJob, world_size: int, last_step: int) -> list[dict[str, Any]]:
    """Returns what each rank has seen of a run of several processes."""
    run = Path(job.run)
    run.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    arguments = [(job, rank, world_size, last_step, str(run / f"store-{last_step}")) for rank in range(world_size)]
    processes = [context.Process(target=run_rank, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0] * world_size
    return [json.loads((run / f"found-{rank}.json").read_text()) for rank in range(world_size)]


def saved(job: TrainJob) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.latest(job.run) or "").tensors


# A network without BatchNorm: ranks see other images with another number of them, and nothing else differs.
RECIPE = make_recipe(
    "digits",
    model="timm:test_convnext",
    optimizer="adamw",
    learning_rate=1e-3,
    head_rate=0.0,
    bias_rate=0.0,
    precision="float32",
    global_batch_size=60,
    accumulate_steps=2,
    clip_norm=0.5,
    ema_decay=0.9,
)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_parts_train_as_wholes_do_and_are_saved_as_wholes(digits_dataset: str, tmp_path: Path, world_size: int) -> None:
    whole = TrainJob(digits_dataset, str(tmp_path / "whole"), RECIPE, seed=1)
    parts = replace(whole, run=str(tmp_path / "parts"), fsdp=True, num_workers=world_size)
    expected, found = trained(whole, 1, 6)[0], trained(parts, world_size, 6)
    assert found[0]["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found[0]["scores"] == pytest.approx(expected["scores"], rel=1e-2)
    counts = [each["numbers"] for each in found]
    apart = max(abs(ours / theirs - 1) for ours, theirs in zip(found[0]["losses"], expected["losses"], strict=True))
    kept = f"at most {max(counts):,} of {expected['numbers']:,} weights each"
    print(f"{world_size} ranks: {kept}; losses within {apart:.1e}")
    assert sum(counts) == expected["numbers"]  # each number on one rank
    assert max(counts) < 1.2 * expected["numbers"] / world_size
    ours, theirs = saved(parts), saved(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape
        if name.startswith((MODEL, AVERAGE)):
            torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=1e-4)


@pytest.mark.long
def test_a_checkpoint_fits_any_number_of_ranks_with_and_without_fsdp(digits_dataset: str, tmp_path: Path) -> None:
    begun = TrainJob(digits_dataset, str(tmp_path / "begun"), RECIPE, seed=1, fsdp=True, num_workers=2)
    trained(begun, 2, 3)
    goes_on = {"parts on 2": (2, True), "parts on 3": (3, True), "whole": (1, False)}
    found: dict[str, list[float]] = {}
    for name, (world_size, fsdp) in goes_on.items():
        job = replace(begun, run=str(tmp_path / name), fsdp=fsdp)
        shutil.copytree(begun.run, job.run)
        found[name] = trained(job, world_size, 6)[0]["losses"]
    for losses in found.values():
        assert len(losses) == 6
        assert losses == pytest.approx(found["parts on 2"], rel=1e-4)


def test_blocks_are_what_a_network_repeats() -> None:
    assert len(list(blocks(make_model("resnet18", 10, 32)))) == 8
    assert [type(block).__name__ for block in blocks(make_model("timm:test_vit", 10, 160))] == ["Block"] * 6
    assert not list(blocks(make_model("vgg11_bn", 10, 32)))  # no block in its list of layers: spread as one


@pytest.mark.parametrize(
    ("workers", "compile_it", "changes", "said"),
    [
        (0, False, {}, "give --workers 2 or more"),
        (1, False, {}, "give --workers 2 or more"),
        (2, True, {}, "leave one of them out"),
        (2, False, {"optimizer": "muon"}, "optimizer=muon"),
        (2, False, {"optimizer": "lamb"}, "optimizer=lamb"),
        (2, False, {"sam_radius": 0.1}, "sam_radius=0.1"),
        (2, False, {"adaptive_clip": 0.1}, "adaptive_clip=0.1"),
    ],
)
def test_what_needs_whole_tensors_is_refused(
    workers: int, compile_it: bool, changes: dict[str, Any], said: str
) -> None:
    recipe = make_recipe("imagenette-5", **changes)
    with pytest.raises(RecipeError, match="fsdp") as refused:
        check_fsdp(recipe, workers, compile_it)
    assert said in str(refused.value)
    check_fsdp(make_recipe("imagenette-5"), 2, False)


@pytest.mark.ray
@pytest.mark.long
def test_a_run_on_ray_is_that_of_whole_weights(digits_dataset: str, ray_cluster: None, tmp_path: Path) -> None:
    """With BatchNorm, whose statistics each of two ranks has of its own images, with and without FSDP."""
    recipe = make_recipe("digits", model="resnet18", optimizer="nesterov", learning_rate=0.05, head_rate=0.0,
                         bias_rate=0.0, epochs=2, precision="float32")  # fmt: skip
    job = TrainJob(digits_dataset, str(tmp_path / "whole"), recipe, seed=2, num_workers=2, cpus_per_worker=0.5)
    results = []
    for each in (job, replace(job, run=str(tmp_path / "parts"), fsdp=True)):
        launch.claim_run(each, launch.check_job(each))
        launch.run_training(each)
        results.append(json.loads(Path(each.run, checkpoint.OUTPUT_NAME).read_text()))
    whole, parts = (each["state"]["losses"] for each in results)
    assert parts[:8] == pytest.approx(whole[:8], rel=1e-3)
    assert results[1]["operations"]["per_image"] == results[0]["operations"]["per_image"]
    assert (load_net(find_model(str(tmp_path / "parts")))(torch.zeros(1, 3, 32, 32))).shape == (1, 10)
