"""Wrong labels that were planted are found; right ones are left in peace."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import RecipeError
from pipeline.evaluation.analysis.label_issues import find_label_issues, out_of_sample_probabilities, write_label_issues


def clusters(rows: int = 3000, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    centres = 4 * generator.standard_normal((classes, 12))
    return (centres[labels] + generator.standard_normal((rows, 12))).astype(np.float32), labels


def test_planted_wrong_labels_come_first() -> None:
    features, truth = clusters()
    generator = np.random.default_rng(1)
    wrong = generator.random(len(truth)) < 0.05
    labels = np.where(wrong, (truth + generator.integers(1, 6, len(truth))) % 6, truth)
    found = find_label_issues(out_of_sample_probabilities(features, labels, 6), labels)
    hits = np.array([wrong[each.index] for each in found])
    assert hits.sum() / wrong.sum() > 0.9
    assert hits.mean() > 0.97
    assert all(each.suggested == truth[each.index] for each in found if wrong[each.index])
    assert [each.belief for each in found] == sorted(each.belief for each in found)
    assert all(each.label == labels[each.index] for each in found)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    features, labels = clusters()
    assert len(find_label_issues(out_of_sample_probabilities(features, labels, 6), labels)) < 5


def test_a_row_is_judged_by_a_classifier_that_did_not_see_it() -> None:
    """Random labels of random features can't be known: a classifier that had seen them would believe many."""
    generator = np.random.default_rng(0)
    features, labels = generator.standard_normal((400, 300)).astype(np.float32), generator.integers(0, 2, 400)
    probabilities = out_of_sample_probabilities(features, labels, 2)
    assert abs((probabilities.argmax(axis=1) == labels).mean() - 0.5) < 0.1


def test_a_class_with_too_few_rows_is_named() -> None:
    features, labels = clusters(60)
    labels[:] = 0
    with pytest.raises(RecipeError, match=r"class number 1 has 0 of the examined rows, 5 are needed"):
        out_of_sample_probabilities(features, labels, 6)


def test_the_table_has_every_doubt_in_order(tmp_path: object) -> None:
    features, labels = clusters(600)
    labels[:30] = (labels[:30] + 1) % 6
    found = find_label_issues(out_of_sample_probabilities(features, labels, 6), labels)
    rows, keys = np.arange(600) + 1000, [f"k{n}" for n in range(600)]
    table = pq.read_table(write_label_issues(str(tmp_path), found, rows, keys))
    assert table["key"].to_pylist() == [keys[each.index] for each in found]
    assert table["row"].to_pylist() == [1000 + each.index for each in found]
