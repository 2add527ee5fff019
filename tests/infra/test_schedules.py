"""What schedulers start: the files are what their programs take, and a submitted night ends as it did."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pictures.datasets import Source

FOLDER = Path(__file__).parents[2] / "infra" / "schedules"
SUBMIT = FOLDER / "submit.sh"


def test_the_crontab_has_one_line_that_runs_what_is_there() -> None:
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    jobs = [line for line in lines if "=" not in line.split()[0]]
    assert len(jobs) == 1
    minute, hour, *rest = jobs[0].split()[:5]
    assert (minute.isdecimal(), hour.isdecimal(), rest) == (True, True, ["*", "*", "*"])
    assert jobs[0].split()[-1] == "infra/schedules/submit.sh"
    assert os.access(SUBMIT, os.X_OK)
    subprocess.run(["bash", "-n", SUBMIT], check=True)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd isn't installed")
    for path in FOLDER.glob("image-pipeline-retrain.*"):
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/image-pipeline/infra/schedules", str(FOLDER)))
    units = [tmp_path / f"image-pipeline-retrain.{kind}" for kind in ("service", "timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_not_set_is_said() -> None:
    done = subprocess.run([SUBMIT], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0
    assert "RAY_ADDRESS: is the address of the cluster" in done.stderr


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_submitted_night_ends_as_it_did(digits_dataset: str, tmp_path: Path) -> None:
    """3 where the gate refuses: a model that learnt wrong labels only is no better than a guess; 1 for an error."""
    import ray

    source = Source(digits_dataset, str(tmp_path / "source"))
    source.add(0, 200, wrong=1.0)
    dashboard = ray._private.worker.global_worker.node.address_info["webui_url"]
    settings = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_ADDRESS": f"http://{dashboard}",
        "SOURCE": source.uri,
        "WORKSPACE": str(tmp_path / "work"),
        "PYTHON": sys.executable,
    }
    ended = []
    for recipe in ("digits", "digit"):
        line = [SUBMIT, "--epochs", "2", "--workers", "0"]
        done = subprocess.run(line, capture_output=True, text=True, env={**settings, "RECIPE": recipe}, timeout=300)
        ended.append((done.returncode, done.stdout))
    assert [status for status, _ in ended] == [3, 1], "\n".join(output[-2000:] for _, output in ended)
    assert "KEPT" in ended[0][1]
    assert "did you mean digits" in ended[1][1]
