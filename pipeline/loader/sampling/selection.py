"""Which rows of each global batch are trained on, of all epochs of a run."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.config.sampling import ProxyFilter


@dataclass(frozen=True, eq=False)
class Selection:
    """What a filter keeps. kept: bool [E, N], whether the row at each place of the order is trained on, by epoch.

    `pipeline.training.selection` makes it. The places are those of `Order.epoch_rows`.
    """

    proxy_filter: ProxyFilter
    kept: npt.NDArray[np.bool_]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is kept, in hex."""
        return hashlib.sha256(repr((self.proxy_filter, self.kept.shape)).encode() + self.packed().tobytes()).hexdigest()

    def packed(self) -> npt.NDArray[np.uint8]:
        """Returns uint8 [E, ceil(N / 8)]: a bit for each row, the first of eight rows the highest."""
        return np.packbits(self.kept, axis=1)

    @staticmethod
    def unpacked(proxy_filter: ProxyFilter, packed: npt.NDArray[np.uint8], num_rows: int) -> "Selection":
        """Returns the selection that `packed` became `packed`. num_rows: N."""
        return Selection(proxy_filter, np.unpackbits(packed, axis=1, count=num_rows).astype(np.bool_))
