"""The lock-box: validation images that no night looks at, and that a promotion reads once before it happens.

The images that every night compares on choose the champion, so its accuracy on them becomes optimistic. Those of the
lock-box choose nothing: they give an accuracy without that bias, and a chance to refuse a model that won by luck. They
are the split test of the run's data set: the source's own, or a share of val that ingest sets aside (`Gate.lock_box`).
So training, evaluations, pages and analyses of a night, which know val alone, hold none of them.

Each reading leaves a file in `WORKSPACE/lock-box`, before it begins, that is never changed.
"""

import json
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.core.shares import counted
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.evaluation.runner import EvaluateJob
from pipeline.evaluation.significance import mcnemar
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining.decision import promotion
from pipeline.retraining.decision.promotion_gate import Bools, Check, Decision
from pipeline.retraining.workspace import RetrainingRun
from pipeline.storage import files

LOCK_BOX_SPLIT = "test"
READINGS_FOLDER = "lock-box"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """The result of reading the lock-box for one promotion."""

    check: Check
    rows: int  # that neither model was trained on, of classes that both know
    correct: dict[str, int]  # {"champion": rows, "challenger": rows} that each classifies correctly
    readings: int  # of this workspace's lock-box so far, this one included

    def as_json(self) -> dict[str, Any]:
        """Returns the values of `decision.json`."""
        return {"rows": self.rows, "correct": self.correct, "readings": self.readings}


def read_lock_box(
    run: RetrainingRun, data: Manifest, earlier: list[str], job: EvaluateJob, class_map: ClassMap | None
) -> Reading:
    """Returns the comparison of champion and challenger on the lock-box, and leaves a record that it was read.

    A night that is resumed reads the same predictions again. data: of the run's data set. earlier: as from
    `promotion.earlier_datasets`. job: workers and progress. class_map: the champion's classes in the data set. Without
    a row that counts (`rows_that_count`) the check fails, and nothing is read.
    """
    rows = rows_that_count(run, data, earlier, class_map)
    if not rows.any():
        check = Check("lock-box", False, 0.0, run.gate.level, _nothing_left(data), "fails if no image is left")
        return Reading(check, 0, {"champion": 0, "challenger": 0}, _count_readings(run))
    readings = _note_reading(run, data)
    job = replace(job, split=LOCK_BOX_SPLIT)
    folders = [files.join(READINGS_FOLDER, name) for name in ("champion", "challenger")]
    champion, _ = promotion.evaluate_model(run, run.champion_uri, folders[0], job, class_map)
    challenger, _ = promotion.evaluate_model(run, run.training, folders[1], job)
    pair = promotion.Contest(champion, challenger, data.classes, rows, class_map).pair
    assert pair is not None  # there is a row that counts
    rights = [each.correct for each in pair]
    check = check_locked(rights[0], rights[1], run.gate.level, readings)
    correct = {"champion": int(rights[0].sum()), "challenger": int(rights[1].sum())}
    return Reading(check, len(rights[0]), correct, readings)


def rows_that_count(run: RetrainingRun, data: Manifest, earlier: list[str], class_map: ClassMap | None) -> Bools:
    """Returns bool [rows of the lock-box]: True for those that champion and challenger are compared on.

    Neither model was trained on them (`promotion.unseen_rows`), no image of val has the same file, by its SHA-256, and
    both models know their class. Arguments: as for `read_lock_box`.
    """
    table = read_split_provenance(run.dataset, data.split(LOCK_BOX_SPLIT), ["label", "source_sha256"])
    in_val = read_split_provenance(run.dataset, data.split("val"), ["source_sha256"])["source_sha256"]
    counts = promotion.unseen_rows(run.dataset, data, earlier, LOCK_BOX_SPLIT)
    counts &= ~np.asarray(pc.is_in(table["source_sha256"], value_set=in_val.combine_chunks()))
    if class_map is not None and not class_map.is_same:
        counts &= np.isin(np.asarray(table["label"]), class_map.shared)
    return counts


def warn_of_empty(run: RetrainingRun, data: Manifest, earlier: list[str], class_map: ClassMap | None) -> None:
    """Logs a warning, before anything is trained, if there is a lock-box without a row that counts.

    Arguments: as for `read_lock_box`.
    """
    is_read = run.champion is not None and bool(run.gate.lock_box)
    if is_read and not rows_that_count(run, data, earlier, class_map).any():
        log.warning("warning: %s, so nothing can be promoted", _nothing_left(data))


def _nothing_left(data: Manifest) -> str:
    return (
        f"of {counted(data.split(LOCK_BOX_SPLIT).rows, 'image')} of the lock-box none is left that neither model was "
        "trained on, that isn't in val, and whose class both know; add images to the source, or leave out --lock-box"
    )


def check_locked(champion: Bools, challenger: Bools, level: float, readings: int = 1) -> Check:
    """Returns whether the challenger isn't significantly worse: McNemar's exact test, one-sided, at a level.

    champion, challenger: bool [N], whether each is right about a row of the lock-box. A test of the gain instead would
    need as many rows as val has, and refuse most true gains (jobs/bench/nights.py).
    """
    test = mcnemar(challenger, champion, "greater")
    won, lost, p = test["only_first"], test["only_second"], test["p"]
    rows = len(champion)
    text = f"{100 * (won - lost) / max(1, rows):+.2f} points on {counted(rows, 'image')} that no night looks at "
    text += f"({won:,} won, {lost:,} lost, p of a loss = {p:.2g}; reading {readings:,})"
    text += "" if p > level else f", a significant loss (level {level:g})"
    return Check("lock-box", p > level, p, level, text, f"fails if the challenger is worse with p at most {level:g}")


def with_reading(decision: Decision, reading: Reading) -> Decision:
    """Returns the decision with the lock-box's check."""
    return replace(
        decision, promote=decision.promote and reading.check.passed, checks=(*decision.checks, reading.check)
    )


def _note_reading(run: RetrainingRun, data: Manifest) -> int:
    """Records that this night reads the lock-box, and returns the number of readings so far."""
    assert run.champion is not None
    folder = files.join(run.workspace, READINGS_FOLDER)
    record = {
        "night": run.id,
        "champion": run.champion.version,
        "dataset": run.dataset,
        "digest": data.digest,
        "rows": data.split(LOCK_BOX_SPLIT).rows,
        "time": time.time(),
    }
    files.write_once(files.join(folder, f"{run.id}.json"), json.dumps(record, indent=1).encode() + b"\n")
    return _count_readings(run)


def _count_readings(run: RetrainingRun) -> int:
    folder = files.join(run.workspace, READINGS_FOLDER)
    return sum(name.endswith(".json") for name, _ in files.list_files(folder))
