"""Facts about the installation, and variables that a block sets."""

import os

import pytest

from pipeline.core.environment import git_commit, set_variables, versions


def test_variables_are_restored_whatever_the_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "old")
    monkeypatch.delenv("NEW", raising=False)
    monkeypatch.delenv("SET_BY_THE_BLOCK", raising=False)
    before = dict(os.environ)
    with set_variables({"KEPT": "other", "NEW": "1"}, ("SET_BY_THE_BLOCK",)):
        assert (os.environ["KEPT"], os.environ["NEW"]) == ("other", "1")
        os.environ["SET_BY_THE_BLOCK"] = "x"
        del os.environ["NEW"]
    assert dict(os.environ) == before


def test_versions_and_commit_are_known() -> None:
    assert {"python", "torch", "ray"} <= versions().keys()
    assert git_commit() == "unknown" or len(git_commit().removesuffix("+changes")) == 40
