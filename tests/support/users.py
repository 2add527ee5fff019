"""Run commands as a user id that has no account."""

import os
import shutil
import tempfile
from pathlib import Path

CAN_CHANGE_USER = os.getuid() == 0 and shutil.which("setpriv") is not None


def as_user(user: int, *command: str) -> list[str]:
    """Returns the command line that runs `command` as another user id. Needs root.

    It may read what root may, because Python itself may lie in root's home folder, but write only what that user may.
    """
    capability = "+dac_read_search"
    return [
        "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", f"--inh-caps={capability}",
        f"--ambient-caps={capability}", *command,
    ]  # fmt: skip


def let_others_in(folder: Path) -> None:
    """Lets every user read a folder below the temporary folder: pytest's folders are closed to others."""
    top = Path(tempfile.gettempdir())
    for place in (folder, *folder.parents):
        if place == top:
            return
        place.chmod(0o755)
