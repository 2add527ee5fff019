"""Retraining runs whose classes change: grown, renamed, merged and removed, from the champion's weights."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import DatasetError
from pipeline.dataset.manifest import load
from pipeline.evaluation.workflow import verify as verify_evaluation
from pipeline.models.tensor_file import read_tensors
from pipeline.retraining import registry
from pipeline.retraining.classes import ClassRules
from pipeline.retraining.decision.promotion_gate import Gate
from pipeline.retraining.plan import RetrainOptions
from pipeline.retraining.registry_check import verify
from pipeline.retraining.run import Outcome, retrain
from tests.support.pictures.datasets import Source


class Nights:
    """A source of digits as class folders, and its workspace."""

    def __init__(self, dataset: str, folder: Path) -> None:
        self.source, self.work = folder / "source", folder / "work"
        whole = Source(dataset, str(folder / "whole"))
        whole.add(0, 600)
        self._whole = folder / "whole"

    def add(self, *names: str) -> None:
        for name in names:
            for split in ("train", "val"):
                shutil.copytree(self._whole / split / name, self.source / split / name)

    def rename(self, old: str, new: str) -> None:
        for split in ("train", "val"):
            target = self.source / split / new
            target.mkdir(exist_ok=True)
            for path in (self.source / split / old).iterdir():
                path.rename(target / f"{old}-{path.name}")
            (self.source / split / old).rmdir()

    def remove(self, name: str) -> None:
        for split in ("train", "val"):
            shutil.rmtree(self.source / split / name)

    def run(self, rules: ClassRules | None = None, from_champion: bool = True, epochs: int = 5, **rest: Any) -> Outcome:
        classes = replace(rules or ClassRules(), shared_drop=0.1)
        gate = Gate(latency_ratio=1000)  # other processes on the machine decide nothing
        options = RetrainOptions(workers=0, from_champion=from_champion, classes=classes, gate=gate, **rest)
        return retrain(self.source, self.work, make_recipe("digits", epochs=epochs, global_batch_size=32), options)


@pytest.mark.long
def test_classes_are_added_and_renamed_one_that_vanished_stops_the_run_and_a_rollback_goes_back(
    digits_dataset: str, tmp_path: Path
) -> None:
    nights, place = Nights(digits_dataset, tmp_path), str(tmp_path / "work" / "registry")
    zero, one, two, three, four = load(digits_dataset).classes[:5]
    nights.add(zero, one, two, three)
    first = nights.run(from_champion=False)
    assert first.status == "promoted"
    assert "classes" not in first.decision

    nights.add(four)
    nights.rename(zero, "round")
    with pytest.raises(DatasetError, match=f"--allow-removed {zero} .* {zero},round, where the images are now"):
        nights.run()
    assert not list(nights.work.glob("nights/*/run/start.safetensors"))
    second = nights.run(ClassRules({zero: "round"}))
    assert second.status == "promoted", second.message
    assert second.decision["classes"]["added"] == [four]
    assert second.decision["classes"]["renamed"] == {zero: "round"}
    assert registry.history(place)[-1].reason.endswith(
        f"new class '{four}'; '{zero}' is now 'round' (night {second.run.id})"
    )
    assert "is now round" in Path(second.run.folder, "decision.html").read_text()
    start = read_tensors(f"{second.run.training}/start.safetensors")
    before = read_tensors(f"{second.run.champion_uri}/model.safetensors")
    assert {start[name].shape[0] - before[name].shape[0] for name in before if start[name].dim()} == {0, 1}
    verify_evaluation(f"{second.run.folder}/champion")

    kept = nights.source / "train" / one
    kept.rename(tmp_path / "elsewhere")
    (nights.source / "val" / one).rename(tmp_path / "val-elsewhere")
    with pytest.raises(DatasetError, match=f"missing in source: '{one}'"):
        nights.run()
    assert registry.get(place, "champion").id == second.decision["challenger"]
    assert not (nights.work / "active.json").exists()
    (tmp_path / "elsewhere").rename(kept)
    (tmp_path / "val-elsewhere").rename(nights.source / "val" / one)

    registry.rollback(place)
    next(kept.iterdir()).unlink()  # anything that is new
    third = nights.run()  # nothing is said: the name is remembered
    assert third.run is not None
    assert third.run.champion is not None
    assert third.run.champion.version == first.decision["challenger"]
    assert third.decision["classes"]["renamed"] == {zero: "round"}
    assert third.status == "promoted", third.message
    assert verify(place) == []
