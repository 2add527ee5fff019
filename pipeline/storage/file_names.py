"""File names that aren't UTF-8: as text that can be stored and printed, and back to the path."""

import re

# No path can hold a zero byte, so an escape can't be mistaken for a part of a name.
_ESCAPE = re.compile("\0([0-9a-f]{2})")
_UNDECODABLE = re.compile("[\udc80-\udcff]")


def escaped(name: str) -> str:
    """Returns a name as the system gives it with each undecodable byte as NUL and two hex digits: valid Unicode."""
    return _UNDECODABLE.sub(lambda match: f"\0{ord(match.group()) - 0xDC00:02x}", name)


def real_path(name: str) -> str:
    """Returns the name that was `escaped`, for the system."""
    return _ESCAPE.sub(lambda match: chr(0xDC00 + int(match.group(1), 16)), name) if "\0" in name else name


def printable(name: str) -> str:
    """Returns an `escaped` name for people, keys and tables: `caf\\\\xe9.jpg`."""
    return _ESCAPE.sub(lambda match: f"\\x{match.group(1)}", name) if "\0" in name else name
