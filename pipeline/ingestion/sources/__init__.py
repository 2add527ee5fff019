"""Sources of raw images: recognises the layout and lists the images, without decoding any.

A `Source` comes in. Out goes an `Index`: for each sample its key, its label, and where its bytes lie.
"""

from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.open import LAYOUTS, open_source
from pipeline.ingestion.sources.source import Source

__all__ = ["LAYOUTS", "Index", "Source", "open_source"]
