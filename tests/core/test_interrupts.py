"""Ctrl-C and signals: a request that work takes note of, and a hold for what must not be cut in two."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from pipeline.core import interrupts
from pipeline.core.interrupts import StopRequest, deadline, exit_on_signals, hold_signals


def _always() -> bool:
    return True


class TerminatedError(Exception):
    """SIGTERM had its usual effect in a test."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise TerminatedError


@contextmanager
def handlers() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt and SIGTERM TerminatedError in the block, and nothing has changed after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is _terminate
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "usual"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)])
def test_a_signal_requests_a_stop_of_work_that_looks_and_has_its_usual_effect_afterwards(
    number: signal.Signals, usual: type[BaseException]
) -> None:
    stop, told = StopRequest(), []
    with handlers():
        with stop.on_signals(lambda: told.append("stopping")):
            assert not stop()
            signal.raise_signal(number)
            assert stop()
        with pytest.raises(usual):
            stop.deliver()
    deadline = time.monotonic() + 5
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told == ["stopping"]


@pytest.mark.parametrize(("number", "usual"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)])
def test_a_signal_has_its_usual_effect_while_nobody_looks(number: signal.Signals, usual: type[BaseException]) -> None:
    stop = StopRequest()
    with handlers(), pytest.raises(usual), stop.on_signals(lambda: None):
        signal.raise_signal(number)
    assert stop.signal is None


def test_a_second_ctrl_c_leaves_at_once_and_a_repeated_signal_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    with handlers(), pytest.raises(KeyboardInterrupt), stop.on_signals(lambda: None):  # noqa: PT012
        stop()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # a scheduler repeats it
        signal.raise_signal(signal.SIGINT)  # `uv run` and the terminal both deliver one Ctrl-C
        assert stop.signal == signal.SIGTERM
        monkeypatch.setattr(interrupts, "_SAME_KEY_SECONDS", 0.0)
        signal.raise_signal(signal.SIGINT)


def test_the_end_of_a_deadline_requests_a_stop_and_then_interrupts() -> None:
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), deadline(0.05, 60):  # noqa: PT012
        with stop.on_signals(lambda: None):
            while not stop():
                time.sleep(0.01)
        stop.deliver()


def test_a_timer_of_the_host_requests_nothing() -> None:
    stop, rung = StopRequest(), list[int]()
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        with stop.on_signals(lambda: None):
            stop()
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (stop.signal, rung) == (None, [signal.SIGALRM])


def test_an_ignored_signal_stays_ignored() -> None:
    stop = StopRequest()
    with handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with stop.on_signals(lambda: None):
            stop()
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal is None
        signal.signal(signal.SIGTERM, _terminate)


def test_a_request_is_pickled_as_what_workers_call() -> None:
    stop = StopRequest()
    assert not pickle.loads(pickle.dumps(stop))()  # noqa: S301
    stop.remote = _always
    assert pickle.loads(pickle.dumps(stop)) is _always  # noqa: S301


def test_signals_are_held_until_the_block_has_ended() -> None:
    done = []
    with handlers(), pytest.raises(KeyboardInterrupt):  # noqa: PT012 - what comes before the end is the point
        with hold_signals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")
        done.append("not reached")
    assert done == ["all of it"]


def test_a_third_signal_ends_a_block_that_hangs() -> None:
    program = (
        "import os, signal; from pipeline.core import interrupts\n"
        "interrupts._SAME_KEY_SECONDS = 0\n"
        "with interrupts.hold_signals():\n"
        "    [os.kill(os.getpid(), signal.SIGINT) for _ in range(3)]\n    print('hangs')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (130, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_process_with_its_finally_blocks(number: signal.Signals, status: int) -> None:
    program = (
        "import time\nfrom pipeline.core.interrupts import exit_on_signals\nexit_on_signals()\n"
        "try:\n print('up', flush=True)\n time.sleep(60)\nfinally:\n time.sleep(0.5)\n print('cleaned', flush=True)"
    )
    default = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731 - the tests may run under nohup
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, preexec_fn=default
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)  # while it cleans up, which must go on
        assert process.stdout.readline() == "cleaned\n"
    assert process.returncode == status


def test_a_signal_waits_until_torch_is_imported_which_would_abort() -> None:
    program = """
import os, signal, time
from pipeline.core.interrupts import exit_on_signals
exit_on_signals()
module = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.2); print('imported', flush=True)"
exec(compile(module, "torch/part.py", "exec"), {"__name__": "torch.part", "os": os, "signal": signal, "time": time})
time.sleep(20)
print("not ended")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "imported\n")


def test_a_process_that_ignores_hangups_goes_on_doing_so() -> None:
    program = (
        "import os, signal\nfrom pipeline.core.interrupts import exit_on_signals\nexit_on_signals()\n"
        "os.kill(os.getpid(), signal.SIGHUP)"
    )
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 - as nohup does
    assert subprocess.run([sys.executable, "-c", program], preexec_fn=ignore).returncode == 0


def test_only_the_main_thread_sets_the_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=exit_on_signals)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_signal_raises_in_vain_is_raised_again_and_a_third_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal, time\nfrom pipeline.core import interrupts\ninterrupts._SAME_KEY_SECONDS = 0\n"
        "interrupts.exit_on_signals([signal.SIGINT])\n"
        "def press(): os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n press()\nexcept KeyboardInterrupt:\n print('lost', flush=True)\n"
        "interrupts.deliver_again()\n"
        "try:\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('again', flush=True)\n"
        "press()\nprint('cleaning', flush=True)\npress()\nprint('not reached', flush=True)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (130, ["lost", "again", "cleaning"], "")
