"""What a stream is made of, whoever makes its batches: threads of this process or tasks of Ray Data."""

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from pipeline.config.choices import OnCorrupt
from pipeline.dataset.cache_folder import CacheFolder
from pipeline.dataset.manifest import Split
from pipeline.dataset.row_group_cache import RowGroupCache
from pipeline.dataset.row_reader import RowIndex, load_index
from pipeline.loader.batch import Batch
from pipeline.loader.row_groups.ahead import RowGroupsAhead, open_ahead
from pipeline.loader.row_groups.visits import NEVER, NodeReads
from pipeline.loader.samplers import Sampler, TrainSampler
from pipeline.loader.transform import Transform
from pipeline.storage import files

Source = Callable[[Callable[[], bool]], Generator[Batch]]
"""Makes the iterator of a stream, for a thread that may have to end while it waits for a batch: it is called with a
function that says whether the thread ends; the stream then ends early."""


@dataclass(frozen=True)
class StreamPlan:
    """The batches of a sampler, and how each is made."""

    uri: str
    """URI of the data set."""
    split: Split
    sampler: Sampler
    transform: Transform
    on_corrupt: OnCorrupt = "stop"
    """"quarantine" leaves out images whose bytes have changed or can't be decoded; "stop" raises DatasetError."""
    cache: CacheFolder | None = None
    """Folder on each node for row groups read from object storage."""
    node_ranks: tuple[int, ...] = ()
    """Ranks on this node, which share the cache; empty for what `ranks_of_node` supposes."""
    goes_on: bool = False
    """Whether another stream begins where this one ends, as the epochs of `pipeline.Loader` do."""

    def index(self) -> RowIndex:
        """Returns the index of the split, through whose cache row groups are read when they are needed."""
        index = load_index(self.uri, self.split)
        return replace(index, cache=RowGroupCache.of(self.cache, self.split)) if self.cache else index

    def ahead(self) -> RowGroupsAhead | None:
        """Returns what fetches row groups ahead of this process's rank; None without a cache, an order or a need."""
        index, sampler = load_index(self.uri, self.split), self.sampler
        if self.cache is None or not isinstance(sampler, TrainSampler) or all(map(files.is_local, index.paths)):
            return None
        ranks = self.node_ranks or ranks_of_node(sampler.world_size, sampler.rank)
        stop = NEVER if self.goes_on else sampler.num_steps
        reads = NodeReads(sampler.order, index, sampler.world_size, ranks, sampler.first_step, stop)
        return open_ahead(reads, RowGroupCache.of(self.cache, self.split), sampler.rank)


def ranks_of_node(world_size: int, rank: int) -> tuple[int, ...]:
    """Returns the ranks on the node of `rank`: torchrun tells their number, and they follow each other.

    Where nobody tells, all ranks are supposed to be on one node.
    """
    local_size, local_rank = (int(os.environ.get(name, "0")) for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK"))
    first = rank - local_rank
    if local_size and first >= 0 and first + local_size <= world_size:
        return tuple(range(first, first + local_size))
    return tuple(range(world_size))


class ConsumerClosedError(Exception):
    """Ends a stream whose consumer has closed while it waited for a batch; nobody receives it."""
