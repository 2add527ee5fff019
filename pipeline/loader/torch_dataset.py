"""A loader as torch's IterableDataset, for libraries that accept nothing else."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.core.errors import RecipeError
from pipeline.loader.batch import Batch


class Sample(NamedTuple):
    """One image with its label; a tuple, so that torch's DataLoader puts samples together as it is used to."""

    image: Tensor
    """uint8 [3, S, S]."""
    label: Tensor
    """int64, a scalar."""


def samples_of(batch: Batch) -> Iterator[Sample]:
    """Yields the samples of a batch in their order."""
    yield from map(Sample, batch.images, batch.labels)


class LoaderDataset(IterableDataset[Batch | Sample]):
    """The batches, or samples, of a loader: an epoch for each iteration, and the loader's rank's part of it.

    For torch's DataLoader of batches: DataLoader(dataset, batch_size=None). It mustn't have worker processes: the
    loader has threads. Attributes: loader, the loader, whose state is the position.
    """

    def __init__(self, loader: Any, samples: bool) -> None:
        self.loader, self._samples = loader, samples

    def __iter__(self) -> Iterator[Batch | Sample]:
        """Yields the rest of the current epoch. Raises RecipeError in a worker process of torch's DataLoader."""
        if (worker := get_worker_info()) is not None:
            raise RecipeError(
                f"num_workers={worker.num_workers} of the DataLoader must be 0: the loader decodes by threads, and "
                "each worker process would yield all rows"
            )
        batch: Batch
        for batch in self.loader:
            yield from samples_of(batch) if self._samples else [batch]

    def __len__(self) -> int:
        """Returns the number of batches of an epoch. Raises TypeError for samples, as torch expects: not counted."""
        if self._samples:
            raise TypeError("the samples of an epoch aren't counted before they come; len(loader) counts batches")
        return len(self.loader)
