"""Signed webhooks: what is sent, when it is sent again, and what a receiver may believe."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.verify_webhook import TOLERANCE_SECONDS, verify
from pipeline.core.errors import RecipeError
from pipeline.retraining.notices.webhook import SECRET_VARIABLE, Webhook, read_secret, signature
from tests.support.webhooks import Receiver, receiver

# The example of the specification's own libraries (standard-webhooks, their tests of `sign`).
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = base64.b64decode(SECRET.removeprefix("whsec_"))


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


def webhook(there: Receiver, attempts: int = 3, timeout: float = 10.0) -> Webhook:
    return Webhook(there.url, KEY, attempts, first_wait_seconds=0.01, timeout_seconds=timeout)


def test_the_signature_is_that_of_the_standards_libraries() -> None:
    value = signature(KEY, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert value == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_is_signed_and_named(there: Receiver) -> None:
    assert webhook(there).post("night_1", b'{"type": "x"}').accepted
    [(method, headers, body)] = there.requests
    assert (method, body, headers["webhook-id"]) == ("POST", b'{"type": "x"}', "night_1")
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 5
    assert verify(SECRET, headers, body) == {"type": "x"}


@pytest.mark.parametrize(
    ("answers", "headers", "accepted", "requests", "reason"),
    [
        ([500, 503], {}, True, 3, ""),  # it recovers
        ([429, 429], {"Retry-After": "0"}, True, 3, ""),
        ([500] * 9, {}, False, 3, "HTTP 500 Internal Server Error"),
        ([400], {}, False, 1, "HTTP 400 Bad Request"),  # it won't like it better the next time
        ([302], {"Location": "/elsewhere"}, False, 1, "HTTP 302 Found"),  # isn't followed
        ([307], {"Location": "/elsewhere"}, False, 1, "HTTP 307 Temporary Redirect"),
        (["hang"], {}, True, 2, ""),
        (["drip"], {}, True, 2, ""),  # one header without an end, which no timeout of a socket ends
        (["hang"] * 3, {}, False, 3, "no answer within 1 s"),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again_within_bounded_seconds(
    there: Receiver, answers: list[int | str], headers: dict[str, str], accepted: bool, requests: int, reason: str
) -> None:
    there.answers, there.headers = list(answers), headers
    answer = webhook(there, timeout=1.0 if {"hang", "drip"} & {*answers} else 10.0).post("night_1", b"{}")
    assert (answer.accepted, len(there.requests)) == (accepted, requests)
    assert reason in answer.reason
    assert {each["webhook-id"] for _, each, _ in there.requests} == {"night_1"}


def test_a_receiver_that_is_not_there_may_be_later() -> None:
    with receiver() as state:
        address = state.url
    answer = Webhook(address, attempts=2, first_wait_seconds=0.01).post("night_1", b"{}")
    assert not answer.accepted
    assert answer.may_pass
    assert "refused" in answer.reason


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://host:80/a%20b?c=d&e", "http://host:80/a%20b?c=d&e"),
        ("https://höst.example/hök?å b", "https://xn--hst-sna.example/h%C3%B6k?%C3%A5%20b"),
        ("http://[::1]:9/x#part", "http://[::1]:9/x"),
    ],
)
def test_a_url_is_sent_as_http_wants_it(url: str, sent: str) -> None:
    assert Webhook(url).url == sent == Webhook(sent).url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///x", "must begin with http://"),
        ("http://[::1", "no URL of HTTP"),
        ("http://host:nine/", "no URL of HTTP"),
        ("http:///path", "names no host"),
        ("http://ho st/", "names no host"),
        ("http://me:hunter2@host/", "holds a user or a password"),
    ],
)
def test_what_is_no_url_is_an_error_at_the_start(url: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        Webhook(url)
    assert "hunter2" not in str(error.value)


def signed(at: int, body: bytes = b"{}", key: bytes = KEY) -> dict[str, str]:
    return {
        "Webhook-Id": "m", "Webhook-Timestamp": str(at), "Webhook-Signature": signature(key, "m", at, body)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed(1000), b'{"other": 1}'),
        (signed(1000, key=b"another key of enough length"), b"{}"),
        (signed(1000 - TOLERANCE_SECONDS - 1), b"{}"),  # recorded, and sent again
        (signed(1000 + TOLERANCE_SECONDS + 1), b"{}"),
        ({**signed(1000), "Webhook-Timestamp": "1001"}, b"{}"),
        ({**signed(1000), "Webhook-Timestamp": "yesterday"}, b"{}"),
        ({**signed(1000), "Webhook-Id": "n"}, b"{}"),
        ({**signed(1000), "Webhook-Signature": "v1,é"}, b"{}"),
        ({}, b"{}"),
    ],
)
def test_the_example_refuses_what_the_secret_has_not_signed(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(ValueError, match=r"timestamp|signature|header"):
        verify(SECRET, headers, body, now=1000)


def test_the_example_accepts_one_of_several_signatures_and_a_clock_that_is_a_little_off() -> None:
    headers = signed(1000)
    headers["Webhook-Signature"] = f"v1,other {headers['Webhook-Signature']}"
    for now in (1000 - TOLERANCE_SECONDS, 1000 + TOLERANCE_SECONDS):
        assert verify(SECRET, headers, b"{}", now=now) == {}


def test_a_secret_is_read_from_a_file_or_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    assert read_secret(None) is None
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    assert read_secret(None) == KEY
    file = tmp_path / "secret"
    file.write_text(f"whsec_{base64.b64encode(bytes(range(32))).decode()}\n")
    assert read_secret(str(file)) == bytes(range(32))
    assert "MfKQ" not in repr(Webhook("http://x", KEY))


@pytest.mark.parametrize("text", ["", "hunter2", "whsec_!!!", "whsec_c2hvcnQ=", SECRET.removeprefix("whsec_")])
def test_a_secret_that_cannot_be_one_is_an_error_that_does_not_show_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(RecipeError, match="no secret of a webhook; give whsec_") as error:
        read_secret(str(file))
    assert not text or text not in str(error.value)
