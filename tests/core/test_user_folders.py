"""The cache's folder, and the variables that stand in for an account: tables, and a real user id without one."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core import user_folders
from pipeline.core.user_folders import account_variables, cache_folder, can_write, temporary_home
from tests.support.jobs import ROOT
from tests.support.users import CAN_CHANGE_USER, as_user


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that stands in for a home."""
    monkeypatch.setattr(user_folders, "_temporary_name", lambda: str(tmp_path / "instead"))
    temporary_home.cache_clear()
    user_folders._say_once.cache_clear()
    yield tmp_path / "instead"
    temporary_home.cache_clear()


def test_the_cache_lies_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own" / "cache"))
    assert cache_folder() == str(tmp_path / "own" / "cache" / "image-pipeline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == str(tmp_path / ".cache" / "image-pipeline")
    assert not (tmp_path / "instead").exists()


def test_a_cache_that_cannot_be_written_moves_and_is_said_once(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        places = {cache_folder(), cache_folder()}
    assert places == {str(temporary / ".cache" / "image-pipeline")}
    (record,) = caplog.records
    assert "set XDG_CACHE_HOME" in record.getMessage()


def test_an_ordinary_account_needs_no_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert account_variables() == {}


def test_a_folder_that_somebody_else_took_is_not_used(temporary: Path) -> None:
    temporary.mkdir()
    temporary.chmod(0o777)
    place = temporary_home()
    assert place != str(temporary)
    assert place.startswith(str(temporary))
    assert os.stat(place).st_mode & 0o077 == 0
    Path(place).rmdir()


@pytest.mark.parametrize(("make", "writable"), [("folder", True), ("file", False), ("nothing", True), ("link", False)])
def test_what_can_be_written(tmp_path: Path, make: str, writable: bool) -> None:
    place = tmp_path / "place"
    if make == "folder":
        place.mkdir()
    elif make == "file":
        place.write_text("x")
    elif make == "link":
        place.symlink_to(tmp_path / "gone")
    assert can_write(str(place / "below")) == writable


@pytest.mark.skipif(not CAN_CHANGE_USER, reason="needs root and setpriv to become another user")
@pytest.mark.parametrize("home", [None, "/", "/proc/nothing"])
def test_a_user_id_without_an_account_gets_a_home_and_a_name(home: str | None) -> None:
    program = """
import getpass, os, pathlib
from pipeline.core.user_folders import account_variables, cache_folder, can_write
os.environ.update(account_variables())
print(getpass.getuser(), pathlib.Path.home(), cache_folder())
assert can_write(cache_folder())
"""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **({"HOME": home} if home else {})}
    done = subprocess.run(
        as_user(54321, sys.executable, "-c", program), env=environment, cwd="/tmp", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    name, found_home, cache = done.stdout.split()
    assert name == "user54321"
    assert found_home == (home or "/tmp/image-pipeline-54321")
    assert cache == "/tmp/image-pipeline-54321/.cache/image-pipeline"
    assert done.stderr.count("cache: /tmp/image-pipeline-54321") == 1
