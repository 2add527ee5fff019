"""Configuration of a batch prediction, and how it is cut into units of work and files."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.config.choices import TestViews
from pipeline.evaluation.batch_predict.decode_task import UNIT_IMAGES
from pipeline.loader.decode import DecoderName
from pipeline.models.load import TrainedModel
from pipeline.storage import files

PART_UNITS = 64  # in a file


@dataclass(frozen=True)
class PredictJob:
    """Configuration of a batch prediction."""

    model: TrainedModel
    images: pa.Table  # of `find_images`
    out: str  # absolute URI of the folder of results
    views: TestViews  # test views of each image
    decoder: DecoderName
    num_workers: int = 1  # actors that hold the network
    use_gpu: bool = False  # one GPU for each actor
    threads: int = 1  # torch threads of each actor on a CPU
    skipped: dict[str, int] = field(default_factory=dict)  # other files of the input by kind, for the summary
    recorded: bool = False  # whether the result files have the columns `seconds` and `content`

    @property
    def num_units(self) -> int:
        """Number of units of UNIT_IMAGES images; the last one may be smaller."""
        return -(-self.images.num_rows // UNIT_IMAGES)

    @property
    def parts(self) -> list[range]:
        """The units of each result file."""
        return [range(first, min(first + PART_UNITS, self.num_units)) for first in range(0, self.num_units, PART_UNITS)]

    def part_uri(self, part: range) -> str:
        """Returns the URI of the result file of a part."""
        return files.join(self.out, f"part-{part.start // PART_UNITS:06d}.parquet")

    def unit(self, unit: int) -> pa.Table:
        """Returns the images of a unit."""
        return self.images.slice(unit * UNIT_IMAGES, UNIT_IMAGES)

    def plan(self) -> dict[str, Any]:
        """Returns everything that the results depend on: the content of `plan.json`."""
        names = hashlib.sha256()
        for column in self.images.select(["name", "object", "offset", "length"]).columns:
            names.update("\n".join(map(str, column.to_pylist())).encode())
        return {
            "model": self.model.sha256,
            "images": names.hexdigest(),
            "views": self.views,
            "decoder": self.decoder,
            "unit_images": UNIT_IMAGES,
            "part_units": PART_UNITS,
        }
