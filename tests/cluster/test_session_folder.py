"""Folders of Ray sessions: locked by their owner, whatever the process ids of another container say."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.cluster import session_folder as module
from pipeline.cluster.session_folder import session_folder
from pipeline.core.errors import ClusterError, RecipeError
from tests.support.jobs import ROOT

_OWNER = """
import sys, pathlib
from pipeline.cluster import session_folder as module
module._PARENT = pathlib.Path(sys.argv[1])
with module.session_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sessions."""
    monkeypatch.setattr(module, "_PARENT", tmp_path)
    return tmp_path


@contextmanager
def owner(parent: Path, *before: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yields a process that holds a session's folder, and the folder."""
    command = [*before, sys.executable, "-c", _OWNER, str(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        assert process.stdin is not None
        process.stdin.close()


def test_a_folder_is_removed_after_its_session(parent: Path) -> None:
    with session_folder() as folder:
        assert os.path.basename(folder).startswith(f"ray-{os.getpid()}-")
        Path(folder, "log").write_text("x")
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize(
    ("removed", "error", "shown"),
    [
        (True, FileNotFoundError("session_1/logs/a.log"), "the folder of the Ray session was removed while"),
        (True, RecipeError("epochs=0"), "epochs=0"),
        (False, RuntimeError("a defect"), "a defect"),
    ],
)
def test_an_error_after_the_folder_was_removed_is_one_line(
    removed: bool, error: Exception, shown: str, parent: Path
) -> None:
    def run() -> None:
        with session_folder() as folder:
            if removed:
                shutil.rmtree(folder)
            raise error

    with pytest.raises(ClusterError if "Ray session" in shown else type(error), match=shown):
        run()
    assert list(parent.iterdir()) == []


def test_the_folder_of_a_live_session_stays_and_that_of_a_killed_one_goes(parent: Path) -> None:
    with owner(parent) as (live, folder), owner(parent) as (killed, abandoned):
        killed.kill()
        killed.wait()
        with session_folder():
            assert folder.exists()
            assert not abandoned.exists()
        assert live.poll() is None
    assert not folder.exists()


def test_a_process_id_of_another_container_is_not_taken_for_a_dead_owner(parent: Path) -> None:
    """The owner's id is free in this namespace; before, that alone made its folder fair game."""
    with owner(parent) as (process, folder):
        renamed = folder.with_name(f"ray-{2**22 + 1}-{folder.name.rpartition('-')[2]}")  # above the largest process id
        folder.rename(renamed)
        with session_folder():
            assert renamed.exists()
        renamed.rename(folder)
        assert process.poll() is None


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_two_process_namespaces_that_share_the_folder(parent: Path) -> None:
    enter = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("no process namespaces here")
    with owner(parent, *enter) as (_, folder), session_folder():
        assert folder.exists()
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["without a lock", "a file", "a link"])
def test_what_is_no_session_is_left_alone(parent: Path, kind: str) -> None:
    stranger = parent / "ray-12345-abc"
    if kind == "a file":
        stranger.write_text("x")
    elif kind == "a link":
        (parent / "elsewhere").mkdir()
        stranger.symlink_to(parent / "elsewhere")
    else:
        stranger.mkdir()
    with session_folder():
        pass
    assert stranger.exists()
