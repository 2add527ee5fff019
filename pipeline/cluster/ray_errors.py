"""The exception that a task or a worker raised, taken out of what Ray wraps around it."""

from collections.abc import Iterator
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.storage.system_errors import describe

_UDF_ADVICE = "Failed to apply UDF transform"  # Ray Data appends a paragraph with these words to a task's message


def unwrap(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception and every exception that it wraps or was caused by, depth first, each once.

    Ray Core raises a RayTaskError that is of the class of its cause, too; it is left out, for the cause follows. Ray
    Train's errors hold one exception for each failed worker, or that of the controller.
    """
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        if not any(each.__name__ == "RayTaskError" for each in type(found).__mro__):  # by name: Ray isn't imported here
            yield found
        wrapped: list[Any] = list(getattr(found, "worker_failures", {}).values())
        wrapped += [getattr(found, name, None) for name in ("controller_failure", "cause", "_base_exc", "__cause__")]
        waiting = [each for each in wrapped if isinstance(each, BaseException)] + waiting


def pipeline_error(error: BaseException) -> PipelineError | None:
    """Returns the first PipelineError among the exceptions of `unwrap`, or None."""
    return next((each for each in unwrap(error) if isinstance(each, PipelineError)), None)


def user_error(error: BaseException) -> Exception | None:
    """Returns the error that the user can mend, or None for a defect of ours.

    That is a PipelineError, or the OSError of a storage that refuses or is full.
    """
    for each in unwrap(error):
        if isinstance(each, PipelineError) or (isinstance(each, OSError) and _remedy(each)):
            return each
    return None


def user_message(error: BaseException) -> str | None:
    """Returns the message of `user_error` as one line, without what Ray appends to it, or None."""
    known = user_error(error)
    if known is None:
        return None
    if isinstance(known, OSError) and not isinstance(known, PipelineError):
        return _remedy(known)
    return _text(known)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split(_UDF_ADVICE)[0].split())


def _remedy(error: OSError) -> str | None:
    """Returns one line for a storage that refuses, fails or is full; None for any other error of the system."""
    text = _text(error)
    if "AWS Error" in text:  # pyarrow's S3
        return f"{text[:300]}; check bucket, endpoint and credentials (the AWS_... variables or profile)"
    return describe(error)
