"""A source of raw images, as a user describes it."""

from dataclasses import dataclass, replace

from pipeline.core.errors import PipelineError
from pipeline.ingestion.sources import hub
from pipeline.storage import files

VAL_SHARE = 0.1
VAL_SHARE_HELP = "share of each class held out as val where the images have neither val nor test"

# Share of the labelled files that may be unusable by default: one bad file shouldn't end an ingest, and where most are
# bad the source isn't what it was taken for.
MAX_QUARANTINED = 0.5
MAX_QUARANTINED_HELP = "unusable files that may be left out; below 1: a share of all files"

IMAGE_COLUMN_HELP = "column of a table (CSV, Parquet) that names the files, or holds the images"
LABEL_COLUMN_HELP = "column of a table that holds the labels"


@dataclass(frozen=True)
class Source:
    """Raw images: where they lie, and how they are to be read."""

    uri: str
    """A folder, an archive (tar, zip), a table of files and labels (CSV, Parquet), or a folder with any of these.

    A path, or a URI: s3://bucket/key, gs://bucket/key, hf://datasets/OWNER/NAME. Or the word digits.
    """

    layout: str = "auto"
    """"auto" recognises the layout by the names of the files; else one of `ingestion.sources.LAYOUTS`."""

    md5: str | None = None
    """Expected MD5 (hex) of a CIFAR archive: None for that of the published archive, "any" for no check."""

    val_share: float = VAL_SHARE
    """Share of each class that is held out as val where the source has neither val nor test, above 0 and below 1."""

    image_column: str | None = None
    """Column of a table that names the files, or holds the images; None finds it by its content."""

    label_column: str | None = None
    """Column of a table that holds the labels; None finds it by its content and its name."""

    for_evaluation: bool = False
    """Of a source with neither val nor test every image becomes val, and train may be missing."""

    test_share: float = 0.0
    """Share of val, of each class, that is set aside as test by a hash of the keys, from 0 (none) to below 1. Without
    effect where the source has test beside val."""

    def __post_init__(self) -> None:
        if not 0 <= self.test_share < 1:
            raise PipelineError(f"test_share={self.test_share:g} must be 0 (none), or a share below 1 such as 0.2")
        if not 0 < self.val_share < 1:
            raise PipelineError(f"val_share={self.val_share:g} must lie above 0 and below 1, such as 0.1")

    def resolved(self) -> "Source":
        """Returns the source with an absolute URI. Raises PipelineError if the URI can't be used."""
        if self.layout == "digits" or (self.layout, self.uri) == ("auto", "digits"):
            return replace(self, layout="digits")
        if self.uri.startswith(hub.SCHEME):
            return self
        return replace(self, uri=files.absolute(self.uri))
