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


def test_variables_are_restored_whatever_the_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "old")
    monkeypatch.delenv("NEW", raising=False)
    monkeypatch.delenv("SET_BY_THE_BLOCK", raising=False)
    before = dict(os.environ)
    with environment_variables({"KEPT": "other", "NEW": "1"}, also_restored=("SET_BY_THE_BLOCK",)):
        assert (os.environ["KEPT"], os.environ["NEW"]) == ("other", "1")
        os.environ["SET_BY_THE_BLOCK"] = "x"
        del os.environ["NEW"]
    assert dict(os.environ) == before
