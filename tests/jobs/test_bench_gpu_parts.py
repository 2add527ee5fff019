"""The proof on a GPU, its parts: what fails costs nothing else, and tiny sizes stay tiny with real archives."""

import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from jobs.bench.gpu import pictures, resnet
from jobs.bench.gpu.child import Bench, Settings, SkippedError
from jobs.bench.gpu.steps import photo_batch, plain_steps, resnet_recipe
from jobs.bench.gpu.targets import table

RECORD = 3073


def settings(folder: Path, device: str = "cpu", small: bool = True, cifar: str = "") -> Settings:
    return Settings(device, small, cifar, "", str(folder))


def run(section: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = ModuleType("section")
    module.run = section  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "section", module)
    out = folder / "section.json"
    Bench("section", settings(folder), 60.0, str(out)).run("section")
    values: dict[str, Any] = json.loads(out.read_text())
    return values


def test_a_part_that_fails_leaves_the_others_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def section(bench: Bench) -> None:
        with bench.part("first"):
            bench.record("rate", 1.0)
            raise RuntimeError("CUDA error:\nan illegal access")
        with bench.part("second"):
            bench.record("other", float("nan"))  # JSON has none

    found = run(section, tmp_path, monkeypatch)
    assert found["status"] == "failed"
    assert found["error"] == "PartsFailedError: 1 failed: first"
    assert found["results"] == {"rate": 1.0, "other": None}
    assert "an illegal access" in found["errors"]["first"]


def test_a_check_that_fails_and_a_section_that_cannot_run_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skipped(bench: Bench) -> None:
        with bench.part("a part"):
            raise SkippedError("no Ray")

    assert run(skipped, tmp_path, monkeypatch)["status"] == "skipped"
    failed = run(lambda bench: bench.check("bits", False, "2 differ"), tmp_path, monkeypatch)
    assert failed["error"] == "PartsFailedError: 1 failed: bits"
    assert run(lambda bench: bench.check("bits", True, ""), tmp_path, monkeypatch)["status"] == "done"


def test_a_module_that_cannot_be_imported_is_the_sections_error(tmp_path: Path) -> None:
    out = tmp_path / "section.json"
    Bench("section", settings(tmp_path), 60.0, str(out)).run("no_such_module_here")
    assert json.loads(out.read_text())["error"].startswith("ModuleNotFoundError")


def test_the_device_has_the_number_that_torch_asks_for(tmp_path: Path) -> None:
    bench = Bench("resnet50", settings(tmp_path, "cuda"), 60.0, str(tmp_path / "out.json"))
    assert bench.device == torch.device("cuda", 0)


def test_each_variant_has_its_own_choice_of_kernels_and_cudnn_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    def steps(count: int) -> None:
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark))

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as an open loop sets it
    for timed in (True, False):
        resnet.timed_kernels(steps, timed)(1)
    assert seen == [(True, True), (True, False)]
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("small", "rows"), [(True, {"train": 20, "val": 10}), (False, {"train": 100, "val": 50})])
def test_of_a_real_archive_tiny_sizes_take_the_first_images(tmp_path: Path, small: bool, rows: dict[str, int]) -> None:
    archive = tmp_path / "cifar.tar"
    with tarfile.open(archive, "w") as tar:
        for number, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
            content = np.full((50, RECORD), number, np.uint8).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = pictures.cifar(settings(tmp_path, small=small, cifar=str(archive)))
    assert {name: len(part.labels) for name, part in found.items()} == rows
    assert set(found["val"].labels) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("option", [{}, {"channels_last": False}, {"fused": False}, {"copied_from": "host"}])
def test_plain_steps_run_with_each_option(tmp_path: Path, option: dict[str, Any]) -> None:
    """Only a GPU is measured with all of them."""
    bench = Bench("resnet50", settings(tmp_path), 60.0, str(tmp_path / "out.json"))
    recipe = resnet_recipe(bench, 2)
    batch = photo_batch(bench, 2, recipe.image_size_px)
    if "copied_from" in option:
        option = {"copied_from": batch}
    plain_steps(recipe, batch, **option)(2)


def test_the_table_has_a_line_for_each_target_whatever_was_measured() -> None:
    lines = table({"correctness": {"status": "failed", "results": {"waits": {"waits": 0}}}}, judged=True)
    assert [line["met"] for line in lines if line["what"] == "waits in a step"] == [True]
    assert {line["met"] for line in lines if line["what"] != "waits in a step"} == {None}
