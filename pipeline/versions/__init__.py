"""The versions of a data set, side by side in one folder: listed, compared, compacted, dropped, removed from for good.

The folder of versions, or the URI of one of them, comes in. `ingestion` makes versions; this room looks at them and
takes them away, and never a shard that another version needs. The door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.versions.compaction import compact
    from pipeline.versions.compare import Changes, compare_datasets
    from pipeline.versions.drop import Dropped, drop_version
    from pipeline.versions.listing import VersionSummary, list_versions
    from pipeline.versions.removal.run import Forgotten, forget
    from pipeline.versions.sql import duckdb_views

__all__ = [
    "Changes",
    "Dropped",
    "Forgotten",
    "VersionSummary",
    "compact",
    "compare_datasets",
    "drop_version",
    "duckdb_views",
    "forget",
    "list_versions",
]
__getattr__ = lazy(
    __name__,
    {
        "compaction": ("compact",),
        "compare": ("Changes", "compare_datasets"),
        "drop": ("Dropped", "drop_version"),
        "removal.run": ("Forgotten", "forget"),
        "listing": ("VersionSummary", "list_versions"),
        "sql": ("duckdb_views",),
    },
)
