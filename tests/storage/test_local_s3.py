"""The S3 server of the tests leaves nothing behind."""

import os
from pathlib import Path

import pytest

from pipeline.storage.local_s3 import local_s3


def test_the_variables_are_as_they_were_and_the_files_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    before = dict(os.environ)
    with local_s3("other") as process:
        folder = Path(f"/proc/{process.pid}/cwd").resolve()
        assert folder.name.startswith("weed-")
        assert os.environ["AWS_DEFAULT_REGION"] == "us-east-1"
    assert dict(os.environ) == before
    assert not folder.exists()
