"""A source of raw images, as a user describes it."""

from dataclasses import dataclass, replace

from pipeline.core.errors import PipelineError
from pipeline.storage import files

VAL_SHARE = 0.1
VAL_SHARE_HELP = "share of each class held out as val where the images have neither val nor test"


@dataclass(frozen=True)
class Source:
    """Raw images: where they lie, and how they are to be read."""

    uri: str
    """A folder, an archive (tar, zip) or a folder of archives: a path, or a URI (s3://bucket/key). Or "digits"."""

    layout: str = "auto"
    """"auto" recognises the layout by the names of the files; else one of `ingestion.sources.LAYOUTS`."""

    md5: str | None = None
    """Expected MD5 (hex) of a CIFAR archive: None for that of the published archive, "any" for no check."""

    val_share: float = VAL_SHARE
    """Share of each class that is held out as val where the source has neither val nor test, above 0 and below 1."""

    for_evaluation: bool = False
    """Of a source with neither val nor test every image becomes val, and train may be missing."""

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise PipelineError(f"val_share={self.val_share:g} must lie above 0 and below 1, such as 0.1")

    def resolved(self) -> "Source":
        """Returns the source with an absolute URI. Raises PipelineError if the URI can't be used."""
        if self.layout == "digits" or (self.layout, self.uri) == ("auto", "digits"):
            return replace(self, layout="digits")
        return replace(self, uri=files.absolute(self.uri))
