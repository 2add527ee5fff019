"""A source of raw images, as a user describes it."""

from dataclasses import dataclass, replace

from pipeline.storage import files


@dataclass(frozen=True)
class Source:
    """Raw images: where they lie, and how they are to be read."""

    uri: str
    """A folder, a tar (.gz, .xz) or a folder of tars: a path, or a URI such as s3://bucket/key. Or "digits"."""

    layout: str = "auto"
    """"auto" recognises the layout by the names of the files; else one of `ingestion.sources.LAYOUTS`."""

    md5: str | None = None
    """Expected MD5 (hex) of a CIFAR archive: None for that of the published archive, "any" for no check."""

    def resolved(self) -> "Source":
        """Returns the source with an absolute URI. Raises PipelineError if the URI can't be used."""
        if self.layout == "digits" or (self.layout, self.uri) == ("auto", "digits"):
            return replace(self, layout="digits")
        return replace(self, uri=files.absolute(self.uri))
