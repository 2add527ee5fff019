"""Facts about the installation."""

from pipeline.core.environment import git_commit, versions


def test_versions_and_commit_are_known() -> None:
    assert {"python", "torch", "ray"} <= versions().keys()
    assert git_commit() == "unknown" or len(git_commit().removesuffix("+changes")) == 40
