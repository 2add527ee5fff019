"""The target folder of an ingest: check that it is free, claim it for one plan, and clean up."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress
from pipeline.dataset.manifest import is_dataset
from pipeline.storage import files, lease
from pipeline.storage.places import check_folder, claim_folder, is_passing, remove_if_empty

CARD_NAME, QUARANTINE_NAME, QUALITY_NAME = "README.md", "quarantine.parquet", "quality.html"
WORK = "_ingest"  # receipts, the lease, the plan, and unpacked archives; removed when the data set is published


def check_target(out: str) -> None:
    """Raises DatasetError if the folder `out` holds anything but an unfinished ingest, StorageError if it can't be."""
    if files.kind(out) == "missing":
        check_folder(out, "out")
        return
    if is_dataset(out):
        raise DatasetError(f"{out}: holds a finished data set already; give another --out, or delete it first")
    kind = files.kind(out)
    if kind == "file":
        raise DatasetError(f"{out}: is a file; give a folder for --out")
    names = [name for name, _ in files.list_files(out) if not is_passing(name)]
    ours = (".parquet", ".tmp", CARD_NAME, QUALITY_NAME)
    strangers = [name for name in names if not name.endswith(ours) and not name.startswith(f"{WORK}/")]
    if not strangers and not any(name.startswith(f"{WORK}/") for name in names):
        strangers = names  # Parquet files alone are somebody else's
    if strangers:
        raise DatasetError(f"{out}: holds other files ({strangers[0]!r}); give an empty folder for --out")
    if files.is_local(out):
        check_folder(out, "out")


@contextmanager
def claim_target(out: str, progress: Progress) -> Iterator[lease.Lease]:
    """Yields the lease on a folder that `check_target` has found free: nobody else writes there while the block runs.

    Afterwards removes what isn't needed any more. Raises DatasetError if another process is writing there, or has
    finished while this one waited.
    """
    claimed = False
    try:
        with lease.hold_lease(files.join(out, WORK, "lease.json"), out, progress) as held:
            check_target(out)  # once more: another process may have finished while this one waited
            claimed = True
            yield held
    finally:
        if claimed:
            clean_up(out)


def record_plan(out: str, plan: dict[str, Any]) -> None:
    """Writes the plan of an ingest down, and removes what an earlier ingest left and this one can't use.

    plan: {"plan": its hash, "source", "settings"}, and of a version {"onto": digest of its parent}. Raises DatasetError
    if `out` holds an unfinished ingest of another source or with other settings.
    """
    place = files.join(out, WORK, "plan.json")
    earlier = claim_folder(place, plan)
    differences = [name for name in ("source", "settings", "onto") if earlier.get(name) != plan.get(name)]
    if differences:
        raise DatasetError(
            f"{out}: holds an unfinished ingest with another {' and other '.join(differences)} "
            f"({earlier.get(differences[0], 'none')}); give another --out, or delete this folder"
        )
    names = [name for name, _ in files.list_files(out)]
    if earlier.get("plan") != plan["plan"]:  # the source has changed since: its shards are other shards
        keep = tuple(f"{WORK}/{name}" for name in ("lease.json", "spool/"))
        files.delete_files(out, [name for name in names if not name.startswith(keep)])
        files.write_bytes(place, json.dumps(plan, indent=1).encode())
    elif files.is_local(out):  # half-written files of a killed process
        files.delete_files(out, [name for name in names if name.endswith(".tmp")])


def clean_up(out: str) -> None:
    """Removes the work folder of a finished data set, and of an ingest that wrote nothing; then `out`, if empty."""
    if is_dataset(out) or not files.exists(files.join(out, WORK, "plan.json")):
        files.delete_tree(files.join(out, WORK))
    remove_if_empty(out)
