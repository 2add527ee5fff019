"""A command that is called with each decision, such as one that sends an e-mail."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile

from pipeline.core.errors import RecipeError
from pipeline.retraining.notices.webhook import SECRET_VARIABLE

TIME_LIMIT_SECONDS = 60.0


def check_command(command: str) -> None:
    """Raises RecipeError unless the command line can be split and its program exists."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise RecipeError(f"on-decision={command}: {error}; mind the quotes") from error
    if not words:
        raise RecipeError("on-decision is empty; give a command")
    if shutil.which(words[0]) is None:
        raise RecipeError(f"on-decision={command}: no program {words[0]}; give one that is installed, or its path")


def call_command(command: str, text: bytes, limit_seconds: float = TIME_LIMIT_SECONDS) -> str:
    """Runs a command with `text` on its standard input, and returns why it failed; "" if its status is 0.

    command: split as by a shell, and run without one. What runs longer than the limit is killed, with all processes
    that it has started in its group. The command doesn't see the webhook's secret.
    """
    variables = {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE}
    # Files, not pipes: a command may read nothing, or leave a process behind that holds a pipe open.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(text)
        given.seek(0)
        try:
            process = subprocess.Popen(
                shlex.split(command), stdin=given, stdout=said, stderr=subprocess.STDOUT, env=variables,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return str(error)
        try:
            status = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            return f"it ran longer than {limit_seconds:g} s"
        finally:
            if process.poll() is None:  # too late, or interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    return f"status {status}{': ' + lines[-1][:200] if lines else ''}" if status else ""
