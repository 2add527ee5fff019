"""A data set ready to train on: given, ingested from raw images and kept, or CIFAR-10."""

import hashlib
import logging
import os
import time
from dataclasses import replace

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress, silent
from pipeline.core.user_folders import cache_folder
from pipeline.dataset.manifest import is_dataset, load
from pipeline.ingestion.api import ingest
from pipeline.ingestion.sources import Source, hub, located
from pipeline.ingestion.sources.download import cifar10_archive
from pipeline.ingestion.sources.source import MAX_QUARANTINED
from pipeline.storage import files
from pipeline.storage.places import nearest

_RULES = "3"  # version of the rules by which splits, classes and images are recognised
_log = logging.getLogger(__name__)


def prepare_dataset(
    data: str | os.PathLike[str] | Source | None = None,
    parent: str | os.PathLike[str] | None = None,
    *,
    max_quarantined: float = MAX_QUARANTINED,
    progress: Progress = silent,
) -> str:
    """Returns the URI of a finished data set: `data` itself, or the data set ingested from the raw images there.

    data: a path or a URI, or a `Source` that says how raw images are read; None for CIFAR-10, which is downloaded once;
    offline, scikit-learn's digits take its place. parent: folder for ingested data sets, None for one below
    `cache_folder()`. max_quarantined: unusable files that may be left out; below 1, a share of all. Raw images are
    ingested once; names, sizes and times of the files tell whether they have changed.
    Raises SourceError if nothing lies at `data`, and what `ingest` raises.
    """
    parent = files.absolute(os.fspath(parent)) if parent else files.join(cache_folder(), "datasets")
    if data is None:
        archive = cifar10_archive(cache_folder(), progress)
        source = Source(files.absolute(archive), "cifar-binary") if archive else Source("digits", "digits")
    else:
        source = data if isinstance(data, Source) else Source(os.fspath(data))
        if source.layout != "digits":  # the word digits may be a folder's name here
            source = source.resolved()
            if not hub.is_hub(source.uri) and is_dataset(source.uri):
                return source.uri
            _check_exists(source.uri)
    return _ingested_once(source, parent, max_quarantined, progress)


def check_data(data: str | os.PathLike[str] | Source | None) -> None:
    """Raises SourceError unless something lies at `data`, which is as for `prepare_dataset`: before Ray starts."""
    if data is None:
        return
    source = data if isinstance(data, Source) else Source(os.fspath(data))
    if source.layout != "digits":
        _check_exists(source.resolved().uri)


def _check_exists(uri: str) -> None:
    if not located.exists(uri):
        where = f" (relative paths start from {os.getcwd()})" if files.is_local(uri) else ""
        raise SourceError(
            f"data={uri}: no such file, folder or data set{where}; give an existing path or URI{nearest(uri)}"
        )


def trained_twin(source: Source | None, digest: str) -> str | None:
    """Returns the data set that was ingested from the same raw images for training, if it has this digest, else None.

    So an evaluation of every image can tell that the model has seen most of them.
    """
    if source is None or not source.for_evaluation or hub.is_hub(source.uri):
        return None
    source = source.resolved()
    if source.layout == "digits" or is_dataset(source.uri):
        return None
    twin = _target(replace(source, for_evaluation=False), files.join(cache_folder(), "datasets"))
    return twin if is_dataset(twin) and load(twin).digest == digest else None


def _target(source: Source, parent: str) -> str:
    splitting = "evaluation" if source.for_evaluation else f"{source.val_share:g}"
    splitting += f" test {source.test_share:g}" if source.test_share else ""
    columns = [each for each in (source.image_column, source.label_column) if each]
    identity = "\n".join(
        [located.fingerprint(source.uri), source.layout, source.md5 or "", splitting, _RULES, *columns]
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return files.join(parent, f"{files.basename(source.uri).split('.')[0]}-{digest}")


def _ingested_once(source: Source, parent: str, max_quarantined: float, progress: Progress) -> str:
    target = _target(source, parent)
    if is_dataset(target):
        return target
    start = time.perf_counter()
    done = ingest(source, target, max_quarantined=max_quarantined, progress=progress).manifest
    _log.info("ingested %s images of %s in %.1f s", f"{done.rows:,}", done.name, time.perf_counter() - start)
    return target
