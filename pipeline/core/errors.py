"""The exceptions of the project, all in one place.

A job prints a `PipelineError` as one line without a traceback and exits with status 2, or 1 where there is nothing
for its user to mend. Anything else is a defect of ours and keeps its traceback.
"""

import importlib.util


class PipelineError(ValueError):
    """Something the user gave can't be used. The message names field, value and remedy."""


class SourceError(PipelineError):
    """Raw data is missing, damaged, hostile or of a layout that nobody here understands."""


class StorageError(PipelineError):
    """A storage refuses."""


class UnavailableError(StorageError):
    """A storage doesn't answer for longer than is waited for: the same command may well work later."""


class MissingPackageError(PipelineError):
    """What was asked for needs a package that isn't installed."""


class DatasetError(PipelineError):
    """An ingested data set is unfinished, damaged or not the one that was asked for."""


class RecipeError(PipelineError):
    """A recipe or one of its values doesn't exist or can't work."""


class CheckpointError(PipelineError):
    """A checkpoint or a run can't be continued with what was asked for."""


class CertificateError(PipelineError):
    """An evaluation isn't of the rows, the weights or the numbers that it is said to be of."""


class RegistryError(PipelineError):
    """A registry of models lacks what was asked for, or another process has changed it meanwhile."""


class DivergedError(PipelineError):
    """Training gave a loss or a gradient that isn't finite."""


class ClusterError(PipelineError):
    """The Ray cluster lacks what the job needs."""


class BudgetError(PipelineError):
    """A limit of time or money is used up. The message says how to continue."""


class ExactnessError(AssertionError):
    """Rows were lost, doubled or out of order: a defect, never the user's fault, never to be caught."""


def check_installed(what: str, *packages: str) -> None:
    """Raises MissingPackageError, with the remedy, unless all packages of the extra `evaluation` are there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"{what} needs {' and '.join(missing)}; install them: pip install 'image-pipeline[evaluation]', or, in "
            "a checkout, uv sync --extra evaluation"
        )
