"""Checkpoints: what is written comes back, whole or not at all, from any number of ranks, and never runs code."""

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config.presets import make_recipe
from pipeline.core.errors import CheckpointError, StorageError
from pipeline.models import checkpoint
from pipeline.models.checkpoint_writer import CheckpointWriter, record_score
from pipeline.models.identity import check_identity
from pipeline.models.run_state import RunState, collect, is_rank_local, restore
from pipeline.models.tensor_file import read_tensors
from pipeline.models.weight_averages import WeightAverage
from pipeline.storage import files
from pipeline.training.optim.factory import make_optimizers


def save(run: str, step: int, score: float | None = None, **tensors: torch.Tensor) -> str:
    writer = CheckpointWriter(run)
    writer.save(step, tensors or {"w": torch.full((3,), float(step))}, {"step": step}, score)
    writer.wait()
    return checkpoint.folder(run, step)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    return layers.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "nesterov", "lars", "lamb", "rmsprop"])
def test_a_run_goes_on_from_its_tensors_to_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    recipe = make_recipe("cifar10", optimizer=optimizer, learning_rate=0.01, head_rate=0.01, bias_rate=0.01)

    def go_on(model: nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage, first: int) -> None:
        for step in range(first, first + 3):
            torch.manual_seed(step)
            model(torch.randn(6, 3, 8, 8)).square().mean().backward()
            for each in optimizers:
                each.step()
                each.zero_grad()
            average.update(step + 1, 6)

    model, state = net(), RunState(epochs=2, step=3, losses=[0.1, 1 / 3, 7.0], quarantined=[("val", 3)])
    optimizers, average = make_optimizers(model, recipe), WeightAverage(model, 0.5)
    go_on(model, optimizers, average, 0)
    writer = CheckpointWriter(str(tmp_path))
    writer.save(3, collect(model, optimizers, average, state), state.as_json(), None, is_rank_local)
    go_on(model, optimizers, average, 3)  # while it is being written
    writer.wait()
    again = net()
    others, other_average = make_optimizers(again, recipe), WeightAverage(again, 0.5)
    assert restore(checkpoint.load(checkpoint.latest(str(tmp_path))), again, others, other_average) == state
    go_on(again, others, other_average, 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert all(torch.equal(average.values[name], other_average.values[name]) for name in average.values)


def test_the_latest_and_the_best_are_named_and_old_ones_go(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert checkpoint.latest(run) is None
    for step, score in ((9, 0.5), (20, 0.9), (100, 0.7), (120, None), (130, 0.8)):
        save(run, step, score)
    assert checkpoint.latest(run) == checkpoint.folder(run, 130)
    assert checkpoint.best(run) == checkpoint.folder(run, 20)
    assert checkpoint.steps(run) == [20, 120, 130]
    assert checkpoint.load(checkpoint.best(run)).tensors["w"].tolist() == [20.0] * 3
    save(run, 110)  # a node that was cut off comes back late
    assert checkpoint.latest(run) == checkpoint.folder(run, 130)


def test_parts_of_many_ranks_make_one_checkpoint_and_none_before_all_are_there(tmp_path: Path) -> None:
    run = str(tmp_path)
    tensors = {f"layer{n}.w": torch.randn(n + 1, 100) for n in range(10)}
    tensors |= {"norm.running_mean": torch.zeros(4), "losses": torch.ones(2, dtype=torch.float64)}
    writers = [CheckpointWriter(run, rank, 3, "token") for rank in range(3)]
    for rank in (0, 2):
        mine = tensors | {"norm.running_mean": torch.full((4,), float(rank))}
        writers[rank].save(5, mine, {"step": 5}, None, is_rank_local)
    writers[2].wait()
    assert checkpoint.latest(run) is None
    writers[1].save(5, tensors, {"step": 5}, None, is_rank_local)
    writers[0].wait()
    loaded = checkpoint.load(checkpoint.latest(run)).tensors
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    sizes = [path.stat().st_size for path in (tmp_path / "checkpoints" / "000000005").glob("part*")]
    assert len(sizes) == 3
    assert max(sizes) < 1.5 * min(sizes)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    place = Path(save(str(tmp_path), 1, w=torch.randn(1000)))
    (part,) = place.glob("part*")
    data = part.read_bytes()
    part.write_bytes(data[:500])
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        checkpoint.load(str(place))
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"its bytes have changed \(CRC-32\)"):
        checkpoint.load(str(place))
    part.unlink()
    with pytest.raises(CheckpointError, match="isn't complete"):
        checkpoint.load(str(place))


class Hostile:
    """Writes a file when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("hacked"),)


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path(save(str(tmp_path), 1))
    (part,) = place.glob("part*")
    torch.save({"bait": Hostile()}, part)
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        checkpoint.load(str(place))
    assert not (tmp_path / "hacked").exists()


def test_storage_that_fails_for_a_while_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    writer = CheckpointWriter(str(tmp_path), warn=said.append)
    whole = files.write_bytes

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in range(1, 6):
        monkeypatch.setattr(files, "write_bytes", full if step in (2, 3) else whole)
        writer.save(step, {"w": torch.zeros(1)}, {})
        writer._thread.join()
    writer.wait()
    assert len(said) == 2
    assert "No space left on device" in said[0]
    assert "training goes on" in said[0]
    assert checkpoint.latest(str(tmp_path)) == checkpoint.folder(str(tmp_path), 5)
    monkeypatch.setattr(files, "write_bytes", full)
    for step in range(6, 9):
        writer.save(step, {"w": torch.zeros(1)}, {})
    with pytest.raises(StorageError, match=r"3 checkpoints in a row couldn't be written .*No space left"):
        writer.wait()
    assert not list(tmp_path.rglob("*.tmp"))


def test_steps_do_not_wait_for_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, whole = threading.Event(), files.write_bytes
    monkeypatch.setattr(files, "write_bytes", lambda *args: may_write.wait(10) and whole(*args))
    weight, writer = torch.ones(5), CheckpointWriter(str(tmp_path))
    writer.save(1, {"w": weight}, {})
    weight.zero_()  # the next step, while nothing is written yet
    assert checkpoint.latest(str(tmp_path)) is None
    may_write.set()
    writer.wait()
    assert checkpoint.load(checkpoint.latest(str(tmp_path))).tensors["w"].tolist() == [1.0] * 5


def test_another_runs_checkpoint_is_refused_with_the_difference() -> None:
    theirs = {"seed": 1, "dataset_digest": "abc", "recipe": {"epochs": 5, "augment": {"auto": "none"}}}
    mine = {"seed": 1, "dataset_digest": "abd", "recipe": {"epochs": 6, "augment": {"auto": "rand"}}}
    with pytest.raises(CheckpointError) as caught:
        check_identity("s3://b/run", theirs, mine)
    for words in (
        "dataset_digest was abc, now abd",
        "recipe.augment.auto was none, now rand",
        "recipe.epochs was 5, no",
    ):
        assert words in str(caught.value)
    check_identity("s3://b/run", theirs, json.loads(json.dumps(theirs)))


def test_an_evaluation_that_comes_after_its_checkpoint_counts_for_the_best(tmp_path: Path) -> None:
    run = str(tmp_path)
    writer = CheckpointWriter(run)
    for step, score in ((1, 0.7), (2, None), (3, None)):
        writer.save(step, {"w": torch.full((3,), float(step))}, {}, score)
    writer.wait()
    record_score(run, 3, 0.6)
    assert checkpoint.best(run) == checkpoint.folder(run, 1)
    record_score(run, 9, 0.9)  # no such checkpoint
    assert checkpoint.best(run) == checkpoint.folder(run, 1)
    record_score(run, 3, 0.8)
    assert checkpoint.best(run) == checkpoint.folder(run, 3)
    assert checkpoint.steps(run) == [2, 3]


def test_salvaged_weights_can_be_begun_with(tmp_path: Path) -> None:
    writer, weights = CheckpointWriter(str(tmp_path)), {"w": torch.arange(5.0)}
    writer.salvage(7, weights)
    weights["w"].zero_()  # training goes on
    writer.wait()
    assert read_tensors(str(tmp_path / checkpoint.SALVAGE_NAME))["w"].tolist() == [0, 1, 2, 3, 4]
