"""evaluate, verify and compare as a user calls them, and the job that calls the same functions."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.core.errors import CertificateError, ClusterError, RecipeError
from pipeline.evaluation import EvaluateOptions, Workers, compare, evaluate, load_model, verify
from pipeline.evaluation.comparison import verdict
from pipeline.evaluation.output_files import finite, write_metrics
from tests.support.jobs import call_job, one_line_error
from tests.support.trained.predictions import evaluated


def test_evaluate_returns_the_metrics_and_writes_every_file(evaluation: str) -> None:
    values = json.loads(Path(evaluation, "metrics.json").read_text())
    assert values["metrics"]["rows"] == values["certificate"]["rows"] == 359
    assert values["temperature"]["fitted_on"] == 144  # the held-out part of train
    assert {path.name for path in Path(evaluation).iterdir()} >= {
        "metrics.json", "predictions.parquet", "evaluation.html", "MODEL_CARD.md"
    }  # fmt: skip
    assert verify(evaluation).digest == values["certificate"]["digest"]


def test_what_is_out_of_range_is_refused_before_anything_is_read(trained: str, digits_dataset: str) -> None:
    for wrong, message in (
        ({"severities": (1, 6)}, "severities=1 6 must be 1 to 5"),
        ({"robustness_rows": -1}, "robustness-rows=-1 must be 0"),
        ({"label_rows": 0}, "label-rows=0 must be 1 or more"),
    ):
        with pytest.raises(RecipeError, match=message):
            EvaluateOptions(**wrong)
    with pytest.raises(RecipeError, match=r"workers=-1 must be 0 \(this process\) or more"):
        evaluate(trained, digits_dataset, workers=-1)


@pytest.fixture
def volta(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has a GPU that the installed torch has no code for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92300)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")


@pytest.mark.usefixtures("volta")
def test_a_gpu_that_torch_has_no_code_for_is_refused_and_left_alone_with_device_cpu(
    trained: str, digits_dataset: str, evaluation: str, tmp_path: Path
) -> None:
    refused = r"^Tesla V100 \(sm_70\): torch was built for sm_75 .*; install .*cpu$"
    with pytest.raises(ClusterError, match=refused):
        evaluate(trained, digits_dataset, tmp_path, workers=0)
    with pytest.raises(ClusterError, match=refused):
        load_model(trained)
    assert not (tmp_path / "predictions.parquet").exists()
    evaluate(trained, digits_dataset, tmp_path, workers=Workers(0, "cpu"))
    same = Path(evaluation, "predictions.parquet").read_bytes()
    assert (tmp_path / "predictions.parquet").read_bytes() == same


def test_metrics_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    write_metrics(str(tmp_path), {"loss": float("nan"), "each": [1.5, float("inf")], "rows": (3,)})
    text = (tmp_path / "metrics.json").read_text()
    refuse = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    assert json.loads(text, **refuse) == {"loss": None, "each": [1.5, None], "rows": [3]}
    assert finite({"a": {"b": float("-inf")}}) == {"a": {"b": None}}


def test_two_evaluations_are_compared_row_by_row(
    trained: str, digits_dataset: str, tree_dataset: str, evaluation: str, tmp_path: Path
) -> None:
    flipped = tmp_path / "flip"
    evaluated(trained, digits_dataset, flipped, views="flip")  # a mirrored digit is another digit
    table = pq.read_table(flipped / "predictions.parquet")
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    pq.write_table(shuffled, flipped / "predictions.parquet")
    values = compare(evaluation, flipped, digits_dataset, tmp_path)
    assert values == json.loads((tmp_path / "compare.json").read_text())
    assert values["split"] == "val"
    assert values["both"] + values["only_first"] + values["only_second"] + values["neither"] == 359
    assert values["top1"][0] - values["top1"][1] == pytest.approx((len(values["lost"]) - len(values["won"])) / 359)
    assert sum(line["lost"] for line in values["per_class"]) == values["only_first"] == len(values["lost"])
    assert verdict(values).startswith("A is better")
    assert "may be chance" in verdict({**values, "p": 0.3})
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<figure title") == min(21, len(values["lost"])) + min(21, len(values["won"]))
    assert compare(trained, trained, digits_dataset, tmp_path)["split"] == "train"  # what the run held out
    with pytest.raises(CertificateError, match="A and B were evaluated on other rows"):
        compare(trained, trained, tree_dataset, tmp_path)
    pq.write_table(shuffled.slice(2), flipped / "predictions.parquet")
    with pytest.raises(CertificateError, match=r"missing: .* \(2\)"):
        compare(evaluation, flipped, digits_dataset, tmp_path)


@pytest.mark.slow
def test_the_job_evaluates_verifies_and_compares(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ["--checkpoint", trained, "--data", digits_dataset, "--out", out, "--full", "--severities", "3"]
    finished = call_job("evaluate", *arguments, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    values = json.loads(Path(out, "metrics.json").read_text())
    assert values["temperature"]["fitted_on"] == 144
    assert len(values["robustness"]) == 6
    assert {line["method"] for line in values["sanity"]} == {"Grad-CAM", "integrated gradients"}
    assert values["label_problems"]["rows"] == 1438
    assert pq.read_table(Path(out, "label-problems.parquet")).num_rows == values["label_problems"]["found"]
    finished = call_job("evaluate", "--verify", out, cwd=tmp_path)
    assert "359 rows, each once; certificate" in finished.stdout, finished.stderr
    finished = call_job("evaluate", "--compare", out, trained, "--data", digits_dataset, cwd=tmp_path)
    assert "don't cover these 359 rows" in one_line_error(finished)
    assert "give a finished run" in one_line_error(call_job("evaluate", cwd=tmp_path))
