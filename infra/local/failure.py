"""End a command with an error in one line."""

import sys
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """Prints the message on standard error and ends with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
