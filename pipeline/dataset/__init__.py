"""A finished data set, read: its manifest, its images by index, its provenance, and a cache of its row groups.

The URI of a data set comes in. Manifests, tables, and the stored bytes of single rows go out; bytes that have changed
since ingest are an error. The door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.dataset.api import Dataset, ImageSplit, open_dataset
    from pipeline.dataset.manifest import Manifest
    from pipeline.dataset.mixture import mix

__all__ = ["Dataset", "ImageSplit", "Manifest", "mix", "open_dataset"]
__getattr__ = lazy(
    __name__, {"api": ("Dataset", "ImageSplit", "open_dataset"), "manifest": ("Manifest",), "mixture": ("mix",)}
)
