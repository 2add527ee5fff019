"""What a stream is made of, whoever makes its batches: threads of this process or tasks of Ray Data."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from pipeline.config.choices import OnCorrupt
from pipeline.dataset.manifest import Split
from pipeline.dataset.row_group_cache import folder_of
from pipeline.dataset.row_reader import RowIndex, load_index
from pipeline.loader.batch import Batch
from pipeline.loader.samplers import Sampler
from pipeline.loader.transform import Transform

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
    cache: str = ""
    """Folder on each node for row groups read from object storage; empty for none."""

    def index(self) -> RowIndex:
        """Returns the index of the split."""
        index = load_index(self.uri, self.split)
        return replace(index, cache=folder_of(self.cache, self.split)) if self.cache else index


class ConsumerClosedError(Exception):
    """Ends a stream whose consumer has closed while it waited for a batch; nobody receives it."""
