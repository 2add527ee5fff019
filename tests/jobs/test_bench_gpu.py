"""The proof on a GPU, tried on a CPU with tiny sizes: everything runs, and the results are kept section by section."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.gpu.child import MODULES, ON_REQUEST
from tests.support.jobs import ROOT, run_job

WITHOUT_RAY = tuple(name for name in MODULES if name not in ("stream", *ON_REQUEST))


def proof(tmp_path: Path, *sections: str) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, Any]]]:
    finished = run_job("bench_gpu", "--device", "cpu", "--small", "--sections", *sections, cwd=tmp_path)
    return finished, json.loads((tmp_path / "bench-gpu.json").read_text())["sections"]


def ended(section: dict[str, Any]) -> Any:
    return section.get("error", section["status"])


IN_ONE_PROCESS = """
import sys
from jobs.bench.gpu.child import MODULES, Bench, Settings

settings = Settings("cpu", True, "", "", sys.argv[1])
for name in sys.argv[2:]:
    Bench(name, settings, 60.0, f"{settings.folder}/{name}.json").run(f"jobs.bench.gpu.{MODULES[name]}")
"""


@pytest.mark.slow
def test_each_section_but_the_last_ends_without_archives_and_without_a_gpu(tmp_path: Path) -> None:
    """In one process, which saves six imports of torch: the command gives each a process of its own."""
    program = [sys.executable, "-c", IN_ONE_PROCESS, str(tmp_path), *WITHOUT_RAY]
    subprocess.run(program, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, check=True)
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in WITHOUT_RAY}
    assert {name: ended(section) for name, section in found.items()} == dict.fromkeys(WITHOUT_RAY, "done")


@pytest.mark.slow
def test_the_command_keeps_the_results_of_its_sections_and_ends_in_a_table(tmp_path: Path) -> None:
    finished, sections = proof(tmp_path, "decoder")
    assert finished.returncode == 0, finished.stderr
    assert {name: ended(section) for name, section in sections.items()} == {"decoder": "done"}
    assert "waits in a step" in finished.stdout


@pytest.mark.long
def test_the_whole_proof_ends_and_its_stream_goes_on_after_a_killed_worker(tmp_path: Path) -> None:
    finished, sections = proof(tmp_path, *WITHOUT_RAY, "stream")
    assert finished.returncode == 0, finished.stderr
    assert set(map(ended, sections.values())) == {"done"}
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
