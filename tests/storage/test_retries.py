"""Storage that can't be used is told at once; storage that is away is waited for, and that is told, too."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from obstore import exceptions

from pipeline.core.errors import PipelineError, StorageError, UnavailableError
from pipeline.storage import files, object_store, retries
from pipeline.storage.store_clients import forget_clients

# As obstore's, shortened.
REFUSED = (
    "Generic S3 error: GET http://10.0.0.1:9/b in 2ms - HTTP error\n\nDebug source: kind: Connect, Connection refused"
)
BUSY = "Generic S3 error: GET http://10.0.0.1:9/b in 2ms - Server returned non-2xx status code: 503 Slow Down"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has used no bucket yet, and waits for short times."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(retries, "_outages", retries._Outages())
    monkeypatch.setattr(retries, "FIRST_USE_SECONDS", 0.1)
    monkeypatch.setattr(retries, "TELL_SECONDS", 0.05)
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.6)
    monkeypatch.setattr(retries, "LONGEST_BACKOFF_SECONDS", 0.02)
    forget_clients()
    yield
    forget_clients()


def failing(text: str) -> Any:
    """Returns a request that always fails."""

    def call(store: object, key: str) -> None:
        raise exceptions.GenericError(text)

    return call


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns the messages so far."""
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_bucket_that_cannot_be_reached_is_given_up_at_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{scheme}://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://b/x: the storage can't be reached \(connection refused\)") as caught:
        files.exists("s3://b/x")
    assert time.monotonic() - start < 5
    assert not isinstance(caught.value, UnavailableError)
    assert "no credentials were found: set AWS_ACCESS_KEY_ID" in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_a_name_that_is_not_known_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://gone.invalid:9000")
    with pytest.raises(StorageError, match="its name can't be resolved: no network, or a wrong endpoint"):
        files.exists("s3://b/x")


@pytest.mark.parametrize("first", ["a worker of Ray", "an answer before", "it is busy"])
def test_an_outage_is_waited_for_and_told_once(
    first: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.storage")
    if first == "a worker of Ray":
        monkeypatch.setattr(sys, "argv", ["/site-packages/ray/_private/workers/default_worker.py"])
    if first == "an answer before":
        retries.send_request("get", "s3://b/x", lambda store, key: None)
    errors: list[Exception] = []

    def request() -> None:
        try:
            retries.send_request("get", "s3://b/x", failing(BUSY if first == "it is busy" else REFUSED))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=request) for _ in range(4)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start >= 0.6
    assert [type(error) for error in errors] == [UnavailableError] * 4
    reason = "503" if first == "it is busy" else "connection refused"
    assert told(caplog) == [f"s3://b doesn't answer ({reason}); retrying, up to 0.6 s"]
    retries.send_request("get", "s3://b/y", lambda store, key: None)
    assert told(caplog)[1:] == ["s3://b answers again"]


def test_a_short_pause_is_not_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "TELL_SECONDS", 5.0)
    answers = iter([BUSY, BUSY, ""])

    def call(store: object, key: str) -> str:
        if text := next(answers):
            raise exceptions.GenericError(text)
        return "data"

    assert retries.send_request("get", "s3://b/x", call) == "data"
    assert told(caplog) == []


@pytest.mark.parametrize(
    ("variables", "uri", "words"),
    [
        ({"AWS_PROFILE": "nope"}, "s3://b/x", r"s3://b/x: its credentials can't be used \(The config profile"),
        ({"AWS_ACCESS_KEY_ID": "a"}, "s3://b/x", "Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "s3://b/x", "its endpoint isn't http"),
        ({"AWS_ENDPOINT_URL": "http://a b"}, "s3://b/x", "its endpoint isn't http"),
        (
            {"GOOGLE_APPLICATION_CREDENTIALS": "/gone.json"},
            "gs://b/x",
            "gs://b/x: its credentials can't be used .*gone",
        ),
        ({}, "s3://Bad Bucket/x", "'Bad Bucket' can be no bucket's name; give s3://BUCKET/KEY"),
    ],
)
def test_settings_that_cannot_work_are_told_without_a_request(
    variables: dict[str, str], uri: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=words) as caught:
        object_store.head(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://", "gs://", "s3:///key"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(PipelineError, match="names no bucket"):
        files.absolute(uri)
