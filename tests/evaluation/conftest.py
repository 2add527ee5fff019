"""One evaluation of the session's trained run, shared by the tests of this room."""

import pytest

from pipeline.dataset import open_dataset
from pipeline.evaluation import EvaluateOptions, evaluate


@pytest.fixture(scope="session")
def evaluation(trained: str, digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an evaluation of `trained` on val, one view of each image. Tests that change files copy it."""
    out = str(tmp_path_factory.mktemp("evaluation") / "out")
    evaluate(trained, open_dataset(digits_dataset), out, EvaluateOptions(views="none"), workers=0)
    return out
