"""From a recipe's sampling and a real data set to expected counts; and what is said about what can't be done."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.config.sampling import Sampling
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.row_reader import load_index
from pipeline.loader import Loader
from pipeline.loader.sampling.counts import ExpectedCounts
from pipeline.loader.sampling.mixture import ONE
from pipeline.loader.sampling.plan import expected_counts
from pipeline.training import TrainOptions, train
from pipeline.training.job import TrainJob


def sample(uri: str, **fields: Any) -> ExpectedCounts:
    counts = expected_counts(uri, manifest.load(uri), Sampling(**fields))
    assert counts is not None
    return counts


def by_class(uri: str, expected: ExpectedCounts) -> np.ndarray:
    labels = load_index(uri, manifest.load(uri).split("train")).label
    return np.bincount(labels, weights=expected.units / ONE)


def test_without_sampling_there_is_nothing_to_count(digits_dataset: str) -> None:
    assert expected_counts(digits_dataset, manifest.load(digits_dataset), Sampling()) is None


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ("label < 3", lambda row: row["label"] < 3),
        ("1 < label <= 4 and width == 32", lambda row: 1 < row["label"] <= 4),
        ("class in ('3', '7') or label = 1", lambda row: row["label"] in (1, 3, 7)),
        ("NOT (class <> '5' AND label <> 6)", lambda row: row["label"] in (5, 6)),
        ("brightness > 80.5", lambda row: row["brightness"] > 80.5),
        ("bytes / (width * height) >= 0.8", lambda row: row["bytes"] / 1024 >= 0.8),
        ("endswith(key, '7') and repair == ''", lambda row: row["key"].endswith("7")),
        ("contains(key, '12')", lambda row: "12" in row["key"]),
        ("(label % 2 if bytes > 820 else 0) == 1", lambda row: row["label"] % 2 == 1 and row["bytes"] > 820),
        ("-label > -2", lambda row: row["label"] < 2),
    ],
)
def test_a_filter_takes_the_rows_that_fulfil_it(digits_dataset: str, where: str, passes: Any) -> None:
    split = manifest.load(digits_dataset).split("train")
    columns = ["key", "label", "height", "width", "bytes", "brightness"]
    rows = read_split_provenance(digits_dataset, split, columns).to_pylist()
    expected = [ONE if passes(row) else 0 for row in rows]
    assert sample(digits_dataset, where=where).units.tolist() == expected
    assert 0 < sum(expected) < len(rows) * ONE


def test_classes_are_balanced(digits_dataset: str) -> None:
    rows = manifest.load(digits_dataset).split("train").rows
    assert by_class(digits_dataset, sample(digits_dataset, class_balance=1.0)) == pytest.approx([rows / 10] * 10)
    uneven = "label != 3 or brightness > 85"
    before = by_class(digits_dataset, sample(digits_dataset, where=uneven))
    after = by_class(digits_dataset, sample(digits_dataset, where=uneven, class_balance=0.5))
    assert before[3] < before[4] / 2
    assert after == pytest.approx(np.sqrt(before) * before.sum() / np.sqrt(before).sum(), abs=0.6)
    weighted = sample(digits_dataset, where=uneven, class_balance=1.0, weights="bytes")  # also among weighted rows
    assert by_class(digits_dataset, weighted) == pytest.approx([before.sum() / 10] * 10, abs=0.1)


def test_weights_and_repeat_factors(digits_dataset: str) -> None:
    rows = manifest.load(digits_dataset).split("train").rows_per_class
    weighted = by_class(digits_dataset, sample(digits_dataset, weights="1 + 2 * (label == 1)"))
    assert weighted.sum() == pytest.approx(sum(rows))
    assert weighted[1] / weighted[2] == pytest.approx(3 * rows[1] / rows[2])
    repeated = by_class(digits_dataset, sample(digits_dataset, repeat="1.5 if label == 1 else 1"))
    assert repeated[[0, 2]].tolist() == [rows[0], rows[2]]
    assert repeated[1] == pytest.approx(1.5 * rows[1], abs=0.5)
    below = by_class(digits_dataset, sample(digits_dataset, where="label != 3 or brightness > 85", repeat_below=0.1))
    kept = by_class(digits_dataset, sample(digits_dataset, where="label != 3 or brightness > 85"))
    assert below[3] == pytest.approx(kept[3] * np.sqrt(0.1 * kept.sum() / kept[3]), abs=0.6)
    tenth = sample(digits_dataset, share=0.1, class_balance=1.0)
    assert by_class(digits_dataset, tenth) == pytest.approx([sum(rows) / 100] * 10, abs=0.1)


def test_a_table_gives_weights_by_key_and_is_part_of_a_runs_identity(digits_dataset: str, tmp_path: Path) -> None:
    split = manifest.load(digits_dataset).split("train")
    keys = read_split_provenance(digits_dataset, split, ["key"])["key"].to_pylist()
    table = tmp_path / "weights.csv"
    lines = [f"{key},{number % 3}" for number, key in enumerate(keys)]
    table.write_text("\n".join(["key,weights", *reversed(lines), "another,7"]))
    units = sample(digits_dataset, weights=str(table)).units / ONE
    assert units == pytest.approx(np.arange(len(keys)) % 3, abs=0.01)

    recipe = make_recipe("digits", **{"sampling.weights": str(table)})
    job = TrainJob(digits_dataset, str(tmp_path / "run"), recipe)
    before = job.identity("0")
    table.write_text(table.read_text() + "\nyet-another,1")
    assert job.identity("0") != before

    table.write_text("\n".join(["key,weights", *lines[1:]]))
    with pytest.raises(RecipeError, match=rf"has no weights for 1 row, such as {keys[0]}; add what is missing"):
        sample(digits_dataset, weights=str(table))
    table.write_text("\n".join(["key,weights", *lines, lines[0]]))
    with pytest.raises(RecipeError, match="1 line too many, of keys that have one already"):
        sample(digits_dataset, weights=str(table))
    table.write_text("name,weight\na,1")
    with pytest.raises(RecipeError, match="has the columns name, weight; key and weights are needed"):
        sample(digits_dataset, weights=str(table))
    table.write_text("key,weights\na,many")
    with pytest.raises(RecipeError, match="is no table"):
        sample(digits_dataset, weights=str(table))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"where": "width >= 200"}, "no row passes; width lies in 32 to 32"),
        ({"where": "class == 'x'"}, "no row passes; class is '0', '1'"),
        ({"where": "widht > 2"}, "has no column widht; did you mean width"),
        ({"where": "width"}, "is no condition"),
        ({"where": "class > 3"}, "class is a text and 3 a number"),
        ({"where": "width and label"}, "width is a number, not a condition"),
        ({"where": "width in 3"}, "`in` takes a list"),
        ({"where": "startswith(width, 'a')"}, "takes a column of texts"),
        ({"where": "width is 3"}, "`is` is for null"),
        ({"where": "width == null"}, "null has no value"),
        ({"weights": "class"}, "gives texts"),
        ({"weights": "class + 1"}, "class is a text, and a number is needed"),
        ({"weights": "label - 5"}, r"is -\d for .* other rows; each must be a number of 0 or more"),
        ({"weights": "1 / label"}, "is inf for"),
        ({"weights": "0 * label"}, "leave no row"),
        ({"weights": "absent.csv"}, "no such file"),
        ({"repeat": "1e9"}, "would come 1e[+]09 times"),
        ({"share": 1000.0, "repeat": "1000"}, "is too long"),
    ],
)
def test_what_can_not_be_sampled_is_said_in_one_line(digits_dataset: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        sample(digits_dataset, **fields)
    assert "\n" not in str(error.value)
    assert "sampling" in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["width >=", "", "((", "__import__('os')", "width.real > 1", "lambda: 1", "[x for x in key]", "1j", "width; 1"],
)
def test_expressions_that_are_none_are_refused_with_the_recipe(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^sampling.where="):
        Sampling(where=text)


@pytest.mark.parametrize("residency", ["stream", "resident"])
def test_the_loader_samples_training_and_not_evaluation(digits_dataset: str, residency: str) -> None:
    changes = {
        "residency": residency,
        "sampling.where": "label < 3",
        "sampling.repeat": "1.5",
        "global_batch_size": 100,
    }
    loader, rows = Loader(digits_dataset, "digits", seed=1, **changes), manifest.load(digits_dataset).split("train")
    batches = list(loader)
    assert len(batches) == len(loader) == -(-round(1.5 * sum(rows.rows_per_class[:3])) // 100)
    assert {label for batch in batches for label in batch.labels.tolist()} == {0, 1, 2}
    images = {(row, batch.images[at].numpy().tobytes()) for batch in batches for at, row in enumerate(batch.rows)}
    assert len(images) > len({row for row, _ in images})  # copies are augmented differently
    half, again = list(batches), Loader(digits_dataset, "digits", seed=1, **changes)
    for batch in again:
        if batch.index == 1:
            break
    resumed = Loader(digits_dataset, "digits", seed=1, **changes)
    resumed.load_state_dict(again.state_dict())
    for expected, found in zip(half[2:], resumed, strict=True):
        assert np.array_equal(expected.rows, found.rows)
        assert expected.images.equal(found.images)
    whole = Loader(digits_dataset, "digits", "val", **changes)
    assert sum(len(batch.rows) for batch in whole) == manifest.load(digits_dataset).split("val").rows


@pytest.mark.slow
def test_a_sampled_run_trains_on_what_it_says(digits_dataset: str, tmp_path: Path, ray_variables: None) -> None:
    recipe = make_recipe("digits", epochs=2, **{"sampling.where": "label < 5", "sampling.class_balance": 1.0})
    result = train(digits_dataset, tmp_path / "run", recipe, workers=0, options=TrainOptions(trace_rows=True))
    lines = [json.loads(line) for each in (tmp_path / "run" / "rows").iterdir() for line in each.open()]
    split = manifest.load(digits_dataset).split("train")
    table = read_split_provenance(digits_dataset, split, ["key", "label"])
    labels = dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))
    seen = np.bincount([labels[key] for line in lines for key in line["keys"]])
    rows = sum(split.rows_per_class[:5])
    assert result["sampling"]["epoch_rows"] == rows
    assert list(result["sampling"]["expected_per_class"].values()) == pytest.approx([rows / 5] * 5 + [0] * 5, abs=0.01)
    assert seen.sum() == 2 * rows
    assert np.abs(seen - 2 * rows / 5).max() < 2
    assert result["val"]["rows"] == manifest.load(digits_dataset).split("val").rows  # evaluation isn't sampled
    assert result["sampling"]["said"] == "where=label < 5, class_balance=1.0"
    assert "class_balance=1.0" in (tmp_path / "run" / "report.html").read_text()


def test_the_loader_takes_a_filter_for_any_split_and_sampling_as_a_mapping(digits_dataset: str) -> None:
    val = manifest.load(digits_dataset).split("val")
    filtered = Loader(digits_dataset, "digits", "val", where="label in (3, 4)", global_batch_size=30)
    batches = list(filtered)
    rows = np.concatenate([batch.rows for batch in batches])
    labels = load_index(digits_dataset, val).label
    assert rows.tolist() == np.flatnonzero((labels == 3) | (labels == 4)).tolist()
    assert filtered.num_rows == len(rows)
    train = Loader(digits_dataset, "digits", where="label < 5", sampling={"class_balance": 1.0, "share": 0.2})
    assert train.recipe.sampling == Sampling(where="label < 5", class_balance=1.0, share=0.2)
    assert {label for batch in train for label in batch.labels.tolist()} == {0, 1, 2, 3, 4}
    with pytest.raises(RecipeError, match=r"where='label > 10': no row passes; label lies in 0 to 9"):
        Loader(digits_dataset, "digits", "val", where="label > 10")
    with pytest.raises(RecipeError, match=r"sampling\.balance"):
        Loader(digits_dataset, "digits", sampling={"balance": 1.0})


def test_a_state_of_other_sampling_is_refused(digits_dataset: str) -> None:
    state = Loader(digits_dataset, "digits").state_dict()
    del state["settings"]["sampling"]  # as earlier versions saved it
    Loader(digits_dataset, "digits").load_state_dict(state)
    with pytest.raises(CheckpointError, match="sampling="):
        Loader(digits_dataset, "digits", sampling={"share": 0.5}).load_state_dict(state)
    with pytest.raises(CheckpointError, match="where="):
        Loader(digits_dataset, "digits", "val", where="label < 5").load_state_dict(
            Loader(digits_dataset, "digits", "val").state_dict()
        )
