"""The page of a run while it trains, and its parts: pictures of what is trained on, use of the machine, the command."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.dataset import manifest
from pipeline.loader.resident import load_resident, resident_batches
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import TrainSampler, train_eval_split
from pipeline.loader.transform import training_transform
from pipeline.models.run_state import RunState
from pipeline.training.job import TrainJob
from pipeline.training.outputs.inline_charts import line_chart, thinned
from pipeline.training.outputs.live_report import REPORT_NAME, LiveReport
from pipeline.training.outputs.machine_use import MachineUse, read_machine_use
from pipeline.training.outputs.parts import command_of, machine_charts
from pipeline.training.outputs.samples import BATCH_IMAGES, augmented_images, class_pictures

REFRESH = '<meta http-equiv="refresh"'


def waited_for(page: Path, text: str) -> str:
    """Returns the page as soon as `text` is on it. Every version of it that is seen is a whole one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        content = page.read_text() if page.exists() else ""
        assert not content or content.rstrip().endswith("</html>")
        if text in content:
            return content
        time.sleep(0.02)
    raise AssertionError(f"{text!r} didn't appear")


def test_the_page_follows_the_run_and_is_reloaded_only_while_it_trains(tmp_path: Path, tree_dataset: str) -> None:
    job = TrainJob(tree_dataset, str(tmp_path), make_recipe("digits", epochs=3), command="train --data 'a <b>'")
    state = RunState(epochs=3)
    live = LiveReport(job, manifest.load(tree_dataset), state, steps_per_epoch=4)
    page = tmp_path / REPORT_NAME
    first = waited_for(page, "What the network sees")
    assert REFRESH in first
    assert "step 0 of 12" in first
    state.step = 4
    state.history.append({"epoch": 1.0, "loss": 1.5, "images_per_second": 9.0, "learning_rate": 0.1})
    live.line(state.history[-1], 0)
    live.evaluation(4, {"top1": 0.625, "top5": 1.0, "loss": None})
    second = waited_for(page, "62.50 %")
    assert "training: step 4 of 12, epoch 1 of 3" in second
    assert "not finite" in second
    live.end(finished=False)
    last = page.read_text()
    assert REFRESH not in last
    assert "stopped at step 4 of 12" in last
    assert not re.findall(r"(?:src|href)=\"(?!data:)", last)  # it needs nothing else


def test_a_finished_run_leaves_the_page_to_the_final_report(tmp_path: Path, tree_dataset: str) -> None:
    job = TrainJob(tree_dataset, str(tmp_path), make_recipe("digits"))
    live = LiveReport(job, manifest.load(tree_dataset), RunState(epochs=1), 4)
    before = waited_for(tmp_path / REPORT_NAME, REFRESH)
    live.end(finished=True)
    assert (tmp_path / REPORT_NAME).read_text() == before


def test_a_page_that_cannot_be_written_is_reported_by_the_tracker(tmp_path: Path, tree_dataset: str) -> None:
    (tmp_path / REPORT_NAME).mkdir()
    job = TrainJob(tree_dataset, str(tmp_path), make_recipe("digits"))
    live = LiveReport(job, manifest.load(tree_dataset), RunState(epochs=1), 4)
    deadline = time.monotonic() + 30
    with pytest.raises(OSError, match=REPORT_NAME):  # noqa: PT012
        while time.monotonic() < deadline:
            live.line({}, 0)
            time.sleep(0.05)
    live.end(finished=False)


def test_the_pictures_are_what_the_network_is_given(digits_dataset: str) -> None:
    recipe = make_recipe("digits")
    job, data = TrainJob(digits_dataset, "/nowhere", recipe, seed=5), manifest.load(digits_dataset)
    shown = np.stack(augmented_images(job, data))
    order = training_order(recipe, train_eval_split(data).train_row_groups, job.seed)
    transform = training_transform(recipe, job.seed, job.decoder)
    whole = load_resident(digits_dataset, data.split("train"), transform)
    batch = next(resident_batches(whole, TrainSampler(order, 1), transform))
    assert shown.shape[0] == BATCH_IMAGES
    assert np.array_equal(shown, batch.images[:BATCH_IMAGES].permute(0, 2, 3, 1).numpy())


def test_each_class_has_a_picture_and_its_number_of_images(tree_dataset: str) -> None:
    job = TrainJob(tree_dataset, "/nowhere", make_recipe("digits"))
    pictures = class_pictures(job, manifest.load(tree_dataset))
    assert [(each["name"], each["rows"]) for each in pictures] == [("ant", 17), ("bee", 17), ("cow", 17)]
    assert all(each["picture"].startswith("data:image/jpeg;base64,") for each in pictures)


def test_the_use_of_the_machine_is_sampled_and_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.outputs.machine_use._SECONDS", 0.01)
    for starts in (1, 2):
        use = MachineUse(str(tmp_path))
        deadline = time.monotonic() + 10
        while len(use.samples) < 3 * starts and time.monotonic() < deadline:
            time.sleep(0.01)
        use.stop()
    samples = read_machine_use(str(tmp_path))
    assert len(samples) >= 6
    assert all(0 <= each["cpu_percent"] <= 100 and 0 < each["memory_gb"] < each["memory_total_gb"] for each in samples)
    times = [each["time"] for each in samples]
    assert times == sorted(times)
    assert sum("begins" in each for each in samples) == 2
    assert len(machine_charts(samples)) == 2
    assert machine_charts(samples[:1]) == []


SAMPLE = {"cpu_percent": 50.0, "memory_gb": 1.0, "memory_total_gb": 8.0}


@pytest.mark.parametrize(
    ("end", "shown"), [(20, "20 s"), (119, "119 s"), (120, "2 min"), (7100, "118 min"), (9000, "2.5 h")]
)
def test_the_axis_of_time_has_a_unit_that_fits(end: float, shown: str) -> None:
    chart, _ = machine_charts([{**SAMPLE, "time": 5.0}, {**SAMPLE, "time": 5.0 + end}])[0]
    assert f">{shown}<" in chart


def test_the_time_between_an_end_and_the_next_start_does_not_count() -> None:
    starts = [(0.0, True), (60.0, False), (90_000.0, True), (90_060.0, False)]
    chart, _ = machine_charts(
        [{**SAMPLE, "time": at, **({"begins": True} if begins else {})} for at, begins in starts]
    )[0]
    assert "2 min" in chart


def test_a_chart_names_its_last_values_and_escapes_names() -> None:
    chart = line_chart({"a<b": [(0.0, 1.0), (2.0, 3.0)], "none": []}, "epochs", " %")
    assert "a&lt;b 3 %" in chart
    assert "a<b" not in chart
    assert "none " not in chart
    assert chart.count("<polyline") == 1
    points = [(float(x), 0.0) for x in range(10_000)]
    assert len(thinned(points)) <= 401
    assert thinned(points)[-1] == points[-1]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([{"command": "uv run x"}, {"command": "uv run x --resume"}], ("uv run x", True)),
        ([{}], ("image-pipeline train --data '/my data' --recipe digits --seed 3", False)),
    ],
)
def test_the_command_is_that_of_the_first_start(starts: list[dict[str, Any]], expected: tuple[str, bool]) -> None:
    job = TrainJob("/my data", "/nowhere", make_recipe("digits"), seed=3)
    assert command_of(job, starts) == {"command": expected[0], "command_is_typed": expected[1]}
