"""Environment variables that are set for a while, and put back."""

import os

import pytest

from pipeline.core.variables import environment_variables


def test_variables_are_set_for_a_while_and_put_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "before")
    monkeypatch.delenv("NOT_THERE", raising=False)
    seen = []

    def fail() -> None:
        with environment_variables({"THERE": "a", "NOT_THERE": "b"}):
            seen.append((os.environ["THERE"], os.environ["NOT_THERE"]))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [("a", "b")]
    assert os.environ["THERE"] == "before"
    assert "NOT_THERE" not in os.environ


def test_a_variable_of_the_users_is_kept_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "mine")
    with environment_variables({"THERE": "a"}, keep=True):
        assert os.environ["THERE"] == "mine"
    assert os.environ["THERE"] == "mine"
