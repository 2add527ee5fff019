"""A finished run that the runs which are killed and interrupted have to equal."""

from pathlib import Path

import pytest

from tests.support.jobs import SIX_EPOCHS, call_job


@pytest.fixture(scope="session")
def undisturbed(digits_dataset: str, ray_variables: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of SIX_EPOCHS in this process, which nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finished = call_job("cifar10", *SIX_EPOCHS, "--data", digits_dataset, "--run-dir", "run", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert "NOT CIFAR-10" in finished.stdout
    return folder / "run"
