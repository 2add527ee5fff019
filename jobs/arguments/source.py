"""Flags of raw images: how their files and labels are read. Every command that takes raw images has them."""

from dataclasses import dataclass
from typing import Annotated

from jobs.arguments.flags import option
from pipeline.ingestion.sources import LAYOUTS, Source
from pipeline.ingestion.sources.source import (
    IMAGE_COLUMN_HELP,
    LABEL_COLUMN_HELP,
    MAX_QUARANTINED,
    MAX_QUARANTINED_HELP,
    VAL_SHARE,
    VAL_SHARE_HELP,
)


@dataclass(frozen=True)
class RawArgs:
    """Raw images, where a data set isn't given."""

    layout: Annotated[str, option(f"layout of raw images: auto, {', '.join(LAYOUTS)}", "NAME", "auto")] = "auto"
    md5: Annotated[
        str | None, option("expected MD5 of a CIFAR archive; any: don't check", "HEX", "the published archive's")
    ] = None
    val_share: Annotated[float, option(VAL_SHARE_HELP, "X", "0.1")] = VAL_SHARE
    max_quarantined: Annotated[float, option(MAX_QUARANTINED_HELP, "N", "0.5, or 0.1 in retraining")] = MAX_QUARANTINED
    image_column: Annotated[str | None, option(IMAGE_COLUMN_HELP, "NAME", "by content")] = None
    label_column: Annotated[str | None, option(LABEL_COLUMN_HELP, "NAME", "by content and name")] = None

    def source(self, uri: str | None) -> Source | None:
        """Returns a URI as a source, None for None. Raises PipelineError for a value out of range."""
        if uri is None:
            return None
        return Source(uri, self.layout, self.md5, self.val_share, self.image_column, self.label_column)
