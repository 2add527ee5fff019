"""What every room may use: errors, progress, keyed random numbers, logs, processes and versions.

Plain values come in. Exceptions, random numbers that depend on (seed, epoch, key) alone, and facts about this process
and installation go out. This room imports no other room.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.core.environment import git_commit, versions
    from pipeline.core.errors import (
        CertificateError,
        CheckpointError,
        ClusterError,
        DatasetError,
        DivergedError,
        ExactnessError,
        MissingPackageError,
        PipelineError,
        RecipeError,
        RegistryError,
        SourceError,
        StorageError,
        UnavailableError,
    )
    from pipeline.core.keyed_random import Stream, permutation, uniform
    from pipeline.core.partition import even_split
    from pipeline.core.progress import Progress, silent
    from pipeline.core.structured_log import RunLog

__all__ = [
    "CertificateError",
    "CheckpointError",
    "ClusterError",
    "DatasetError",
    "DivergedError",
    "ExactnessError",
    "MissingPackageError",
    "PipelineError",
    "Progress",
    "RecipeError",
    "RegistryError",
    "RunLog",
    "SourceError",
    "StorageError",
    "Stream",
    "UnavailableError",
    "even_split",
    "git_commit",
    "permutation",
    "silent",
    "uniform",
    "versions",
]
__getattr__ = lazy(
    __name__,
    {
        "environment": ("git_commit", "versions"),
        "errors": (
            "CertificateError",
            "CheckpointError",
            "ClusterError",
            "DatasetError",
            "DivergedError",
            "ExactnessError",
            "MissingPackageError",
            "PipelineError",
            "RecipeError",
            "RegistryError",
            "SourceError",
            "StorageError",
            "UnavailableError",
        ),
        "keyed_random": ("Stream", "permutation", "uniform"),
        "partition": ("even_split",),
        "progress": ("Progress", "silent"),
        "structured_log": ("RunLog",),
    },
)
