"""Claiming of a folder: the first process writes down whose it is, every later one compares."""

import json
from typing import Any

from pipeline.storage import files


def claim_folder(uri: str, identity: dict[str, Any], indent: int | None = 1, end: str = "") -> dict[str, Any]:
    """Writes a JSON file at `uri` unless there is one, and returns the identity that the file holds.

    Of several processes that call it at a time one writes, and all get what that one wrote. A folder is free for the
    caller, or has been its own before, if what it gets equals `json.loads(json.dumps(identity))`; otherwise it should
    raise an error that shows both. indent, end: the layout of the file, as of `json.dumps`.
    """
    data = (json.dumps(identity, indent=indent) + end).encode()
    claimed: dict[str, Any] = json.loads(data) if files.write_once(uri, data) else files.read_json(uri)
    return claimed
