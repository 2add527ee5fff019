"""The Ray task that makes one batch of a stream.

torch isn't imported here, nor by what is imported here: it is most of the start-up time of a task's process, and only
some augmentations need it.
"""

import ctypes
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.choices import OnCorrupt
from pipeline.loader.decode import check_decoder
from pipeline.loader.samplers import Sampler
from pipeline.loader.stage_times import Stopwatch
from pipeline.loader.transform import Transform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class BatchTask:
    """Makes one batch of a sampler; runs in a Ray task on any CPU of the cluster."""

    index: Any  # an ObjectRef of RowIndex
    sampler: Sampler
    transform: Transform
    on_corrupt: OnCorrupt

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """batch: {"id": int64 [1]}, the batch's position in the sampler. Returns one row, which Ray Data can't split.

        index: int64 [1]; row, label: int64 [1, N]; image: uint8 [1, N, S, S, 3]; corrupt: bool [1, N]; timing: float64
        [1, 5]; error: str [1], empty, or why there is no batch: raised here, it would end all tasks of the execution.
        """
        number = int(batch["id"][0])
        try:
            return self._load(number)
        except Exception as error:
            none = np.zeros((1, 1), dtype=np.int64)
            return {
                "index": np.array([number]),
                "row": none,
                "label": none,
                "image": np.zeros((1, 1, 1, 1, 3), dtype=np.uint8),
                "corrupt": none == 0,
                "timing": np.zeros((1, 5)),
                "error": np.array([f"{type(error).__name__}: {error}"]),
            }

    def _load(self, number: int) -> dict[str, npt.NDArray[Any]]:
        import ray

        _keep_freed_memory()
        check_decoder(self.transform.decoder)
        if self.transform.needs_torch:
            import torch

            torch.set_num_threads(1)  # other tasks use the other CPUs
        watch = Stopwatch()
        rows, index = self.sampler.rows(number), ray.get(self.index)
        unusable: set[int] | None = set() if self.on_corrupt == "quarantine" else None
        images = self.transform.load(index, rows, self.sampler.epochs(number), unusable, watch)
        corrupt = np.zeros(len(rows), dtype=np.bool_)
        corrupt[sorted(unusable or ())] = True
        return {
            "index": np.array([number]),
            "row": rows[None],
            "label": index.label[rows].astype(np.int64)[None],
            "image": images[None],
            "corrupt": corrupt[None],
            "timing": np.array([astuple(watch.timing())]),
            "error": np.array([""]),
        }


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Tells glibc to keep freed memory: batches of one size follow each other, and fresh pages cost 3 % of the time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
