"""Raw images become a data set: the source is indexed, shards are planned, images are checked, and shards written.

The URI of a source comes in: class folders, tars, CIFAR or ImageNet archives, WebDataset. A data set goes out whose
bytes are the same for every ingest of the same source with the same settings. The door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.ingestion.api import Preview, ingest, preview_ingest
    from pipeline.ingestion.corrections.decide import VerdictCounts
    from pipeline.ingestion.corrections.run import Corrected, correct
    from pipeline.ingestion.image_check import ImageHandling
    from pipeline.ingestion.plan import IngestSettings
    from pipeline.ingestion.prepare import prepare_dataset
    from pipeline.ingestion.run import Ingested
    from pipeline.ingestion.sources.source import Source
    from pipeline.ingestion.verify import Damage, verify_dataset

__all__ = [
    "Corrected",
    "Damage",
    "ImageHandling",
    "IngestSettings",
    "Ingested",
    "Preview",
    "Source",
    "VerdictCounts",
    "correct",
    "ingest",
    "prepare_dataset",
    "preview_ingest",
    "verify_dataset",
]
__getattr__ = lazy(
    __name__,
    {
        "api": ("Preview", "ingest", "preview_ingest"),
        "corrections.decide": ("VerdictCounts",),
        "corrections.run": ("Corrected", "correct"),
        "image_check": ("ImageHandling",),
        "plan": ("IngestSettings",),
        "prepare": ("prepare_dataset",),
        "run": ("Ingested",),
        "sources.source": ("Source",),
        "verify": ("Damage", "verify_dataset"),
    },
)
