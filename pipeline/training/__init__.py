"""Training: a recipe is carried out on a data set, as one process or many, and continued after any interruption.

A data set, a recipe and options come in. A run goes out: checkpoints, weights, predictions, a result and a report below
one URI. The door is `__all__`; `loop.py` is the place to start reading.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.training.job import TrainJob, Weights
    from pipeline.training.launch import check_job, claim_run, run_training
    from pipeline.training.outputs.report import write_report
    from pipeline.training.outputs.result import build_result, read_result
    from pipeline.training.replay import Replay, replay_checkpoint
    from pipeline.training.workflow import TrainOptions, make_job, train, train_job

__all__ = [
    "Replay",
    "TrainJob",
    "TrainOptions",
    "Weights",
    "build_result",
    "check_job",
    "claim_run",
    "make_job",
    "read_result",
    "replay_checkpoint",
    "run_training",
    "train",
    "train_job",
    "write_report",
]
__getattr__ = lazy(
    __name__,
    {
        "job": ("TrainJob", "Weights"),
        "launch": ("check_job", "claim_run", "run_training"),
        "outputs.report": ("write_report",),
        "outputs.result": ("build_result", "read_result"),
        "replay": ("Replay", "replay_checkpoint"),
        "workflow": ("TrainOptions", "make_job", "train", "train_job"),
    },
)
