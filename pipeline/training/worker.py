"""The parts of a training worker, which `setup.py` makes and the loop works with."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from pipeline.core.progress import Progress
from pipeline.core.structured_log import RunLog
from pipeline.dataset.manifest import Manifest
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.models.device.sharding import wholes
from pipeline.models.layers import may_draw
from pipeline.models.run_state import Average, RunState, collect
from pipeline.models.tensor_file import Tensors
from pipeline.models.weight_averages import WeightAverage
from pipeline.training.job import TrainJob
from pipeline.training.on_device.rank_zero import RankZero
from pipeline.training.on_device.steps_in_flight import StepsInFlight
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
    """The network as it is called in training: in DistributedDataParallel where there are several workers, or with its
    weights spread over them."""
    average: Average | None
    """The average of weights that the recipe asks for."""
    train_step: TrainStep
    unsharded: nn.Module | None = None
    """A copy of the network on the CPU, of any weights, where those of `net` are spread over the workers; else None."""

    @property
    def is_sharded(self) -> bool:
        """Whether weights, gradients and optimisers are spread over the workers (FSDP)."""
        return self.unsharded is not None

    @cached_property
    def draws(self) -> bool:
        """Whether a step may draw random numbers, such as dropout's. Known from the layers, which stay as they are."""
        return may_draw(self.net)

    def tensors(self, state: RunState) -> Tensors:
        """Returns references to the tensors of a checkpoint, by name."""
        return collect(self.net, self.train_step.optimizers, self.average, state, self.loss_scale)

    @property
    def loss_scale(self) -> Tensors:
        """The state of the scale of losses, which float16 has; empty in other precisions."""
        scale = self.train_step.loss_scale
        return scale.tensors if scale else {}

    def update_average(self, step: int, num_steps: int, found_inf: Tensor | None = None) -> None:
        """Updates the average after step number `step` of `num_steps`, which counts from 1.

        found_inf: scalar on the device; 1: the step was skipped, and has no part in it. Look-ahead ends a run on its
        slow weights, even if the last step is skipped.
        """
        if self.average is not None:
            self.average.update(step, num_steps, found_inf)

    def evaluated_net(self) -> nn.Module:
        """Returns the network that is evaluated: a copy with the averaged weights where they are kept apart.

        Of a network that is spread over the workers it is a whole copy. All ranks together then.
        """
        average = self.average.values if isinstance(self.average, WeightAverage) else None
        if self.unsharded is None and average is None:
            return self.net
        weights = {**self.net.state_dict(), **(average or {})}
        device = next(self.net.parameters()).device
        twin = copy.deepcopy(self.net if self.unsharded is None else self.unsharded).to(device)
        twin.load_state_dict(wholes(weights))
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
    in_flight: StepsInFlight
    """Steps that are launched, and whose losses aren't read yet."""
    rank_zero: RankZero
    """What rank 0 requests of all ranks."""
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
    reported_at: float = 0.0
    """Time of `time.monotonic` at which rank 0 requested a report last."""
    saved_at: float = field(default_factory=time.monotonic)
    """Time of `time.monotonic` of the last checkpoint, or of the start."""
    saved_step: int = -1
    """Step of the last checkpoint; -1 for none."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to go on with this run. Computed once: it may read files of weights."""
        return self.job.identity(self.data.digest)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.state.epochs * self.batches.order.steps_per_epoch
