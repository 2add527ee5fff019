"""What the system says about a file, in one line: read or written, with the file and the remedy, across Ray, too."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import StorageError
from pipeline.storage import files
from pipeline.storage.system_errors import FileAccessError, describe, one_line_errors
from tests.support.jobs import ROOT
from tests.support.users import CAN_CHANGE_USER, let_others_in


def test_a_refusal_is_an_os_error_and_survives_pickling() -> None:
    with (
        pytest.raises(OSError, match=r"/a/b\.jpg: may not be read by this user") as caught,
        one_line_errors("/a/b.jpg"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "/a/b.jpg")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (type(again), str(again)) == (FileAccessError, str(caught.value))
    assert isinstance(again, StorageError)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL, errno.ENOTDIR])
def test_errors_that_callers_tell_apart_pass_unchanged(number: int) -> None:
    error = OSError(number, "x", "/a")
    with pytest.raises(OSError, match="x") as caught, one_line_errors("/a"):
        raise error
    assert caught.value is error


def test_a_full_disk_names_the_file_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_bytes(str(tmp_path / "old"), b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"old: the disk is full; free some space and run the same command again"):
        files.write_bytes(str(tmp_path / "old"), b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old", b"old")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_disk_that_fills_while_a_file_is_unpacked_names_the_file() -> None:
    with (
        pytest.raises(StorageError, match=r"^/dev/full: the disk is full; free some space"),
        files.write_pieces("/dev/full") as out,
    ):
        out.write(b"x" * (1 << 20))


def test_pyarrows_text_is_enough() -> None:
    text = "[Errno 13] Failed to open local file '/no/where.jpg'. Detail: [errno 13] Permission denied"
    assert describe(PermissionError(text)) == (
        "/no/where.jpg: may not be read by this user (permission denied); allow it (chmod a+rX), or leave it out"
    )
    assert "not allowed; check the permissions" in (describe(PermissionError(errno.EACCES, "No")) or "")


_CALLS = """
import ctypes, os, sys
from pipeline.storage import files
from pipeline.core.errors import StorageError
import pipeline.storage.local_s3, pyarrow.fs  # all of Python is imported before the user changes
os.setgroups([]); os.setgid(54321); os.setuid(54321)
root = sys.argv[1]
for name, call in {
    "read_bytes": lambda: files.read_bytes(root + "/locked/file"),
    "read_range": lambda: files.read_range(root + "/secret", 0, 1),
    "map_file": lambda: files.map_file(root + "/secret"),
    "list": lambda: files.list_files(root + "/locked"),
    "write": lambda: files.write_bytes(root + "/mine", b"x"),
    "write_once": lambda: files.write_once(root + "/new", b"x"),
    "replace": lambda: files.replace(root + "/secret", b"x", "1"),
}.items():
    try:
        call()
    except StorageError as error:
        print(name, str(error).removeprefix(root))
"""


@pytest.mark.skipif(not CAN_CHANGE_USER, reason="needs root to become another user")
def test_files_of_another_user_are_named_with_what_was_tried(tmp_path: Path) -> None:
    let_others_in(tmp_path)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "locked").mkdir(mode=0o700)
    (tmp_path / "locked" / "file").write_text("x")
    done = subprocess.run([sys.executable, "-c", _CALLS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    read, written = "may not be read by this user", "may not be written by this user"
    expected = {
        "read_bytes": ("/locked/file", read), "read_range": ("/secret", read), "map_file": ("/secret", read),
        "list": ("/locked", read), "write": ("/mine", written), "write_once": ("/new", written),
        "replace": ("/secret", written),
    }  # fmt: skip
    assert {
        name: (line.split(":")[0].split(".")[0], read if read in line else written) for name, line in said.items()
    } == expected
