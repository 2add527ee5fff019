"""The proof on a GPU, tried on a CPU with tiny sizes: everything runs, and the results are kept section by section."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.gpu.child import MODULES, ON_REQUEST
from tests.support.jobs import run_job

WITHOUT_RAY = tuple(name for name in MODULES if name not in ("stream", *ON_REQUEST))


def proof(tmp_path: Path, *sections: str) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, Any]]]:
    finished = run_job("bench_gpu", "--device", "cpu", "--small", "--sections", *sections, cwd=tmp_path)
    return finished, json.loads((tmp_path / "bench-gpu.json").read_text())["sections"]


@pytest.mark.slow
def test_all_sections_but_the_last_run_without_archives_and_without_a_gpu(tmp_path: Path) -> None:
    finished, sections = proof(tmp_path, *WITHOUT_RAY)
    assert {name: section.get("error", section["status"]) for name, section in sections.items()} == dict.fromkeys(
        WITHOUT_RAY, "done"
    )
    assert finished.returncode == 0, finished.stderr
    assert "waits in a step" in finished.stdout


@pytest.mark.long
def test_the_stream_by_ray_goes_on_after_a_killed_worker(tmp_path: Path) -> None:
    finished, sections = proof(tmp_path, "stream")
    assert finished.returncode == 0, finished.stderr
    assert {"batches in memory", "stream", "killed training worker"} <= set(sections["stream"]["results"])


@pytest.mark.long
def test_the_recipes_of_cifar_run_one_after_the_other(tmp_path: Path) -> None:
    finished, sections = proof(tmp_path, "records")
    assert finished.returncode == 0, finished.stderr
    assert len(sections["records"]["results"]) == 6


def test_an_unknown_section_is_one_line(tmp_path: Path) -> None:
    finished = run_job("bench_gpu", "--device", "cpu", "--small", "--sections", "ceiling", cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: --sections ceiling: no such section; there are ceilings, ")
