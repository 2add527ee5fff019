"""The parts of the training loop, each by itself: guards, averages, micro-batches, views, operations."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.core.errors import CheckpointError, ClusterError, DatasetError, DivergedError
from pipeline.evaluation.inference import view_logits
from pipeline.loader.batch import Batch
from pipeline.loader.crops import flips
from pipeline.loader.sample_order import Order
from pipeline.models import checkpoint
from pipeline.models.batch_transforms import cut_out
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.models.factory import make_model
from pipeline.models.flops import operations_per_image, training_operations
from pipeline.models.layers import add_blur_pool
from pipeline.models.pretrained import load_pretrained
from pipeline.models.small_networks import Airbench
from pipeline.models.tensor_file import serialize_tensors
from pipeline.models.weight_averages import LookAhead, WeightAverage
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.safeguards.divergence import FiniteGuard
from pipeline.training.safeguards.preemption import PreemptionWatcher
from pipeline.training.safeguards.restart_policy import RestartPolicy
from pipeline.training.train_step import TrainStep

CPU = torch.device("cpu")
KEYS = np.arange(24, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


# --- guards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_updates_nothing(loss: float, norm: float) -> None:
    skipped: list[int] = []
    bad = (torch.tensor(loss), torch.tensor(norm))
    with pytest.raises(DivergedError, match="step 7: the loss is"):
        FiniteGuard(0, 1, CPU).may_update(*bad, 7, skipped)
    guard = FiniteGuard(2, 1, CPU)
    assert guard.may_update(torch.tensor(1.0), torch.tensor(2.0), 1, skipped)
    assert not guard.may_update(*bad, 8, skipped)
    assert not guard.may_update(*bad, 9, skipped)
    with pytest.raises(DivergedError):
        guard.may_update(*bad, 10, skipped)
    assert skipped == [8, 9]


def test_a_process_in_which_nothing_moves_ends_itself_and_says_where_it_was() -> None:
    code = (
        "import time; from pipeline.training.safeguards.watchdog import Watchdog; w = Watchdog(0.5, print)\n"
        "for n in range(4): time.sleep(0.3); w.beat(f'step {n}')\n"
        "time.sleep(30)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-u", "-c", code], cwd=root, capture_output=True, text=True, timeout=20)
    assert done.returncode == 75
    assert "after step 3; this worker ends" in done.stdout
    assert 'File "<string>", line 3' in done.stderr


def test_failures_are_counted_between_checkpoints_and_users_errors_end_the_run(tmp_path: Path) -> None:
    policy, crash = RestartPolicy(str(tmp_path)), {0: RuntimeError("connection closed by peer")}
    for step in range(10):  # progress between
        writer = CheckpointWriter(str(tmp_path))
        writer.save(step, {"w": torch.zeros(1)}, {})
        writer.wait()
        policy.check(crash)
    for _ in range(2):
        policy.check(crash)
    with pytest.raises(ClusterError, match=r"failed 4 times between .*000000009 and .*closed by peer"):
        policy.check(crash)
    with pytest.raises(DatasetError, match="mine"):
        policy.check({0: RuntimeError("collateral"), 1: DatasetError("mine")})


# --- averages ----------------------------------------------------------------------------------------------------


def moved(net: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


def test_an_exponential_average_is_its_formula() -> None:
    net = moved(nn.Linear(2, 1, bias=False), 1.0)
    average = WeightAverage(net, 0.9, every_steps=2)
    expected = 1.0
    for step in range(1, 7):
        average.update(moved(net, float(step)), step, 6)
        expected = 0.9 * expected + 0.1 * step if step % 2 == 0 else expected
    assert average.values["weight"].flatten().tolist() == pytest.approx([expected] * 2)
    assert net.weight.flatten().tolist() == [6.0, 6.0]  # training isn't touched


def test_look_ahead_sets_the_weights_back_now_and_then_and_at_the_end() -> None:
    net = moved(nn.Linear(1, 1, bias=False), 1.0)
    ahead, slow = LookAhead(net, 5), 1.0
    for step in range(1, 13):
        ahead.update(moved(net, 2.0 * step), step, 12)
        if step % 5 == 0:
            decay = 0.95**5 * (step / 12) ** 3
            slow = decay * slow + (1 - decay) * 2 * step
            assert net.weight.item() == pytest.approx(slow)
        else:
            assert net.weight.item() == pytest.approx(slow if step == 12 else 2.0 * step)


# --- steps -------------------------------------------------------------------------------------------------------


def batch_of(count: int) -> Batch:
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    rows = np.arange(count)
    return Batch(0, rows, images, torch.arange(count) % 4, KEYS[:count], rows, rows[:0])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize(("count", "parts"), [(12, 3), (11, 4), (3, 8)])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(count: int, parts: int, mixup: float) -> None:
    gradients = []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        recipe = make_recipe("cifar10", optimizer="nesterov", learning_rate=0.1, precision="float32",
                             accumulate_steps=accumulate, augment=Augment(mixup_alpha=mixup))  # fmt: skip
        order = Order((count,), 0, count, pairs=bool(mixup))
        step = TrainStep(recipe, net, make_optimizers(net, recipe), order)
        loss, norm = step.gradients(batch_of(count), 0)
        gradients.append([loss, norm, *[parameter.grad for parameter in net.parameters()]])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_too_long_is_cut() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    recipe = make_recipe("cifar10", optimizer="sgd", learning_rate=1.0, bias_rate=1.0, clip_norm=0.01,
                         schedule="constant", precision="float32", weight_decay=0.0)  # fmt: skip
    before = [parameter.detach().clone() for parameter in net.parameters()]
    step = TrainStep(recipe, net, make_optimizers(net, recipe), Order((12,), 0, 12))
    _, norm = step.gradients(batch_of(12), 0)
    assert float(norm) > 0.01
    step.update(norm, 0, 10)
    length = sum((p.detach() - b).square().sum() for p, b in zip(net.parameters(), before, strict=True)) ** 0.5
    assert float(length) == pytest.approx(0.01, rel=1e-3)


# --- images ------------------------------------------------------------------------------------------------------


def test_alternating_flips_show_the_other_side_in_every_next_epoch() -> None:
    spec = Augment(flip_probability=0.5, flip_alternates=True)
    sides = [flips(spec, 3, epoch, KEYS) for epoch in range(4)]
    assert 0 < sides[0].sum() < len(KEYS)
    assert np.array_equal(sides[0], ~sides[1])
    assert np.array_equal(sides[0], sides[2])
    assert np.array_equal(sides[1], sides[3])


def test_a_square_is_cut_out_somewhere_inside() -> None:
    out = cut_out(torch.ones(24, 3, 10, 10), 4, 0, 5, KEYS)
    assert (out == 0).sum(dim=(1, 2, 3)).tolist() == [3 * 16] * 24
    corners = {tuple(np.argwhere(image[0].numpy() == 0)[0]) for image in out}
    assert len(corners) > 10
    assert all(0 <= y <= 6 and 0 <= x <= 6 for y, x in corners)


def test_views_are_weighted_as_published() -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5)), torch.randn(4, 3, 6, 6)
    assert torch.equal(view_logits(net, images, "none"), net(images))
    both = (net(images) + net(images.flip(-1))) / 2
    assert torch.allclose(view_logits(net, images, "flip"), both, atol=1e-6)
    padded, expected = F.pad(images, (1, 1, 1, 1), "reflect"), 0.5 * both
    for n in (0, 2):
        shifted = padded[:, :, n : n + 6, n : n + 6]
        expected = expected + 0.125 * (net(shifted) + net(shifted.flip(-1)))
    assert torch.allclose(view_logits(net, images, "flip-and-shift"), expected, atol=1e-6)


# --- notices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds_left", "saves", "words"),
    [
        (100, "all", "a checkpoint is written now"),
        (20, "weights", "not for a checkpoint (30.0 s)"),
        (5, "", "anything"),
    ],
)
def test_what_a_notice_leaves_time_for_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds_left: float, saves: str, words: str
) -> None:
    """Ten bytes a second, 100 bytes of weights, 200 of the optimiser's."""
    writer = CheckpointWriter(str(tmp_path))
    writer.written_bytes, writer.written_seconds = 1000, 100.0
    tensors = {"model/w": torch.zeros(25), "optimizer/0/w/momentum": torch.zeros(50)}
    info = SimpleNamespace(deadline_ms=int(1000 * (time.time() + seconds_left)), preempted_ranks=[1])
    monkeypatch.setattr("pipeline.training.safeguards.preemption._preemption", lambda: info)
    assert PreemptionWatcher(1).new_notice(writer, lambda: tensors) is None  # rank 0 looks
    watcher = PreemptionWatcher(0)
    line = watcher.new_notice(writer, lambda: tensors)
    assert watcher.saves == saves
    assert words in str(line)
    assert watcher.new_notice(writer, lambda: tensors) is None  # said once


# --- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size_px", "epochs", "published"),
    [("airbench94", 32, 8, 0.29e15), ("airbench96", 32, 31, 7.46e15 * 31 / 40)],
)
def test_operations_are_the_published_ones(name: str, size_px: int, epochs: int, published: float) -> None:
    counted = training_operations(make_model(name, 10, size_px), [size_px] * epochs, 50_000)
    assert counted["total"] == pytest.approx(published, rel=0.03)


def test_operations_of_a_resnet_50_are_three_times_its_known_forward_pass() -> None:
    """4.09e9 multiply-adds for 224 px (He et al. say 3.8e9 without the stride's place in the 3x3)."""
    with torch.device("meta"):
        net = make_model("resnet50", 1000, 224)
    assert operations_per_image(net, 224) == pytest.approx(3 * 2 * 4.09e9, rel=0.02)


def test_dirac_kernels_begin_as_the_identity_and_scales_stay() -> None:
    net = Airbench(10)
    conv = net.groups[1].convs[1]
    x = torch.randn(2, 256, 5, 5)
    assert torch.allclose(conv(x), x)
    assert not any(
        p.requires_grad for name, p in net.named_parameters() if name.endswith("weight") and ".norms." in name
    )
    assert next(name for name, p in net.named_parameters() if p.requires_grad) == "whitening.bias"


def test_blur_pooling_keeps_shapes_and_blurs_what_is_strided() -> None:
    plain, blurred = make_model("resnet18", 10, 224), make_model("resnet18", 10, 224)
    add_blur_pool(blurred)
    assert sum(type(module).__name__ == "BlurPool" for module in blurred.modules()) == 6  # not the first: 3 channels
    assert blurred(torch.randn(1, 3, 64, 64)).shape == plain(torch.randn(1, 3, 64, 64)).shape
    flat = torch.ones(1, 64, 8, 8)  # inside, a blur of the even is even
    inner, outer = blurred.layer2[0].conv1, blurred.layer2[0].conv1.conv
    assert torch.allclose(inner(flat)[..., 1:-1, 1:-1], outer(flat)[..., 1:-1, 1:-1], atol=1e-5)


def test_pretrained_weights_are_loaded_and_other_classes_get_a_new_last_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, same, other = (make_model("resnet18", classes, 224) for classes in (10, 10, 7))
    (tmp_path / "w.safetensors").write_bytes(serialize_tensors(trained.state_dict()))
    torch.save({"model": trained.state_dict()}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        load_pretrained(same, str(tmp_path / name))
        assert torch.equal(same.fc.weight, trained.fc.weight)
        load_pretrained(other, str(tmp_path / name))
        assert torch.equal(other.conv1.weight, trained.conv1.weight)
        assert other.fc.weight.shape == (7, 512)
    with pytest.raises(CheckpointError, match="doesn't fit the model"):
        load_pretrained(make_model("resnet34", 10, 224), str(tmp_path / "w.pt"))


def test_any_model_of_timm_is_made_by_name() -> None:
    pytest.importorskip("timm")
    assert make_model("timm:resnet10t", 7, 224)(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(Exception, match="did you mean timm:resnet"):
        make_model("timm:resnet10q", 7, 224)


@pytest.mark.ray
def test_a_runs_operations_are_those_of_an_image_times_its_images_times_its_epochs(trained: str) -> None:
    output = json.loads(Path(trained, checkpoint.OUTPUT_NAME).read_text())
    images = 1438 - 144  # of train, without what was held out
    assert output["operations"]["total"] == pytest.approx(output["operations"]["per_image"] * images * 3)
