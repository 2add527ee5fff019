"""A run that starts from the champion and replays a share of old images, from start to end, without Ray."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.presets import make_recipe
from pipeline.ingestion.plan import SHARD_BYTES
from pipeline.ingestion.sources import open_source
from pipeline.retraining.plan import RetrainOptions, plan_retraining
from pipeline.retraining.run import Outcome, retrain
from pipeline.storage import files
from tests.support.pictures.datasets import ingest_here


def night(source: Path, options: RetrainOptions) -> Outcome:
    """A run of one epoch whose images are ingested in this process."""
    work, recipe = source.parent / "work", make_recipe("digits", epochs=1, global_batch_size=16)
    dataset = plan_retraining(source, work, recipe, options).run.dataset
    if not files.exists(dataset):
        ingest_here(open_source(str(source), spool=f"{source}-spool"), dataset, shard_size=SHARD_BYTES)
    return retrain(source, work, recipe, options)


def add(source: Path, split: str, numbers: range) -> None:
    """Adds pictures of two classes: noise, dark or bright."""
    for number in numbers:
        for name, light in (("dark", 40), ("bright", 170)):
            pixels = np.random.default_rng([number, light]).integers(light, light + 60, (8, 8), dtype=np.uint8)
            place = source / split / name / f"{number:03}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)


@pytest.mark.long
def test_a_run_trains_on_new_images_and_a_share_of_old_ones(tmp_path: Path) -> None:
    source = tmp_path / "source"
    add(source, "train", range(100))
    add(source, "val", range(100, 140))
    first = night(source, RetrainOptions(workers=0))
    assert first.status == "promoted", first.message
    add(source, "train", range(200, 220))
    second = night(source, RetrainOptions(workers=0, from_champion=True, replay_share=0.5))
    assert second.decision["replay"] == {"share": 0.5, "new_rows": 40, "epoch_rows": 80}
    assert second.decision["data"]["added"] == {"train": 40, "val": 0}
    assert second.run is not None
    made = files.read_json(f"{second.run.training}/result.json")
    assert made["steps"] == 5  # 80 images in batches of 16; all 240 would take 15
