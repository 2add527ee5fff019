"""The loop's schedules, and what a finished run says about its operations."""

import json
import math
from dataclasses import astuple
from pathlib import Path

import pytest

from pipeline.models import checkpoint
from pipeline.training.loop import Due, TrainingSchedule
from pipeline.training.replay import Replay, ReplaySchedule
from pipeline.training.worker_data import rows_on_gpu


@pytest.mark.parametrize(
    ("step", "line", "validation", "save", "epoch_end"),
    [
        (1, False, False, False, False),
        (2, True, False, False, False),  # 20 lines an epoch of 40 steps
        (7, False, False, True, False),  # every 7 steps
        (14, True, False, True, False),
        (40, True, True, True, True),  # the end of an epoch, with validation after the first two
        (80, True, True, True, True),
        (120, True, False, True, True),  # and after every other from then on
        (160, True, True, True, True),
        (200, True, False, True, True),
        (240, True, False, True, True),  # the final evaluation comes after the last step
    ],
)
def test_what_is_due_after_a_step(step: int, line: bool, validation: bool, save: bool, epoch_end: bool) -> None:
    schedule = TrainingSchedule(last_step=240, steps_per_epoch=40, checkpoint_every_steps=7)
    assert astuple(schedule.due(step)) == (line, validation, save, True, epoch_end)
    assert schedule.progress(step) == (step, 240)


def test_a_short_epoch_has_a_line_for_each_step() -> None:
    schedule = TrainingSchedule(last_step=9, steps_per_epoch=3, checkpoint_every_steps=100)
    assert [schedule.due(step).line for step in range(1, 10)] == [True] * 9


def test_a_replay_has_a_line_for_each_step_and_writes_nothing() -> None:
    schedule = ReplaySchedule(first_step=30, last_step=35)
    assert [schedule.due(step) for step in range(31, 36)] == [Due(line=True)] * 5
    assert [schedule.progress(step) for step in (31, 35)] == [(1, 5), (5, 5)]


def test_a_replay_finds_losses_that_differ_in_the_last_bit_and_takes_skipped_steps_as_equal() -> None:
    same = Replay(7, [1.0, math.nan], [1.0, math.nan])
    assert (same.differing, same.largest_difference) == ([], 0.0)
    other = Replay(7, [1.0, 2.0, 3.0], [1.0, math.nextafter(2.0, 3.0), 3.0])
    assert other.differing == [8]
    assert 0 < other.largest_difference < 1e-15
    assert Replay(7, [1.0], [math.nan]).largest_difference == math.inf


@pytest.mark.ray
def test_a_runs_operations_are_those_of_an_image_times_its_images_times_its_epochs(trained: str) -> None:
    output = json.loads(Path(trained, checkpoint.OUTPUT_NAME).read_text())
    images = 1438 - 144  # of train, without what was held out
    assert output["operations"]["total"] == pytest.approx(output["operations"]["per_image"] * images * 3)


@pytest.mark.parametrize(
    ("rows", "size_px", "world_size", "expected"),
    [
        (10_000, 32, 1, 2000),
        (10_000, 28, 1, 2000),
        (10_000, 32, 8, 1250),  # each rank gets one
        (900, 32, 1, 750),
        (100, 32, 1, 250),  # never less than a certified evaluation has
        (10_000, 64, 1, 500),  # as many pixels
        (50_000, 224, 1, 250),
    ],
)
def test_rows_of_a_batch_of_resident_images_that_are_evaluated_on_a_gpu(
    rows: int, size_px: int, world_size: int, expected: int
) -> None:
    assert rows_on_gpu(rows, size_px, world_size) == expected
