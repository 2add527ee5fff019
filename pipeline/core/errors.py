"""The exceptions of the project.

A job prints a `PipelineError` as one line without a traceback. It exits with status 2, or with 1 for an
`UnavailableError`, which the user can't mend. Any other exception is a defect of ours and keeps its traceback.
"""

import importlib.util


class PipelineError(ValueError):
    """An input of the user can't be used. The message names the field, the value and the remedy."""


class SourceError(PipelineError):
    """Raw data is missing, damaged, hostile or in an unknown layout."""


class StorageError(PipelineError):
    """A storage refuses a request."""


class UnavailableError(StorageError):
    """A storage hasn't answered within the time limit. The same command may work later."""


class DamagedError(StorageError):
    """A stored file was read, and its content is damaged."""


class MissingPackageError(PipelineError):
    """A feature needs a package that isn't installed."""


class DatasetError(PipelineError):
    """A data set is unfinished, damaged or not the one that is needed."""


class RecipeError(PipelineError):
    """A recipe doesn't exist, or one of its values is invalid."""


class CheckpointError(PipelineError):
    """A checkpoint is damaged, or a run can't be continued with these settings."""


class CertificateError(PipelineError):
    """The certificate of an evaluation doesn't match its rows, weights or metrics."""


class RegistryError(PipelineError):
    """A registry of models lacks what was asked for, or another process has changed it meanwhile."""


class MovedError(RegistryError):
    """Another process has moved an alias of a registry meanwhile, or is about to. Nothing was changed."""


class DivergedError(PipelineError):
    """A loss or a gradient isn't finite."""


class StoppedError(PipelineError):
    """A run was asked to stop; its state is saved, and the same run can go on."""


class ClusterError(PipelineError):
    """The Ray cluster lacks resources that the job needs."""


class BudgetError(PipelineError):
    """A limit of time or money is used up. The message says how to continue."""


class ModelFailedError(RuntimeError):
    """The code of a trained model failed: its network can't be built, or not be applied to images."""


class ExactnessError(AssertionError):
    """Rows were lost, repeated or out of order: a defect of ours, never to be caught."""


def check_installed(what: str, *packages: str, extra: str = "evaluation") -> None:
    """Raises MissingPackageError, with the remedy, unless all the packages are installed.

    what: the feature that needs them, for the message. packages: names of modules from the extra.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"{what} needs {' and '.join(missing)}; install them: pip install 'image-pipeline[{extra}]', or, in "
            f"a checkout, uv sync --inexact --extra {extra}"
        )
