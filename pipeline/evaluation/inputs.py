"""Arguments of the public functions: runs, data sets and folders as paths, URIs or objects, made absolute URIs."""

import os

from pipeline.core.progress import Progress, silent
from pipeline.dataset.api import Dataset
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.ingestion.sources import Source
from pipeline.storage import files

StrPath = str | os.PathLike[str]
Data = StrPath | Dataset


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
