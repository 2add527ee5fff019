"""The newest run of the same identity."""

from pathlib import Path

from pipeline.storage import files
from pipeline.training.resume import newest_run


def make_run(folder: Path, name: str, seed: int, *times: float) -> str:
    run = folder / name
    files.write_json(str(run / "config.json"), {"seed": seed})
    for number, time in enumerate(times):
        files.write_json(str(run / "starts" / f"{number}.json"), {"time": time, "step": 0})
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
