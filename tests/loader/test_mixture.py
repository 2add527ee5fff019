"""Several data sets in stated shares: exact in every step, for any shares and any number of workers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.sampling import Sampling
from pipeline.core.errors import DatasetError, RecipeError
from pipeline.dataset import manifest, open_dataset, parquet
from pipeline.dataset.mixture import mix
from pipeline.dataset.row_reader import load_index
from pipeline.ingestion.sources import open_source
from pipeline.ingestion.verify import verify_dataset
from pipeline.loader import Loader
from pipeline.loader.sample_order import Order
from pipeline.loader.sampling.counts import whole_total
from pipeline.loader.sampling.mixture import ONE, Mixture
from pipeline.loader.sampling.plan import expected_counts
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tree

shares_of_three = st.tuples(*[st.sampled_from([0.0, 0.01, 1 / 3, 0.5, 1.0, 7.0])] * 3).filter(any)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    steps = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=4)))
    stages = [(step, draw(shares_of_three)) for step in steps]
    whole = tuple((step, tuple(share / sum(shares) for share in shares)) for step, shares in stages)
    return Mixture((2, 1, 3), whole)


@settings(max_examples=100, deadline=None)
@given(mixtures(), st.integers(0, 50), st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_rows_of_a_source_up_to_any_step_are_within_one_of_what_its_shares_say(
    mixture: Mixture, first_step: int, sizes: list[int]
) -> None:
    check_steps(mixture, first_step, sizes)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(mixtures(), st.integers(0, 100), st.lists(st.integers(1, 40), min_size=1, max_size=100))
def test_a_thousand_mixtures_are_within_one(mixture: Mixture, first_step: int, sizes: list[int]) -> None:
    check_steps(mixture, first_step, sizes)


def check_steps(mixture: Mixture, first_step: int, sizes: list[int]) -> None:
    counts = mixture.step_counts(first_step, np.array(sizes))
    shares = mixture.shares(first_step + np.arange(len(sizes)))
    assert (counts >= 0).all()
    assert counts.sum(axis=1).tolist() == sizes
    assert (shares.sum(axis=1) == ONE).all()
    expected = np.cumsum(shares * np.array(sizes)[:, None], axis=0)
    given_rows = np.cumsum(counts, axis=0)
    assert (given_rows >= expected // ONE).all()
    assert (given_rows <= -(-expected // ONE)).all()


@settings(max_examples=50, deadline=None)
@given(mixtures(), st.integers(0, 4), st.integers(5, 30), st.integers(1, 3), st.sampled_from([1, 2]), st.booleans())
def test_global_batches_are_the_same_for_every_world_size_and_hold_the_shares(
    mixture: Mixture, epoch: int, images: int, world_size: int, repeats: int, pairs: bool
) -> None:
    groups = (10, 15, 20, 5, 30, 7)
    part = np.repeat([0, 1, 2], [25, 20, 42])
    expected = whole_total(np.where(np.arange(87) % 4 == 3, 0.0, 1.0), (np.arange(87) % 3).astype(np.int32))
    order = Order(groups, 5, images * repeats, 2, pairs, repeats, 1, replace(expected, mixture=mixture))
    round_of = epoch * repeats
    steps = range(round_of * order.steps_per_epoch, (round_of + repeats) * order.steps_per_epoch)
    sizes = np.array([order.batch_size(step) // repeats for step in steps])
    taken = mixture.step_counts(steps.start, sizes)
    seen: list[tuple[int, int]] = []
    for step, counts in zip(steps, taken, strict=True):
        rows = order.rows(step)
        parts = [order.rows(step, world_size, rank) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), rows)
        assert np.array_equal(np.bincount(part[rows], minlength=3), repeats * counts)
        epochs = order.epochs(step)
        assert isinstance(epochs, np.ndarray)
        seen += zip(rows.tolist(), epochs.tolist(), strict=True)
    assert len(set(seen)) == len(seen)  # no two copies are augmented alike
    assert all(row % 4 != 3 for row, _ in seen)
    counts = np.bincount([row for row, _ in seen], minlength=87)[np.arange(87) % 4 != 3]
    for source in range(3):  # each row of a source as often as the others, within one
        of_source = counts[part[np.arange(87) % 4 != 3] == source]
        assert of_source.max() - of_source.min() <= repeats


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two data sets of the same classes, 51 and 15 training rows."""
    root = tmp_path_factory.mktemp("mixture")
    for name, rows in (("photos", 17), ("drawings", 5)):
        tree = make_tree(root / "raw" / name, per_class=rows)
        ingest_here(open_source(str(tree), spool=str(root / "spool")), str(root / name), shard_size=9000)
    return {name: str(root / name) for name in ("photos", "drawings")}


def test_a_mixture_is_a_data_set_whose_files_stay_where_they_are(two: dict[str, str], tmp_path: Path) -> None:
    uri = str(tmp_path / "mixed")
    mixed = mix(two, uri)
    parts = {name: manifest.load(uri) for name, uri in two.items()}
    assert [path.name for path in (tmp_path / "mixed").iterdir()] == ["manifest.json"]
    data = open_dataset(tmp_path / "mixed")
    assert data.manifest == mixed
    assert len(data["train"]) == sum(part.split("train").rows for part in parts.values())
    first = open_dataset(two["photos"])["train"]
    other = open_dataset(two["drawings"])["train"]
    assert np.array_equal(data["train"].labels, np.append(first.labels, other.labels))
    assert data["train"][len(first) + 2][0].tobytes() == other[2][0].tobytes()
    keys = parquet.read_rows(uri, mixed.split("train"), np.array([1, len(first)]))["key"].to_pylist()
    assert [key.split("/")[0] for key in keys] == ["photos", "drawings"]
    assert len(np.unique(load_index(uri, mixed.split("train")).key_hash)) == len(data["train"])
    assert verify_dataset(str(tmp_path / "mixed")) == []
    assert mix(two, str(tmp_path / "mixed")).digest == mixed.digest  # the same again
    with pytest.raises(DatasetError, match="holds another data set"):
        mix(dict(reversed(two.items())), str(tmp_path / "mixed"))


def test_the_digest_of_a_mixture_is_of_its_contents_not_of_places(two: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(two["photos"])
    mixed, moved = mix(two, str(tmp_path / "a")), mix({**two, "photos": str(tmp_path / "moved")}, str(tmp_path / "b"))
    assert mixed.digest == moved.digest
    values = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert values["sources"]["photos"]["uri"] == two["photos"]
    assert "sources" not in json.loads((Path(two["photos"]) / "manifest.json").read_text())


def test_a_mixture_is_trained_on_in_its_shares(two: dict[str, str], tmp_path: Path) -> None:
    uri = str(tmp_path / "mixed")
    mix(two, uri)
    shares = "photos=1, drawings=3; 6: photos=1, drawings=0"
    changes = {
        "global_batch_size": 11,
        "image_size_px": 16,
        "sampling.where": "label < 2",
        "augment.flip_probability": 0.5,
    }
    loader = Loader(uri, "digits", **{**changes, "sampling.shares": shares})
    assert loader.num_rows == 66
    found = [[int((np.asarray(batch.rows) >= 51).sum()) for batch in loader] for _ in range(2)]
    assert len(found[0]) == len(loader) == 4  # 44 rows pass the filter
    expected = np.cumsum([11 * 0.75 * (max(0, 1 - step / 6)) for step in range(8)])
    assert np.abs(np.cumsum(found[0]) - expected[:4]).max() < 1
    assert np.abs(np.cumsum(found[1]) - (expected[4:] - expected[3])).max() < 1
    by_source = expected_counts(uri, manifest.load(uri), Sampling(where="source == 'drawings'"))
    assert by_source is not None
    assert by_source.num_samples == 15


def test_a_sampled_mixture_goes_on_with_another_number_of_ranks(two: dict[str, str], tmp_path: Path) -> None:
    """Left on three ranks after four steps, and continued on two: the batches of one rank, row by row."""
    mix(two, str(tmp_path / "mixed"))
    sampling = {"shares": "photos=1, drawings=2", "class_balance": 1.0, "repeat": "1.5"}

    def loaders(world_size: int) -> list[Loader]:
        ranks = range(world_size)
        settings = {"global_batch_size": 12, "image_size_px": 16, "seed": 1, "sampling": sampling}
        return [Loader(str(tmp_path / "mixed"), "digits", rank=r, world_size=world_size, **settings) for r in ranks]

    def steps(of: list[Loader]) -> Iterator[list[int]]:
        for parts in zip(*of, strict=True):
            yield np.concatenate([batch.rows for batch in parts]).tolist()

    whole, three, two_ranks = list(steps(loaders(1))), loaders(3), loaders(2)
    begun = list(islice(steps(three), 4))
    for loader in two_ranks:
        loader.load_state_dict(three[0].state_dict())
    assert begun + list(steps(two_ranks)) == whole
    assert len(whole) == 9  # 1.5 times 66 rows


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("photos=1", "says nothing of drawings; a share of 0 leaves a source out"),
        ("photos=1, drawing=1", "'drawing' is unknown; did you mean drawings"),
        ("photos=1, drawings", "'drawings' is no source with a share"),
        ("photos=1, drawings=-1", "'drawings=-1' is no source with a share of 0 or more"),
        ("photos=0, drawings=0", "one share must be above 0"),
        ("photos=1, photos=1", "photos is named twice"),
        ("photos=1, drawings=1; drawings=1, photos=2", "says no step"),
        ("photos=1, drawings=1; x: photos=1, drawings=1", "'x' is no step"),
        ("photos=1, drawings=1; 0: photos=1, drawings=1", "step 0 doesn't come after step 0"),
        ("photos=1, drawings=1; 5: photos=1", "step 5 must name photos, drawings, each once"),
        ("", "is no source with a share"),
    ],
)
def test_shares_that_can_not_be_are_said_in_one_line(
    two: dict[str, str], tmp_path: Path, shares: str, message: str
) -> None:
    mix(two, str(tmp_path / "mixed"))
    with pytest.raises(RecipeError, match=message) as error:
        Loader(str(tmp_path / "mixed"), "digits", **{"sampling.shares": shares})
    assert "\n" not in str(error.value)


def test_what_can_not_be_mixed_is_refused(two: dict[str, str], digits_dataset: str, tmp_path: Path) -> None:
    out = str(tmp_path / "mixed")
    with pytest.raises(DatasetError, match="photos and digits have different classes"):
        mix({"photos": two["photos"], "digits": digits_dataset}, out)
    with pytest.raises(DatasetError, match="needs two data sets or more; 1 given"):
        mix({"photos": two["photos"]}, out)
    with pytest.raises(DatasetError, match="'a b' can be no source's name"):
        mix({"a b": two["photos"], "drawings": two["drawings"]}, out)
    with pytest.raises(DatasetError, match="some sources are local and some in object storage"):
        mix({"photos": two["photos"], "drawings": "s3://bucket/drawings"}, out)
    with pytest.raises(DatasetError, match="no finished data set"):
        mix({"photos": two["photos"], "drawings": str(tmp_path)}, out)
    with pytest.raises(RecipeError, match="isn't made of several data sets; make a mixture"):
        Loader(two["photos"], "digits", **{"sampling.shares": "photos=1"})
    mix(two, out)
    with pytest.raises(DatasetError, match="again is a mixture itself"):
        mix({"photos": two["photos"], "again": out}, str(tmp_path / "more"))
    with pytest.raises(RecipeError, match="no row of drawings is left; give it a share of 0"):
        Loader(out, "digits", **{"sampling.shares": "photos=1, drawings=1", "sampling.where": "source == 'photos'"})
