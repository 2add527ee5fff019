"""Files that versions and ingests read back: one of another form is read, or refused in one line, never a traceback."""

import hashlib
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DatasetError
from pipeline.core.progress import silent
from pipeline.dataset.edits import CORRECTIONS_SCHEMA, DELETIONS_SCHEMA, read_edits
from pipeline.dataset.manifest import EditFile, load, load_stored
from pipeline.dataset.parquet import stored_provenance
from pipeline.ingestion import correct
from pipeline.ingestion.changes.removed import removed_sources
from pipeline.ingestion.changes.state import read_pixels, read_state, same_state
from pipeline.ingestion.plan import IngestSettings, plan_shards, settings_of
from pipeline.ingestion.quarantine import read_quarantine
from pipeline.ingestion.shard_task import ShardContext, finish_shard
from pipeline.ingestion.sources import open_source
from pipeline.ingestion.target import record_plan
from pipeline.storage import files, lease
from pipeline.versions import forget
from pipeline.versions.family import read_family
from pipeline.versions.removal import run
from pipeline.versions.removal.journal import Journal, Ready
from tests.support.damage import check_forms, message_of
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tree


class StoppedError(Exception):
    """Raised in place of a wait for another process."""


@pytest.fixture(scope="module")
def sound(made: Path) -> Callable[[str], tuple[Path, bytes]]:
    """Returns a function: (path, content) of the file that READERS calls so."""
    places = {name: _file(made, name) for name in READERS}
    contents = {name: place.read_bytes() for name, place in places.items()}
    return lambda name: (places[name], contents[name])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `photos` with v1, v2 (corrected), what is left of a dropped version, and an interrupted removal; and
    an unfinished ingest `out`."""
    tmp_path = tmp_path_factory.mktemp("state")
    tree = make_tree(tmp_path / "tree", per_class=5)
    (tree / "train/ant/text.jpg").write_bytes(b"I am text" * 30)
    index = open_source(str(tree), spool=str(tmp_path / "spool"))
    photos = tmp_path / "photos"
    ingest_here(index, str(photos / "v1"), shard_size=4000)
    verdicts = tmp_path / "verdicts.csv"
    verdicts.write_text("key,verdict\ntrain/ant/001.jpg,bee\ntrain/bee/002.jpg,remove\n")
    correct(verdicts, photos / "v1", photos / "v2")
    shutil.copytree(photos / "v2", photos / "v3")
    (photos / "v3/manifest.json").rename(photos / "v3/dropped.json")
    forget(photos, ["train/cow/000.jpg"])
    journal = Journal(str(photos))
    journal.begin(["train/cow/001.jpg"])
    name = journal.stage_removed_keys(["train/cow/001.jpg"])
    traces = journal.stage_traces("images", [bytes(range(256))])
    journal.write_ready(Ready([name, *traces], ["v1"], ["v1/gone"], ["train/cow/001.jpg"], {"v1": "x"}))
    journal.copy(journal.ready() or pytest.fail("no journal"))
    holder = {"owner": "x", "what": "it", "host": socket.gethostname(), "boot": lease._boot(), "pid": 1 << 22}
    files.write_json(str(photos / "_versions/lease.json"), {**holder, "ttl_seconds": 9.0, "beat": 0})
    context, plan = _context(index, tmp_path / "out")
    record_plan(str(tmp_path / "claimed"), _PLAN)
    for shard in plan[:1]:
        finish_shard(shard, index.splits, context, "none")
    return tmp_path


_PLAN = {"plan": "x", "source": "y", "settings": asdict(IngestSettings())}


def _context(index: Any, out: Path) -> tuple[ShardContext, list[Any]]:
    chosen = IngestSettings(shard_bytes=4000)
    return ShardContext("x", str(out), "file", index.classes, chosen), plan_shards(index, chosen)


def _read_edits(photos: Path, name: str, schema: pa.Schema) -> None:
    """Reads an edit file as if the manifest had the SHA-256 of its content: another release may have written both."""
    path = min((photos / "v2").glob(name))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    read_edits(str(photos / "v2"), EditFile(path.name, digest), schema).to_pylist()


def _read_pixels(photos: Path) -> None:
    if (pixels := read_pixels(str(photos / "v1"))) is not None:
        pixels.near.to_pylist()


def _read_state(photos: Path) -> None:
    state = read_state(str(photos / "v1"))
    state.to_pylist()
    assert len(same_state(state, state)) == state.num_rows


def _take_lease(photos: Path) -> None:
    def stop(*_: Any) -> None:
        raise StoppedError

    try:
        with lease.hold_lease(str(photos / "_versions/lease.json"), "it", stop):
            pass
    except StoppedError:
        pass


def _read_receipt(tmp_path: Path) -> None:
    context, plans = _context(open_source(str(tmp_path / "tree"), spool=str(tmp_path / "spool")), tmp_path / "out")
    if (receipt := context.trusted_receipt(plans[0])) is not None:
        assert receipt.shard["rows"] >= 0


def _removal(photos: Path) -> run._Removal:
    return run._Removal(str(photos), Journal(str(photos)), None, silent)


READERS: dict[str, Callable[[Path], Any]] = {
    "photos/v1/_state/sources.parquet": lambda tmp: _read_state(tmp / "photos"),
    "photos/v1/_state/near-duplicates.parquet": lambda tmp: _read_pixels(tmp / "photos"),
    "photos/v1/_state/histogram.parquet": lambda tmp: _read_pixels(tmp / "photos"),
    "photos/v1/quarantine.parquet": lambda tmp: read_quarantine(str(tmp / "photos/v1")).to_pylist(),
    "photos/v2/deletions*.parquet": lambda tmp: _read_edits(tmp / "photos", "deletions*", DELETIONS_SCHEMA),
    "photos/v2/corrections*.parquet": lambda tmp: _read_edits(tmp / "photos", "corrections*", CORRECTIONS_SCHEMA),
    "photos/v1/manifest.json": lambda tmp: read_family(str(tmp / "photos")),
    "photos/v3/dropped.json": lambda tmp: read_family(str(tmp / "photos")),
    "photos/removed.json": lambda tmp: removed_sources(str(tmp / "photos")),
    "photos/rewritten.json": lambda tmp: _removal(tmp / "photos")._rewritten(),
    "photos/_versions/forget/plan.json": lambda tmp: Journal(str(tmp / "photos")).begun(),
    "photos/_versions/forget/ready.json": lambda tmp: Journal(str(tmp / "photos")).ready(),
    "photos/_versions/forget/removed-keys.json": lambda tmp: Journal(str(tmp / "photos")).removed_keys(),
    "photos/_versions/forget/traces/*.npz": lambda tmp: Journal(str(tmp / "photos")).traces("images"),
    "photos/_versions/lease.json": lambda tmp: _take_lease(tmp / "photos"),
    "claimed/_ingest/plan.json": lambda tmp: record_plan(str(tmp / "claimed"), _PLAN),
    "out/_ingest/receipts/*/*.json": _read_receipt,
}


def _file(made: Path, name: str) -> Path:
    """Returns the first file with a name of this pattern."""
    return min(made.glob(name))


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_form_is_read_or_refused_in_one_line(
    made: Path, sound: Callable[[str], tuple[Path, bytes]], name: str
) -> None:
    path, before = sound(name)
    path.write_bytes(before)
    READERS[name](made)
    path.write_bytes(before)  # one reader takes the file away
    check_forms(path, partial(READERS[name], made))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_or_changed_is_read_or_refused_in_one_line(
    made: Path, sound: Callable[[str], tuple[Path, bytes]], name: str, data: st.DataObject
) -> None:
    path, before = sound(name)
    if data.draw(st.booleans()):
        content = before[: data.draw(st.integers(0, len(before) - 1))]
    else:
        changed = bytearray(before)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(before) - 1))] = data.draw(st.integers(0, 255))
        content = bytes(changed)
    path.write_bytes(content)
    try:
        message = message_of(partial(READERS[name], made))
    finally:
        path.write_bytes(before)
    assert message is None or (str(made) in message and "\n" not in message)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"seed": 0},
        {"seed": "0", "shard_bytes": 1, "handling": {}},
        {"seed": 0, "shard_bytes": 1, "handling": {"x": 1}},
    ],
    ids=str,
)
def test_settings_of_another_release_are_refused_in_one_line(made: Path, values: dict[str, Any]) -> None:
    data = load_stored(str(made / "photos/v1"))
    assert settings_of(data).shard_bytes == 4000
    with pytest.raises(DatasetError, match="its settings are of another release"):
        settings_of(replace(data, settings=values))


def test_a_provenance_that_is_cut_is_one_line(made: Path) -> None:
    photos = made / "photos"
    shard = load(str(photos / "v1")).splits["val"].shards[0]
    path = photos / "v1" / shard.provenance_path
    before = path.read_bytes()
    path.write_bytes(before[:-9])
    message = message_of(lambda: stored_provenance(str(photos / "v1"), shard))
    path.write_bytes(before)
    assert f"{path}: damaged: no Parquet file" in str(message)
