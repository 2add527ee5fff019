"""The newest run of the same identity, and how the steps of a run were computed."""

import time
from pathlib import Path

from pipeline.config.presets import make_recipe
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.resume import newest_run, note_start, numerics


def make_run(folder: Path, name: str, seed: int, *times: float) -> str:
    run = folder / name
    files.write_json(str(run / "config.json"), {"seed": seed})
    for number, moment in enumerate(times):
        files.write_json(str(run / "starts" / f"{number}.json"), {"time": moment, "step": 0, "world_size": 1})
    return str(run)


def test_the_run_that_was_started_last_is_the_newest(tmp_path: Path) -> None:
    make_run(tmp_path, "z", 0, 5.0)
    continued = make_run(tmp_path, "a", 0, 1.0, 9.0)
    other = make_run(tmp_path, "other", 1, 20.0)
    make_run(tmp_path, "never", 0)
    (tmp_path / "no run").mkdir()
    assert newest_run(str(tmp_path), lambda identity: identity["seed"] == 0) == continued
    assert newest_run(str(tmp_path), lambda identity: identity["seed"] == 1) == other
    assert newest_run(str(tmp_path), lambda identity: identity["seed"] == 2) is None
    assert newest_run(str(tmp_path / "nowhere"), lambda identity: True) is None


def test_a_replay_computes_steps_as_the_start_did_that_computed_them(tmp_path: Path) -> None:
    recipe, run = make_recipe("digits"), str(tmp_path)
    for step, changes in (
        (0, {}),
        (20, {"compile": True, "deterministic": True, "fsdp": False}),
        (50, {"deterministic": True}),
    ):
        note_start(TrainJob("", run, recipe, **changes), 0, 1, step)
        time.sleep(0.002)  # files are named by the millisecond
    plain = {"compile": False, "deterministic": False, "fsdp": False}
    assert numerics(run, 0) == numerics(run, 19) == plain
    assert numerics(run, 20) == numerics(run, 49) == {"compile": True, "deterministic": True, "fsdp": False}
    assert numerics(run, 50) == {"compile": False, "deterministic": True, "fsdp": False}
    assert numerics(str(tmp_path / "nowhere"), 0) == plain
    first = min(tmp_path.glob("starts/*.json"))
    assert "compile" not in first.read_text()  # a run that takes neither writes what it always did
