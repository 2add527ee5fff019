"""The parts of a training worker, which `setup.py` makes and the loop works with."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.core.progress import Progress
from pipeline.core.structured_log import RunLog
from pipeline.dataset.manifest import Manifest
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.models.run_state import Average, RunState, collect
from pipeline.models.tensor_file import Tensors
from pipeline.models.weight_averages import LookAhead, WeightAverage
from pipeline.training.job import TrainJob
from pipeline.training.row_trace import RowTrace
from pipeline.training.safeguards.divergence import FiniteGuard
from pipeline.training.safeguards.interruption import Interruption
from pipeline.training.safeguards.preemption import PreemptionWatcher
from pipeline.training.safeguards.watchdog import Watchdog
from pipeline.training.step_meter import Meter
from pipeline.training.trackers.base import Trackers
from pipeline.training.train_step import TrainStep
from pipeline.training.worker_data import Batches


@dataclass
class Learner:
    """The network, and what changes its weights."""

    net: nn.Module
    """The network itself."""
    model: Any
    """The network as it is called in training: in DistributedDataParallel where there are several workers."""
    average: Average | None
    """The average of weights that the recipe asks for."""
    train_step: TrainStep

    def tensors(self, state: RunState) -> Tensors:
        """Returns references to the tensors of a checkpoint, by name."""
        return collect(self.net, self.train_step.optimizers, self.average, state)

    def update_average(self, step: int, num_steps: int, skipped: bool) -> None:
        """Updates the average after step number `step` of `num_steps`, which counts from 1. A skipped step has no part.

        Look-ahead ends a run on its slow weights, even if the last step is skipped.
        """
        if self.average is None:
            return
        if not skipped:
            self.average.update(self.net, step, num_steps)
        elif step == num_steps and isinstance(self.average, LookAhead):
            self.net.load_state_dict({**self.net.state_dict(), **self.average.values})

    def evaluated_net(self) -> nn.Module:
        """Returns the network that is evaluated: a copy with the averaged weights where they are kept apart."""
        if not isinstance(self.average, WeightAverage):
            return self.net
        twin = copy.deepcopy(self.net)
        twin.load_state_dict({**self.net.state_dict(), **self.average.values})
        return twin


@dataclass
class Worker:
    """One training worker: its place among the others, its parts, and the state of the run."""

    job: TrainJob
    data: Manifest
    batches: Batches
    """This worker's share of training and validation data; also knows rank, world size and device."""
    learner: Learner
    state: RunState
    guard: FiniteGuard
    writer: CheckpointWriter
    preemption: PreemptionWatcher
    trackers: Trackers
    trace: RowTrace | None
    meter: Meter
    watchdog: Watchdog
    interruption: Interruption
    log: RunLog
    progress: Progress
    """Reports progress to the display; silent on all ranks but 0."""
    warn: Callable[[str, str], None]
    """Reports (stage, line), which may need attention, to the display and the log."""
    shown_at: float = 0.0
    """Time of `time.monotonic` at which the progress of a step between reports was shown last."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.state.epochs * self.batches.order.steps_per_epoch
