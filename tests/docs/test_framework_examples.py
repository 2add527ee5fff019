"""The loader in other libraries' training loops: each example runs, where its library is installed."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from pipeline import Loader

pytestmark = pytest.mark.long

SMALL = {"global_batch_size": 17, "size_px": 32}


@pytest.mark.parametrize("library", ["accelerate", "lightning", "composer"])
def test_an_example_trains(tree_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    pytest.importorskip(library, reason=f"{library} isn't installed: uv sync --group frameworks")
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    original = Loader.__iter__

    def noting(self: Loader):  # type: ignore[no-untyped-def]
        for batch in original(self):
            if self.split == "train":
                seen.extend(batch.keys.tolist())
            yield batch

    monkeypatch.setattr(Loader, "__iter__", noting)
    result = importlib.import_module(f"examples.{library}_loop").main(tree_dataset, 2, **SMALL)
    assert np.isfinite(result)
    assert len(seen) == 2 * 51  # two epochs, each row once in each
    assert len(set(seen)) == 51


def test_accelerates_state_holds_the_loaders_position(tree_dataset: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate isn't installed: uv sync --group frameworks")
    accelerator = accelerate.Accelerator()
    loader, other = Loader(tree_dataset, **SMALL), Loader(tree_dataset, **SMALL)
    accelerator.register_for_checkpointing(loader)
    batches = iter(loader)
    next(batches)
    accelerator.save_state(str(tmp_path / "state"))
    rest = [batch.keys.tolist() for batch in batches]
    list(loader)
    accelerator.load_state(str(tmp_path / "state"))
    assert [batch.keys.tolist() for batch in loader] == rest
    assert len(rest) == len(other) - 1
