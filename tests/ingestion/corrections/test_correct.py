"""Verdicts of people become a version: what they say is done, nothing else, and later ingests keep to it."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.core.errors import DatasetError, PipelineError, SourceError
from pipeline.dataset.edits import CORRECTIONS_SCHEMA, DELETIONS_SCHEMA, read_edits
from pipeline.dataset.manifest import load
from pipeline.dataset.mixture import mix
from pipeline.dataset.parquet import read_provenance, read_split_provenance
from pipeline.ingestion import VerdictCounts, correct, ingest
from pipeline.ingestion.changes.state import STATE_FOLDER, read_pixels, read_state
from pipeline.ingestion.corrections import run
from pipeline.ingestion.corrections.reviewed import removed_keys, reviewed_rows
from pipeline.ingestion.sources import open_source
from pipeline.ingestion.verify import verify_dataset
from tests.support.jobs import call_job, one_line_error
from tests.support.pictures.datasets import copied, ingest_here
from tests.support.pictures.images import make_tree, tree_files

Labels = dict[tuple[str, str], str]
ANTS = [f"train/ant/{number:03d}.jpg" for number in range(6)]
BEES = [f"train/bee/{number:03d}.jpg" for number in range(6)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source `raw`, six images of each of three classes in train and val, and its data set `v0`."""
    folder = tmp_path_factory.mktemp("photos")
    ingest_here(open_source(str(make_tree(folder / "raw")), spool=str(folder)), str(folder / "v0"), shard_size=4000)
    return folder


@pytest.fixture
def parent(photos: Path, tmp_path: Path) -> str:
    shutil.copytree(photos, tmp_path / "photos")
    return str(tmp_path / "photos" / "v0")


def written(path: Path, verdicts: Mapping[str, str], split: str = "train") -> str:
    """Writes {key: verdict} as a CSV."""
    lines = [f"{split},{key},{verdict}" for key, verdict in verdicts.items()]
    path.write_text("\n".join(["split,key,verdict", *lines]) + "\n")
    return str(path)


def labels_of(uri: str) -> Labels:
    data = load(uri)
    table = read_provenance(uri, data, ["key", "label"]).to_pydict()
    names = [data.classes[label] for label in table["label"]]
    return {(split, key): name for split, key, name in zip(table["split"], table["key"], names, strict=True)}


VERDICTS = {ANTS[0]: "bee", ANTS[1]: "remove", BEES[2]: "keep", BEES[3]: "cow", BEES[4]: ""}


def test_verdicts_are_followed_and_nothing_else_changes(parent: str, tmp_path: Path) -> None:
    before, files_before = labels_of(parent), tree_files(Path(parent))
    out = str(Path(parent).parent / "v1")
    done = correct(written(tmp_path / "a.csv", VERDICTS), parent, out)
    assert done.verdicts == VerdictCounts(relabelled=2, removed=1, kept=1)
    expected = {**before, ("train", ANTS[0]): "bee", ("train", BEES[3]): "cow"}
    del expected["train", ANTS[1]]
    assert labels_of(out) == expected
    assert done.manifest.splits["train"].rows_per_class == (4, 6, 7)
    assert verify_dataset(out) == []
    assert tree_files(Path(parent)) == files_before
    version = load(out).version
    assert version is not None
    assert read_edits(out, version.deletions, DELETIONS_SCHEMA)["reason"].to_pylist() == ["corrected: removed"]
    said = read_edits(out, version.corrections, CORRECTIONS_SCHEMA)
    reasons = dict(zip(said["key"].to_pylist(), said["reason"].to_pylist(), strict=True))
    assert reasons == {ANTS[0]: "corrected: was ant", BEES[3]: "corrected: was bee", BEES[2]: "corrected: kept"}
    train = done.manifest.split("train")
    keys = read_provenance(out, done.manifest, ["key"])["key"].to_pylist()
    assert {keys[row] for row in reviewed_rows(out, train)} == {ANTS[0], BEES[2], BEES[3]}
    assert removed_keys(out, train).to_pylist() == [ANTS[1]]


def test_rows_that_were_looked_at_are_counted_without_those_that_are_left_out(parent: str, tmp_path: Path) -> None:
    train = load(parent).split("train")
    assert len(train.shards) > 1
    keys = read_split_provenance(parent, train, ["key"])["key"].to_pylist()
    done = correct(written(tmp_path / "a.csv", {keys[0]: "remove", keys[-1]: "keep"}), parent, parent + "-corrected")
    assert reviewed_rows(done.uri, done.manifest.split("train")).tolist() == [len(keys) - 2]


def test_who_decided_when_in_which_order_and_where_does_not_change_the_digest(parent: str, tmp_path: Path) -> None:
    place = Path(parent).parent
    first = correct(written(tmp_path / "a.csv", VERDICTS), parent, place / "v1")
    lines = [f"{key};{verdict};somebody;{number}" for number, (key, verdict) in enumerate(VERDICTS.items())]
    text = "\r\n".join(["key;verdict;who;when", *lines[::-1]])
    (tmp_path / "b.csv").write_bytes(text.encode("utf-16"))
    assert correct(tmp_path / "b.csv", parent, place / "elsewhere").manifest.digest == first.manifest.digest
    shutil.copytree(place, tmp_path / "moved")
    again = correct(tmp_path / "b.csv", tmp_path / "moved" / "v0", tmp_path / "moved" / "v2")
    assert again.manifest.digest == first.manifest.digest


def test_statistics_are_those_of_the_rows_that_are_left(parent: str, tmp_path: Path) -> None:
    """A parent without recorded state has them computed anew, from the images."""
    file, place = written(tmp_path / "a.csv", VERDICTS), Path(parent).parent
    first = correct(file, parent, place / "v1")
    pixels = read_pixels(first.uri)
    assert pixels is not None
    assert pixels.histogram[:256].sum() == first.manifest.quality["num_pixels"]
    assert first.manifest.quality["num_pixels"] < load(parent).quality["num_pixels"]
    assert read_state(first.uri).equals(read_state(parent))
    shutil.rmtree(Path(parent) / STATE_FOLDER)
    assert correct(file, parent, place / "v2").manifest.digest == first.manifest.digest


def test_verdicts_that_were_followed_already_change_nothing(parent: str, tmp_path: Path) -> None:
    place, file = Path(parent).parent, tmp_path / "a.csv"
    lines = [f"{key},{key.split('/')[1]},{verdict}" for key, verdict in VERDICTS.items()]
    file.write_text("\n".join(["key,class,verdict", *lines]))
    first = correct(file, parent, place / "v1")
    second = correct(file, first.uri, place / "v2")
    assert second.verdicts == VerdictCounts(as_before=4)
    assert labels_of(second.uri) == labels_of(first.uri)
    third = correct(written(file, {ANTS[0]: "cow", ANTS[2]: "keep"}), second.uri, place / "v3")
    assert third.verdicts == VerdictCounts(relabelled=1, kept=1)
    assert labels_of(third.uri)["train", ANTS[0]] == "cow"
    assert labels_of(third.uri)["train", BEES[3]] == "cow"


def test_a_later_ingest_keeps_to_the_verdicts_until_the_source_says_something_new(parent: str, tmp_path: Path) -> None:
    place = Path(parent).parent
    raw = place / "raw"
    correct(written(tmp_path / "a.csv", VERDICTS), parent, place / "v1")
    shutil.copy(raw / "val" / "cow" / "001.jpg", raw / "train" / "cow" / "new.jpg")
    ingest(raw, place / "v2", onto=place / "v1")
    assert labels_of(str(place / "v2")) == {**labels_of(str(place / "v1")), ("train", "train/cow/new.jpg"): "cow"}
    after = labels_of(str(place / "v2"))
    assert after["train", ANTS[0]] == "bee"
    assert ("train", ANTS[1]) not in after
    (raw / "train" / "ant" / "001.jpg").write_bytes((raw / "val" / "ant" / "002.jpg").read_bytes())  # other bytes
    ingest(raw, place / "v3", onto=place / "v2")
    assert labels_of(str(place / "v3"))["train", ANTS[1]] == "ant"


_VAL = [f"val/{name}/{number:03d}.jpg" for name in ("ant", "bee", "cow") for number in range(6)]
REFUSED = {
    "train,train/ant/0.jpg,,keep": "line 2: key 'train/ant/0.jpg' isn't in train; did you mean 'train/ant/00",
    ",nothing like it,,keep": "line 2: key 'nothing like it' isn't in the data set",
    f"trian,{ANTS[0]},,keep": "line 2: split 'trian' isn't in the data set; it holds train, val",
    f"val,{ANTS[0]},,keep": f"line 2: key '{ANTS[0]}' isn't in val",
    f"train,{ANTS[0]},,been": "line 2: verdict 'been' is neither keep nor remove nor a class; did you mean 'bee'?",
    f"train,{ANTS[0]},,zebra": "'zebra' is neither keep nor remove nor a class; the classes are ant, bee, cow",
    f"train,{ANTS[0]},,bee\n,{ANTS[0]},,bee": f"line 3: key '{ANTS[0]}' has a verdict in line 2 already",
    f"train,{ANTS[0]},bee,keep": f"line 2: key '{ANTS[0]}' is labelled 'ant' by now, and 'bee' in the file",
    f"train,{ANTS[0]},,been\n,b,,keep\n,{ANTS[1]},,bee": "2 of 3 verdicts can't be used, the first in line 2: ",
    "\n".join(f"train,{key},,remove" for key in ANTS): "class 'ant': the verdicts leave none of its 6 training images",
    "\n".join(f"val,{key},,remove" for key in _VAL): "the verdicts remove every row of val; keep some of them",
}


@pytest.mark.parametrize(("lines", "message"), REFUSED.items(), ids=range(len(REFUSED)))
def test_a_verdict_that_cannot_be_followed_is_named_in_one_line(
    parent: str, tmp_path: Path, lines: str, message: str
) -> None:
    (tmp_path / "a.csv").write_text(f"split,key,class,verdict\n{lines}\n")
    out = Path(parent).parent / "v1"
    with pytest.raises((SourceError, DatasetError)) as error:
        correct(tmp_path / "a.csv", parent, out)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_a_removed_image_is_not_kept_later(parent: str, tmp_path: Path) -> None:
    place = Path(parent).parent
    correct(written(tmp_path / "a.csv", VERDICTS), parent, place / "v1")
    with pytest.raises(SourceError, match=rf"line 2: key '{ANTS[1]}' was removed by an earlier verdict"):
        correct(written(tmp_path / "a.csv", {ANTS[1]: "keep"}), place / "v1", place / "v2")


def test_a_key_of_two_splits_needs_its_split(tmp_path: Path) -> None:
    index = open_source(str(make_tree(tmp_path / "raw")), spool=str(tmp_path))
    for split, table in index.splits.items():
        keys = [key.removeprefix(f"{split}/") for key in table["key"].to_pylist()]
        index.splits[split] = table.set_column(table.column_names.index("key"), table.schema.field("key"), [keys])
    ingest_here(index, str(tmp_path / "v0"))
    (tmp_path / "a.csv").write_text("key,verdict\nant/000.jpg,bee\n")
    with pytest.raises(SourceError, match=r"key 'ant/000\.jpg' is in train and in val; say which in a column 'split'"):
        correct(tmp_path / "a.csv", tmp_path / "v0", tmp_path / "v1")
    done = correct(written(tmp_path / "a.csv", {"ant/000.jpg": "bee"}, "val"), tmp_path / "v0", tmp_path / "v1")
    assert [each.rows_per_class for each in done.manifest.splits.values()] == [(6, 6, 6), (5, 7, 6)]


def test_places_that_cannot_be_are_refused(parent: str, tmp_path: Path) -> None:
    place, file = Path(parent).parent, written(tmp_path / "a.csv", VERDICTS)
    ingest_here(open_source(str(make_tree(tmp_path / "more", 2)), spool=str(tmp_path)), str(place / "other"))
    mix({"a": parent, "b": str(place / "other")}, str(tmp_path / "mixed"))
    with pytest.raises(DatasetError, match=r"is a mixture, whose data sets are corrected.*: a \(.*v0\), b \("):
        correct(file, tmp_path / "mixed", place / "v1")
    with pytest.raises(DatasetError, match="holds a finished data set already"):
        correct(file, parent, place / "other")
    with pytest.raises(DatasetError, match="a version lies beside its parent"):
        correct(file, parent, tmp_path / "v1")
    with pytest.raises(PipelineError, match="v9: no manifest"):
        correct(file, place / "v9", place / "v1")
    with pytest.raises(SourceError, match="no such file; give the CSV"):
        correct(tmp_path, parent, place / "v1")
    assert not (place / "v1").exists()


def test_an_interrupted_correction_is_finished_by_the_same_command(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, file = Path(parent).parent, written(tmp_path / "a.csv", VERDICTS)
    expected = correct(file, parent, place / "v1").manifest.digest

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "publish_manifest", ended)
        with pytest.raises(KeyboardInterrupt):
            correct(file, parent, place / "v2")
    assert os.listdir(place / "v2")
    with pytest.raises(DatasetError, match="holds an unfinished ingest with another source"):
        ingest(place / "raw", place / "v2", onto=parent)
    assert correct(file, parent, place / "v2").manifest.digest == expected
    assert verify_dataset(str(place / "v2")) == []


def test_a_data_set_in_a_bucket_is_corrected_there(parent: str, tmp_path: Path, s3: str) -> None:
    file = written(tmp_path / "a.csv", VERDICTS)
    expected = correct(file, parent, Path(parent).parent / "v1").manifest.digest
    done = correct(file, copied(parent, f"{s3}/corrected/v0"), f"{s3}/corrected/v1")
    assert done.manifest.digest == expected
    assert verify_dataset(f"{s3}/corrected/v1") == []


def test_the_job_says_what_the_verdicts_have_changed(parent: str, tmp_path: Path) -> None:
    place, file = Path(parent).parent, written(tmp_path / "a.csv", VERDICTS)
    arguments = ["ingest", "--correct", file, "--onto", parent]
    finished = call_job(*arguments, "--out", str(place / "v1"), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "relabelled  2 rows" in finished.stdout
    assert "removed     1 row" in finished.stdout
    assert "train       17 rows" in finished.stdout
    assert "--out is missing" in one_line_error(call_job(*arguments, cwd=tmp_path))
    wrong = call_job(*arguments, "--out", str(place / "v2"), "--source", str(place / "raw"), cwd=tmp_path)
    assert "--source means nothing with --correct" in one_line_error(wrong)
