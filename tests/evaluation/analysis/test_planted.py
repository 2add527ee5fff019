"""A darkened class, wrong labels and leaked images, planted in real photographs: an evaluation finds and shows them."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config.presets import make_recipe
from pipeline.dataset.manifest import load
from pipeline.evaluation import EvaluateOptions, Workers, evaluate
from pipeline.ingestion.sources import open_source
from pipeline.training import launch
from pipeline.training.job import TrainJob
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import shared
from tests.support.pictures.planted import found_of, plant


@pytest.mark.long
def test_what_was_planted_is_found_and_shown(ray_variables: None, tmp_path: Path) -> None:
    index = open_source(shared("cifar10-jpeg.tar.xz"), spool=str(tmp_path / "spool"))
    some = replace(index, splits={name: table.take(list(range(0, table.num_rows, 10 if name == "train" else 5)))
                                  for name, table in index.splits.items()})  # fmt: skip
    ingest_here(some, str(tmp_path / "clean"))
    truth = plant(str(tmp_path / "clean"), tmp_path / "planted.tar", leaks=60)
    data = str(tmp_path / "data")
    ingest_here(open_source(str(tmp_path / "planted.tar"), spool=str(tmp_path / "spool2")), data)
    recipe = make_recipe("cifar10", epochs=4, global_batch_size=250)
    launch.run_training(TrainJob(data, str(tmp_path / "run"), recipe))
    out = str(tmp_path / "out")
    options = EvaluateOptions(views="none", label_issues=True)
    evaluate(tmp_path / "run", data, out, options, Workers(0))

    values = json.loads(Path(out, "metrics.json").read_text())
    worst = values["worst_slice"]
    assert (worst["column"], worst["value"]) == ("class", truth.dark) or worst["column"] == "brightness"
    page = Path(out, "evaluation.html").read_text()
    assert f"Weak spot: {worst['column']} {worst['value']}." in page

    doubts = pq.read_table(Path(out, "label-problems.parquet"))
    precision, recall = found_of(set(doubts["key"].to_pylist()), set(truth.wrong))
    first = found_of(set(doubts["key"][:100].to_pylist()), set(truth.wrong))[0]
    print(f"wrong labels: precision {precision:.3f}, recall {recall:.3f}, of the first 100 {first:.3f}; {worst}")
    assert recall > 0.45
    assert first > 0.6

    leaked = set(load(data).leaked["val"])
    assert found_of(leaked, set(truth.leaked))[1] == 1.0
    assert values["without_leaked"]["rows"] == 2000 - len(leaked)
    assert f"Without the {len(leaked)} images" in page
