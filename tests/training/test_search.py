"""Searches: what is drawn, what is held out, and that a killed search goes on and changes nothing."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.dataset import manifest
from pipeline.loader.samplers import EvaluationSampler, train_eval_split
from pipeline.models.tensor_file import read_tensors
from pipeline.training import launch
from pipeline.training.job import TrainJob
from pipeline.training.search.report import render
from pipeline.training.search.run import search, write_best
from pipeline.training.search.settings import SearchSettings
from pipeline.training.search.space import Choice, Range, draw_trials, parse_space, with_values
from pipeline.training.search.trial import TrialResult, read_scores, read_trials, trial_run
from tests.support.jobs import call_job, command, one_line_error, run_job


def recipe() -> Recipe:
    return replace(make_recipe("digits", epochs=4), augment=Augment(crop_padding_px=2))


# --- the space ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rate=0.1..0.5", Range(0.1, 0.5)),
        ("learning_rate=log:1e-3..1", Range(1e-3, 1, logarithmic=True)),
        ("global_batch_size=log:32..512", Range(32, 512, logarithmic=True, whole=True)),
        ("augment.crop_padding_px=0..4", Range(0, 4, whole=True)),
        ("optimizer=adam, muon", Choice(("adam", "muon"))),
        ("augment.flip_alternates=true,false", Choice((True, False))),
        ("label_smoothing=0.1", Choice((0.1,))),
    ],
)
def test_a_line_of_the_space(line: str, expected: Any) -> None:
    assert parse_space((line,), recipe()) == {line.split("=")[0]: expected}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lerning_rate=1..2", "did you mean learning_rate"),
        ("augment.flip_prob=0..1", "did you mean augment.flip_probability"),
        ("name=a,b", "space='name' is unknown"),
        ("learning_rate", "give learning_rate=LOW..HIGH"),
        ("learning_rate=", "give learning_rate=LOW..HIGH"),
        ("learning_rate=2..1", "LOW must be below HIGH"),
        ("learning_rate=log:0..1", "above 0 for log"),
        ("learning_rate=a..b", "LOW must be below HIGH"),
        ("pixel_mean=[0,1]..2", "give pixel_mean=LOW..HIGH"),
    ],
)
def test_a_line_that_cannot_be_drawn_from(line: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_space((line,), recipe())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("global_batch_size=64,many", "global_batch_size='many' must be of type int"),
        ("epochs=1.5,2", "epochs=1.5 must be of type int"),
        ("optimizer=adam,adma", "optimizer='adma' is unknown; did you mean adam"),
        ("label_smoothing=1,2", "label_smoothing"),
    ],
)
def test_values_that_no_recipe_can_have_are_said_before_anything_starts(line: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        draw_trials(parse_space((line,), recipe()), 20, recipe(), seed=0)


def test_the_same_seed_draws_the_same_values_and_the_first_trial_is_the_recipe() -> None:
    space = parse_space(("learning_rate=log:0.001..1", "augment.crop_padding_px=0..4", "optimizer=adam,muon"), recipe())
    drawn = draw_trials(space, 400, recipe(), seed=3)
    assert drawn == draw_trials(space, 400, recipe(), seed=3) != draw_trials(space, 400, recipe(), seed=4)
    assert with_values(recipe(), drawn[0]) == recipe()

    rates = np.log10([values["learning_rate"] for values in drawn[1:]])
    assert rates.min() >= -3
    assert rates.max() <= 0
    assert np.histogram(rates, bins=3, range=(-3, 0))[0].min() > 100  # each decade a third of them
    assert {values["augment.crop_padding_px"] for values in drawn} == {0, 1, 2, 3, 4}
    assert {values["optimizer"] for values in drawn} == {"adam", "muon"}


def test_what_follows_from_a_searched_field_follows() -> None:
    """A recipe that evaluates at 146 of 128 px keeps that ratio, and searched epochs aren't cut by a time budget."""
    photos = make_recipe("imagenette-5")
    assert (photos.image_size_px, photos.evaluate_resize_px) == (128, 146)
    assert with_values(photos, {"image_size_px": 64}).evaluate_resize_px == 73
    assert with_values(photos, {"image_size_px": 128}) == photos
    timed = replace(photos, fit_seconds=60.0)
    assert with_values(timed, {"epochs": 3}).fit_seconds == 0


# --- what is held out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_what_is_held_out_and_what_is_trained_on_are_all_of_train_once(digits_dataset: str, share: float) -> None:
    data = manifest.load(digits_dataset)
    rows, parts = data.split("train").rows, train_eval_split(data, share)
    assert parts.rows == round(share * rows)
    assert sum(parts.train_row_groups) == parts.train_rows == parts.first_row == rows - parts.rows
    units = EvaluationSampler(parts.rows, 50, 1, 0, parts.first_row)
    seen = np.concatenate([units.rows(unit) for unit in range(len(units))])
    assert seen.tolist() == list(range(parts.first_row, rows))
    groups = data.split("train").row_group_rows
    assert parts.train_row_groups[:-1] == groups[: len(parts.train_row_groups) - 1]  # whole ones but the last


@pytest.mark.parametrize("share", [-0.1, 1.0, 1e-6, 0.9999])
def test_a_share_that_leaves_nothing_is_an_error(digits_dataset: str, share: float) -> None:
    with pytest.raises(RecipeError, match=r"hold_out=.* leaves nothing of 1438 rows"):
        train_eval_split(manifest.load(digits_dataset), share)


# --- the report --------------------------------------------------------------------------------------------------


def test_the_report_ranks_trials_and_says_what_the_recipe_itself_reached() -> None:
    space = parse_space(("learning_rate=log:0.01..1", "optimizer=adam,muon"), recipe())
    drawn = draw_trials(space, 4, recipe(), seed=0)
    curve = [{"step": 9, "epoch": 1.0, "top1": 0.5, "top5": 0.9, "loss": 1.0}]
    end = {"step": 36, "epoch": 4.0, "top5": 0.9, "loss": 1.0}
    trials = [
        TrialResult(0, drawn[0], "finished", [*curve, {**end, "top1": 0.7}], ""),
        TrialResult(1, drawn[1], "stopped", curve, ""),
        TrialResult(2, drawn[2], "finished", [*curve, {**end, "top1": 0.8123}], ""),
        TrialResult(3, drawn[3], "failed", [], "step 3: the loss is nan <b>"),
    ]
    page = render(recipe(), space, trials, {"seed": 0})
    assert "81.23 % top-1 on held-out images: trial 2" in page
    assert "2 finished, 1 stopped, 1 failed" in page
    assert "reached 70.00 %: 11.23 points less" in page
    assert "the loss is nan &lt;b&gt;" in page
    assert "No trial has finished" in render(recipe(), space, trials[1:2] + trials[3:], {})


def test_the_best_recipe_can_be_given_to_a_job(tmp_path: Path) -> None:
    values = {"learning_rate": 0.5, "augment.crop_padding_px": 3}
    trial = TrialResult(1, values, "finished", [{"top1": 1.0, "loss": 0.1}], "")
    place = write_best(str(tmp_path), recipe(), [trial])
    assert make_recipe(str(place)) == replace(with_values(recipe(), values), name="digits-tuned")
    for content, message in (("{", "holds no recipe"), ("[]", "holds no recipe"), ('{"name": "x"}', "holds no recipe")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(RecipeError, match=message):
            make_recipe(str(tmp_path / "bad.json"))
    with pytest.raises(RecipeError, match="no such file"):
        make_recipe(str(tmp_path / "gone.json"))


# --- whole searches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_trials": 0}, r"num_trials=0 \(--trials\) must be 1 or more"),
        ({"num_trials": 2, "reduction_factor": 1}, r"reduction_factor=1 \(--keep-one-of\) must be 2 or more"),
        ({"num_trials": 2, "grace_epochs": 0}, r"grace_epochs=0 \(--grace-epochs\) must be 0.01 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SearchSettings(**settings)


def test_a_search_says_at_once_that_its_trials_have_no_features_to_fit_to(tmp_path: Path) -> None:
    message = "fit_head=only: trials of a search start without pretrained weights; set fit_head=none"
    with pytest.raises(RecipeError, match=message):
        search(tmp_path, tmp_path / "out", replace(recipe(), fit_head="only"), SearchSettings(num_trials=2))
    space = parse_space(("fit_head=only,only",), recipe())
    with pytest.raises(RecipeError, match=message):
        SearchSettings(num_trials=2, space=space).draw(recipe())
    finished = call_job("tune", "--recipe", "digits", "--set", "fit_head=only", "--trials", "2", cwd=tmp_path)
    assert message in one_line_error(finished)


@pytest.mark.ray
def test_an_error_of_the_flags_is_one_line(tmp_path: Path) -> None:
    finished = run_job("tune", "--recipe", "digit", "--trials", "2", cwd=tmp_path)
    assert "did you mean digits" in one_line_error(finished)


@pytest.mark.long
@pytest.mark.ray
def test_a_search_that_was_killed_goes_on_and_its_trials_end_as_runs_of_their_own(
    tmp_path: Path, digits_dataset: str
) -> None:
    out = tmp_path / "search"
    arguments = ["--recipe", "digits", "--data", digits_dataset, "--epochs", "4", "--trials", "3", "--out", str(out)]
    first = subprocess.Popen(
        command("tune", *arguments, "--space", "learning_rate=log:0.01..4"), cwd=tmp_path, start_new_session=True
    )
    while not read_scores(trial_run(str(out), 0)):
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = run_job("tune", *arguments, "--space", "learning_rate=log:0.01..4", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    values = [{"learning_rate": 0.24}]
    assert read_trials(str(out), values)[0].status == "finished"
    statuses = [json.loads(path.read_text())["status"] for path in sorted(out.glob("trials/*/status.json"))]
    assert len(statuses) == 3
    assert set(statuses) <= {"finished", "stopped"}
    assert str(out / "report.html") in finished.stdout
    # the first trial, in one piece and without Ray Tune
    own = TrainJob(digits_dataset, str(tmp_path / "own"), make_recipe("digits", epochs=4), hold_out=0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray gives a trial of one CPU: sums depend on it
    launch.run_training(own)
    torch.set_num_threads(threads)
    one, other = (read_tensors(f"{run}/model.safetensors") for run in (own.run, str(out / "trials/0000")))
    assert all((one[name] == other[name]).all() for name in one)
    other_search = run_job("tune", *arguments, "--space", "learning_rate=log:0.01..5", cwd=tmp_path)
    assert "space.learning_rate was Range(low=0.01, high=4" in one_line_error(other_search)
