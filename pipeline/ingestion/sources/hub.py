"""Data sets of the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`, downloaded into its cache once.

The files are then read as those of a folder, whatever their layout. Which files there are is asked by one request;
the commit that answers it is the fingerprint of the source.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from pipeline.core.errors import SourceError, check_installed
from pipeline.core.progress import Bytes, Progress
from pipeline.storage.parallel_reads import read_ahead

SCHEME = "hf://"
_URI = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_DOWNLOADS = 8
_TIMEOUT_SECONDS = 10
_SHOWN_CHARACTERS = 160  # of an error of the client


@dataclass(frozen=True)
class HubFiles:
    """The files of a data set at one commit."""

    repo: str
    commit: str
    below: str  # the folder that is asked for, with "/" at its end; "" for all
    sizes: dict[str, int]  # bytes of each file below that folder, by its name in the repository


def is_hub(uri: str) -> bool:
    """Whether a URI names something on the Hugging Face hub."""
    return uri.startswith(SCHEME)


def name_of(uri: str) -> str:
    """Returns the name of a data set, without its owner."""
    match = _URI.fullmatch(uri.rstrip("/"))
    return match.group(1).partition("/")[2] if match else ""


def look_up(uri: str) -> HubFiles:
    """Returns the files of a data set. Raises SourceError if there is none, or if the hub can't be reached."""
    match = _URI.fullmatch(uri.rstrip("/"))
    if match is None:
        raise SourceError(f"{uri}: not a data set of the hub; give hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
    check_installed("hf://", "huggingface_hub", extra="hub")
    from huggingface_hub import HfApi

    repo, revision, folder = match.groups()
    below = f"{folder}/" if folder else ""
    with _errors(uri):
        found = HfApi().dataset_info(
            repo, revision=unquote(revision) if revision else None, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    sizes = {each.rfilename: each.size or 0 for each in found.siblings or () if each.rfilename.startswith(below)}
    if not sizes:
        raise SourceError(
            f"{uri}: no such file or folder in this data set; look at https://huggingface.co/datasets/{repo}"
        )
    return HubFiles(repo, str(found.sha), below, sizes)


def fingerprint(uri: str) -> str:
    """Returns a text that changes with the files: the commit. Raises SourceError as `look_up` does."""
    return f"{uri}@{look_up(uri).commit}"


def download(uri: str, progress: Progress) -> tuple[str, str]:
    """Returns (local folder with the files of a data set, its fingerprint). What is there already isn't sent again.

    Raises SourceError if the data set doesn't exist or needs permission, or if the hub can't be reached.
    """
    found = look_up(uri)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # its __init__ re-exports them plainly
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    def fetch(name: str) -> str:
        return hf_hub_download(found.repo, name, repo_type="dataset", revision=found.commit)

    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()  # this process shows its own
    total, done, root = sum(found.sizes.values()), 0, ""
    try:
        with _errors(uri), ThreadPoolExecutor(_DOWNLOADS) as pool:
            for name, path in read_ahead(pool, fetch, found.sizes, in_order=True, max_pending=2 * _DOWNLOADS):
                done += found.sizes[name]
                root = path.removesuffix(name)
                progress("download", Bytes(done), Bytes(total), found.repo)
    finally:
        if had_bars:
            enable_progress_bars()
    return (root + found.below).rstrip("/"), f"{uri}@{found.commit}"


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Raises SourceError, in one line with the remedy, for the errors of the hub's client."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx, in whichever version

    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(f"{uri}: needs permission; accept its terms on the hub, and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{uri}: no such revision; give a branch, a tag or a commit after the @") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{uri}: no such data set, or a private one; check the name, and set HF_TOKEN for a private one"
        ) from error
    except (errors.LocalEntryNotFoundError, ConnectionError, HTTPError, errors.HFValidationError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:_SHOWN_CHARACTERS] or type(error).__name__
        if isinstance(error, (errors.HfHubHTTPError, errors.HFValidationError)):
            raise SourceError(f"{uri}: the hub refuses ({reason}); look at the name, or try again later") from error
        raise SourceError(
            f"{uri}: the hub can't be reached ({reason}); copy the data set to this machine, and give its folder"
        ) from error
