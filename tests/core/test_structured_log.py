"""The lines that log collectors read."""

import io
import json
import logging
import time

import pytest

from pipeline.core.structured_log import RunLog, silent_log


def test_each_line_is_json_that_carries_run_rank_and_step(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog("first", 1, 2)
    log.event("start", 0, recipe="digits")
    log.event("checkpoint", 7, "warning", text="couldn't be\nwritten, 100 %s")
    out, err = capsys.readouterr()
    assert out == ""
    start, warning = err.splitlines()
    now = json.loads(start)["time"]
    assert abs(now - time.time()) < 60
    assert start == (  # its very bytes: people search for them
        f'{{"time": {now}, "level": "info", "event": "start", "run": "first", "rank": 1, "world_size": 2, "step": 0, '
        '"recipe": "digits"}'
    )
    found = json.loads(warning)
    assert (found["level"], found["step"], found["text"]) == ("warning", 7, "couldn't be\nwritten, 100 %s")


def test_a_value_that_json_does_not_know_is_an_error() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        RunLog("first", 0, 1).event("start", 0, value=object())


def test_the_lines_are_not_repeated_by_handlers_of_the_host(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    RunLog("first", 0, 1, logging.StreamHandler(stream)).event("start", 0)
    silent_log().event("nobody", 0)
    assert len(stream.getvalue().splitlines()) == 1
    assert caplog.records == []
