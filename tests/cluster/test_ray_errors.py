"""What Ray wraps around an exception is taken off, and only what the user can mend is an error in one line."""

import errno

import pytest

from pipeline.cluster.ray_errors import pipeline_error, unwrap, user_error, user_message
from pipeline.core.errors import ClusterError, DatasetError
from pipeline.storage.system_errors import FileAccessError


class RayTaskError(Exception):
    """Has the name by which Ray's own is known, and the field that holds the cause."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class RayTaskDatasetError(RayTaskError, DatasetError):
    """Ray's error is of the class of its cause, too."""


class WorkerGroupError(Exception):
    """As Ray Train's: the exceptions of the workers by rank."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        self.worker_failures = failures


class ControllerError(Exception):
    """As Ray Train's: the exception that a callback raised."""

    def __init__(self, failure: BaseException) -> None:
        self.controller_failure = failure


MINE = DatasetError("data/train: a row is damaged; ingest again")


@pytest.mark.parametrize(
    "error",
    [
        MINE,
        RayTaskDatasetError(MINE),
        WorkerGroupError({0: ValueError("another"), 1: RayTaskError(MINE)}),
        ControllerError(WorkerGroupError({3: RayTaskDatasetError(MINE)})),
    ],
)
def test_the_pipelines_own_error_is_found_below_what_ray_wraps_around_it(error: BaseException) -> None:
    assert pipeline_error(error) is MINE
    assert user_error(error) is MINE
    assert user_message(error) == str(MINE)


def test_an_error_that_was_raised_from_another_is_found_first() -> None:
    error = ClusterError("no room")
    error.__cause__ = MINE
    assert pipeline_error(error) is error
    assert list(unwrap(error)) == [error, MINE]


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert list(unwrap(first)) == [first, second]
    assert user_message(first) is None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "/data/x: the disk is full; free some space"),
        (errno.EDQUOT, "/data/x: the quota of this user is used up; free some space"),
        (errno.EROFS, "/data/x: the file system is read-only; give a folder"),
        (errno.EACCES, "/data/x: may not be read by this user"),
        (errno.EIO, "/data/x: the disk, or the network"),
        (errno.ENOENT, "/data/x: no such file or folder"),
        (errno.EMFILE, "too many open files; raise the limit"),
    ],
)
def test_a_storage_that_refuses_is_the_users_to_mend(number: int, words: str) -> None:
    error = RayTaskError(OSError(number, "No", "/data/x"))
    assert words in (user_message(error) or "")
    assert pipeline_error(error) is None  # but not one of the pipeline's: a run that trains on is tried again


def test_a_refusal_that_is_in_words_already_stays_as_it_is() -> None:
    error = FileAccessError(errno.EACCES, "/data/x: may not be read; allow it")
    assert user_message(error) == user_message(RayTaskError(error)) == "/data/x: may not be read; allow it"


def test_an_error_that_names_no_file_is_a_defect() -> None:
    assert user_message(OSError(errno.EIO, "I/O error")) is None
    assert user_error(KeyError("x")) is None


def test_the_paragraph_that_ray_data_appends_is_cut_off() -> None:
    text = "a.jpg: no image; remove it\nFailed to apply UDF transform: set max_errored_blocks"
    assert user_message(DatasetError(text)) == "a.jpg: no image; remove it"
