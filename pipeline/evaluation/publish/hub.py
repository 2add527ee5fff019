"""Pushes the files of a model to the Hugging Face Hub, as one commit."""

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterator

from pipeline.core.errors import PipelineError, RecipeError, StorageError, UnavailableError, check_installed
from pipeline.storage import files

_log = logging.getLogger(__name__)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LONGEST = 96  # characters of a repository's name, the hub's own limit


def check_repository(repo: str) -> None:
    """Raises RecipeError unless a name is OWNER/NAME as the hub allows."""
    if (
        not _REPO.fullmatch(repo)
        or len(repo) > _LONGEST
        or ".." in repo
        or "--" in repo
        or repo.endswith((".git", "-"))
    ):
        raise RecipeError(
            f"repo={repo}: give OWNER/NAME, of letters, digits, single dashes, dots and underscores, at most {_LONGEST}"
        )


def check_login() -> None:
    """Raises an error with the remedy unless huggingface_hub is installed and there is a token."""
    check_installed("push", "huggingface_hub", extra="hub")
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise RecipeError("push: no token of the Hugging Face Hub; run `hf auth login`, or set HF_TOKEN")


def write_folder(contents: dict[str, bytes], out: str) -> None:
    """Writes the files of a repository into the folder `out`, a path or URI. contents: {name: content}."""
    for name, content in contents.items():
        files.write_bytes(files.join(out, name), content)


def push(contents: dict[str, bytes], repo: str, private: bool = False, message: str = "Upload a model") -> str:
    """Pushes files as one commit, makes the repository if there is none, and returns the commit's URL.

    contents: {name: content}. repo: OWNER/NAME. private: only where the repository is made now. message: of the commit.
    The token is that of HF_TOKEN or of `hf auth login`. Files of the repository with other names stay.
    Raises RecipeError without a token or for a name that the hub refuses, StorageError if the hub refuses the push,
    UnavailableError if it doesn't answer.
    """
    check_repository(repo)
    check_login()
    import huggingface_hub

    api = huggingface_hub.HfApi()
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in contents.items()
    ]
    with _one_line(repo, str(api.endpoint)):
        api.create_repo(repo, private=private, exist_ok=True)
        _log.info("pushing %d files to %s/%s", len(contents), api.endpoint, repo)
        commit = api.create_commit(repo, operations, commit_message=message)
    return str(commit.commit_url)


@contextlib.contextmanager
def _one_line(repo: str, endpoint: str) -> Iterator[None]:
    """Turns what the hub's client raises into one line with the remedy."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except PipelineError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = " ".join((error.server_message or str(error)).split())[:200]
        if status in (401, 403):
            remedy = "give a token that may write there: `hf auth login`, or HF_TOKEN"
        elif status >= 500 or status == 429:
            raise UnavailableError(f"repo={repo}: {endpoint} answers {status} ({said}); try again later") from error
        else:
            remedy = "correct the name, or the files (--dry-run writes them)"
        raise StorageError(f"repo={repo}: {endpoint} refuses the push, {status} ({said}); {remedy}") from error
    except OfflineModeIsEnabled as error:
        raise RecipeError(f"repo={repo}: HF_HUB_OFFLINE is set; unset it, or take --dry-run") from error
    except _transport_errors() as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnavailableError(
            f"repo={repo}: {endpoint} doesn't answer ({text}); try again with a network, or take --dry-run"
        ) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of connections: of the system, and of the HTTP libraries that the hub's client may use."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return (OSError, *(importlib.import_module(name).TransportError for name in names))
