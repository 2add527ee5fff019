import io
import threading
import warnings
from collections.abc import Callable

import pytest
from PIL import Image

from pipeline.core.thread_warnings import thread_warnings
from pipeline.dataset.image_codec import decode
from tests.support.pictures.images import picture


def warn() -> None:
    warnings.warn("from one line of code", UserWarning, stacklevel=1)


def in_other_thread(call: Callable[[], None]) -> list[BaseException]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def test_a_warning_is_an_error_in_this_thread_only() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with thread_warnings("error"):
            assert in_other_thread(warn) == []
            with pytest.raises(UserWarning):
                warn()
    assert len(shown) == 1


def test_a_warning_that_was_shown_before_is_an_error_too() -> None:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        warn()
        with thread_warnings("error"), pytest.raises(UserWarning):
            warn()


def test_a_warning_is_ignored_in_this_thread_only() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with thread_warnings("ignore"):
            warn()
            assert not shown
            in_other_thread(warn)
        warn()
    assert len(shown) == 2


def test_the_filters_are_as_before_in_whatever_order_threads_leave() -> None:
    """With `warnings.catch_warnings`, the thread that leaves last brings the filter of the first one back."""
    before, same_list = list(warnings.filters), warnings.filters
    first, second, leave = threading.Event(), threading.Event(), threading.Event()

    def enter_first() -> None:
        with thread_warnings("ignore"):
            first.set()
            second.wait(10)

    def enter_second() -> None:
        first.wait(10)
        with thread_warnings("error"):
            second.set()
            leave.wait(10)

    threads = [threading.Thread(target=each) for each in (enter_first, enter_second)]
    for thread in threads:
        thread.start()
    threads[0].join()
    leave.set()
    threads[1].join()
    assert warnings.filters is same_list
    assert list(warnings.filters) == before


def test_decoding_in_threads_leaves_the_filters_of_the_process_alone() -> None:
    out = io.BytesIO()
    picture(0).convert("P").save(out, format="PNG", transparency=bytes(range(256)))  # PIL warns of these
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning):
            Image.open(io.BytesIO(out.getvalue())).convert("RGB")
        threads = [threading.Thread(target=lambda: [decode(out.getvalue()) for _ in range(50)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(warnings.filters) == before
