"""Arguments of the public functions: runs, data sets and folders as paths, URIs or objects; options; workers."""

import os
from dataclasses import dataclass

from pipeline.cluster import resources
from pipeline.config.choices import TestViews
from pipeline.core.errors import RecipeError, check_installed
from pipeline.core.progress import Progress, silent
from pipeline.dataset.api import Dataset
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.ingestion.sources import Source
from pipeline.storage import files

StrPath = str | os.PathLike[str]
Data = StrPath | Dataset


@dataclass(frozen=True)
class Workers:
    """The processes that hold a copy of the network."""

    num: int | None = None
    """Processes that predict; 0 is this one, without Ray (not for predict). None is one for each GPU of the
    cluster that RAY_ADDRESS names, else of this machine; without GPUs it is 0 for `evaluate` and 1 for `predict`."""
    device: resources.Device = "auto"
    """Device of each process: gpu, cpu, or auto for a GPU each if there are enough."""
    wait_minutes: float = 0.0
    """Minutes to wait for nodes that an autoscaler has to start."""

    def __post_init__(self) -> None:
        resources.check_machine(self.num, self.device)  # before the data are looked at


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and which analyses are added. Raises RecipeError for a value that is out of range."""

    split: str = "val"
    """Name of a split, or held-out: the part of train that the run did not train on. `test` is for one look at the end:
    the result says when it was evaluated before."""
    views: TestViews | None = None
    """Test views of each image. None takes the recipe's."""
    slice_by: tuple[str, ...] = ()
    """Columns of the data set's provenance to slice by, besides class, size and brightness."""
    severities: tuple[int, ...] = ()
    """Severities of the corruptions to evaluate, 1 to 5. None are evaluated by default."""
    robustness_rows: int = 2000
    """Number of images that are corrupted; 0 for all."""
    explain: bool = False
    """Grad-CAM and integrated gradients of some images. Needs the extra `evaluation`."""
    label_issues: bool = False
    """Training images whose label is likely to be wrong. Needs the extra `evaluation`."""
    label_rows: int = 50_000
    """Number of training images whose labels are looked at, at most."""

    def __post_init__(self) -> None:
        if not all(1 <= severity <= 5 for severity in self.severities):
            raise RecipeError(f"severities={' '.join(map(str, self.severities))} must be 1 to 5")
        if self.robustness_rows < 0:
            raise RecipeError(f"robustness-rows={self.robustness_rows} must be 0 (all) or more")
        if self.label_rows < 1:
            raise RecipeError(f"label-rows={self.label_rows} must be 1 or more")

    def check_packages(self) -> None:
        """Raises MissingPackageError if a package is missing that an analysis needs."""
        if self.explain:
            check_installed("explain", "captum")
        if self.label_issues:
            check_installed("label-problems", "cleanlab")


def absolute_uri(place: StrPath) -> str:
    """Returns the absolute path or URI of a file or folder, without a slash at its end."""
    return files.absolute(os.fspath(place)).rstrip("/") or "/"


def dataset_uri(data: Data | None, progress: Progress = silent, split: str = "val") -> str:
    """Returns the URI of a finished data set: of `data`, or ingested from the raw images there.

    data: None for CIFAR-10. split: the one that will be evaluated; of raw images with neither val nor test every image
    is val, unless another split is asked for. Raises SourceError if there is nothing.
    """
    if isinstance(data, Dataset):
        return data.uri
    source = None if data is None else Source(os.fspath(data), for_evaluation=split == "val")
    return prepare_dataset(source, progress=progress)
