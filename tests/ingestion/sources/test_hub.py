"""Data sets of the Hugging Face hub, through its own client against a stand-in on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.pictures.images import jpeg, make_tar
from tests.support.servers.hub import COMMIT, hub_server

pytest.importorskip("huggingface_hub")

# In a process of its own: the client reads its endpoint and its cache folder when it is imported.
PROGRAM = """
import json, sys
from pipeline.core.errors import SourceError
from pipeline.ingestion.sources import Source, located, open_source
from tests.support.pictures.images import rows_of
for uri in sys.argv[2:]:
    try:
        index = open_source(Source(uri).resolved(), spool=sys.argv[1])
        rows = sum(map(len, rows_of(index).values()))
        print(json.dumps([index.name, index.layout, rows, index.classes, located.fingerprint(uri)]))
    except SourceError as error:
        print(json.dumps(str(error)))
"""


def read(tmp_path: Path, *uris: str, **variables: str) -> list[Any]:
    env = {**os.environ, "HF_HOME": str(tmp_path / "cache"), **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "spool"), *uris], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_data_sets_of_the_hub_are_downloaded_and_read(tmp_path: Path) -> None:
    tree = {f"photos/{name}/{n}.jpg": jpeg(10 * at + n) for at, name in enumerate(("ant", "bee")) for n in range(3)}
    files = {**tree, "README.md": b"# Photos", "tars/all.tar": make_tar(tmp_path / "all.tar", tree).read_bytes()}
    with hub_server({"me/photos": files}) as url:
        found = read(
            tmp_path,
            "hf://datasets/me/photos/photos",
            "hf://datasets/me/photos@main/tars",
            "hf://datasets/me/photos@nope",
            "hf://datasets/me/other",
            "hf://datasets/me/photos/nothing",
            "hf://photos",
            HF_ENDPOINT=url,
        )
    uris = ("hf://datasets/me/photos/photos", "hf://datasets/me/photos@main/tars")
    for rows, uri in zip(found[:2], uris, strict=True):
        assert rows[0] == "photos"
        assert rows[2:] == [6, ["ant", "bee"], f"{uri}@{COMMIT}"]
    assert "no such revision; give a branch, a tag or a commit" in found[2]
    assert "no such data set, or a private one; check the name, and set HF_TOKEN" in found[3]
    assert "no such file or folder in this data set" in found[4]
    assert "not a data set of the hub; give hf://datasets/OWNER/NAME" in found[5]


def test_without_the_hub_one_line_says_what_to_do(tmp_path: Path) -> None:
    (message,) = read(tmp_path, "hf://datasets/me/photos", HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub can't be reached" in message
    assert "copy the data set to this machine, and give its folder" in message
    assert "\n" not in message
