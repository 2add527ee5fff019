"""Raw images in the layouts found in the wild, each turned into an index without decoding anything."""

from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.open import LAYOUTS, open_source

__all__ = ["LAYOUTS", "Index", "open_source"]
