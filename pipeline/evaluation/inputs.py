"""Arguments of the public functions: runs, data sets and folders as paths, URIs or objects, made absolute URIs."""

import os

from pipeline.core.progress import Progress, silent
from pipeline.dataset.api import Dataset
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files

StrPath = str | os.PathLike[str]
Data = StrPath | Dataset


def absolute_uri(place: StrPath) -> str:
    """Returns the absolute path or URI of a file or folder, without a slash at its end."""
    return files.absolute(os.fspath(place)).rstrip("/") or "/"


def dataset_uri(data: Data | None, progress: Progress = silent) -> str:
    """Returns the URI of a finished data set: of `data`, or ingested from the raw images there, as `train` does.

    data: None for CIFAR-10. Raises SourceError if there is nothing.
    """
    if isinstance(data, Dataset):
        return data.uri
    return prepare_dataset(None if data is None else os.fspath(data), progress=progress)
