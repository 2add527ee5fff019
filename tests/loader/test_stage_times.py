import time

import numpy as np
import pytest
import torch

from pipeline.loader.batch import Batch
from pipeline.loader.stage_times import (
    STAGES,
    BatchTiming,
    Stopwatch,
    largest_shares,
    training_seconds,
    waiting_seconds,
)
from pipeline.training.step_meter import Meter


@pytest.mark.parametrize(
    ("making", "asked", "arrived", "expected"),
    [
        # began before it was asked for, ended 3 s after, 1 s on its way
        (BatchTiming(1, 1, 2, started=6, ended=14), 10, 15, {"storage": 1, "decode": 1, "augment": 2, "hand-over": 1}),
        (BatchTiming(1, 2, 1, started=2, ended=6), 10, 14, {"hand-over": 4}),  # was finished before
        (BatchTiming(0, 3, 0, started=11, ended=14), 10, 14, {"queue": 1, "decode": 3}),  # had not begun
        (BatchTiming(0, 0, 0, started=9, ended=12), 10, 14, {"hand-over": 4}),  # nothing of it took time
        (BatchTiming(1, 0, 0, started=90, ended=91), 10, 14, {"queue": 4}),  # a clock that is ahead
        (BatchTiming(1, 1, 1, started=0, ended=99), 10, 9, {}),  # a clock that was set back
    ],
)  # fmt: skip
def test_waiting_is_shared_out_in_full(
    making: BatchTiming, asked: float, arrived: float, expected: dict[str, float]
) -> None:
    shares = making.attribute(asked, arrived)
    assert {name: value for name, value in shares.items() if value} == pytest.approx(expected)
    assert sum(shares.values()) == pytest.approx(max(0, arrived - asked))


def test_a_stopwatch_counts_what_is_inside_its_stages() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("decode"):
            time.sleep(0.02)
    making = watch.timing()
    assert 0.04 <= making.decode < 0.2
    assert making.storage == 0
    assert making.ended - making.started >= 0.04


def batch(unit: int, making: BatchTiming | None) -> Batch:
    rows = np.arange(2)
    return Batch(unit, rows, torch.zeros(2), torch.zeros(2), rows.astype(np.uint64), rows, rows[:0], 0, making)


class Clock:
    """Stands for the module `time`: it goes on while somebody sleeps, and not otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for name in ("time", "perf_counter", "monotonic"):
            monkeypatch.setattr(time, name, lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_loops_seconds_add_up_to_its_time_and_go_to_their_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)

    def stream():  # type: ignore[no-untyped-def]
        for unit in range(3):
            started = time.time()
            time.sleep(0.06)
            yield batch(unit, BatchTiming(0.0, 0.9, 0.1, started, time.time()))

    seconds: dict[str, float] = {}
    batches = stream()
    begin = time.perf_counter()
    losses: list[float] = []
    meter = Meter(seconds, losses, torch.device("cpu"), 1, start_seconds=0.5)
    for _ in range(3):
        meter.next_batch(batches)
        meter.mark("copy")
        time.sleep(0.03)
        meter.mark("compute")
    meter.end_line(3, 0.1)
    for step in range(3):
        meter.count(step, 3.0, 2)
    (line,) = meter.settle(3)
    time.sleep(0.05)
    meter.mark("evaluate")
    meter.settle()
    wall = time.perf_counter() - begin
    assert sum(seconds.values()) - 0.5 == pytest.approx(wall)
    assert seconds["decode"] == pytest.approx(0.162)
    assert seconds["augment"] == pytest.approx(seconds["decode"] / 9)
    assert seconds["compute"] == pytest.approx(0.09)
    assert seconds["evaluate"] == pytest.approx(0.05)
    assert (seconds["start"], line["loss"], losses) == (0.5, 1.5, [1.5] * 3)
    trained = training_seconds(line["seconds"])
    assert line["data_wait"] == pytest.approx(waiting_seconds(line["seconds"]) / trained, rel=1e-3)
    assert line["images_per_second"] == pytest.approx(6 / trained, rel=1e-3)


def test_the_summary_names_the_largest_shares() -> None:
    seconds = dict.fromkeys(STAGES, 0.0) | {"compute": 80.0, "decode": 15.0, "storage": 4.0, "copy": 1.0, "start": 99.0}
    assert largest_shares(seconds) == "compute 80%, decode 15%, storage 4%"
    assert largest_shares({}) == ""


def test_lines_that_end_are_settled_together_and_only_those_whose_steps_are_known() -> None:
    seconds: dict[str, float] = {}
    losses: list[float] = []
    meter = Meter(seconds, losses, torch.device("cpu"), 1, start_seconds=0)
    begin = time.perf_counter()
    for step in range(1, 6):
        time.sleep(0.002)
        meter.mark("compute")
        if step % 2 == 0:
            meter.end_line(step, 0.1 * step)
        meter.count(step - 1, float(step), 2, skipped=step == 3)
    assert not meter.has_line(1)
    assert meter.settle(1) == []
    assert [(line["step"], line["images"], line["loss"]) for line in meter.settle(3)] == [(2, 4, 3 / 4)]
    assert seconds["compute"] < time.perf_counter() - begin
    (second,) = meter.settle()
    assert (second["step"], second["images"], second["loss"], second["learning_rate"]) == (4, 4, 4 / 2, 0.4)
    assert sum(seconds.values()) == pytest.approx(time.perf_counter() - begin, abs=0.005)  # the open line, too
    meter.mark("compute")
    meter.end_line(5, 0.5)
    (third,) = meter.settle()
    assert third["loss"] == 5 / 2
    assert third["seconds"]["compute"] >= 0.002  # what was settled before the line's end is part of it
    assert losses == [0.5, 1.0, pytest.approx(float("nan"), nan_ok=True), 2.0, 2.5]
