"""Raw images as a user names them."""

from dataclasses import dataclass, replace

from pipeline.storage import files


@dataclass(frozen=True)
class Source:
    """Raw images: where they lie, and how they are to be read."""

    # A folder, a tar (.gz, .xz) or a folder of tars; a path, or a URI such as s3://bucket/key; or "digits".
    uri: str
    # "auto" recognises the layout by the names of the files; else one of `LAYOUTS`.
    layout: str = "auto"
    # Expected MD5 (hex) of a CIFAR archive: None for the published one, "any" for no check.
    md5: str | None = None

    def resolved(self) -> "Source":
        """Returns the source with an absolute URI. Raises PipelineError if the URI can't be used."""
        if self.layout == "digits" or (self.layout, self.uri) == ("auto", "digits"):
            return replace(self, layout="digits")
        return replace(self, uri=files.absolute(self.uri))
