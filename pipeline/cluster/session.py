"""A Ray session: joins a cluster, or starts Ray on this machine and ends it, and leaves the process as it was."""

import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from pipeline.cluster.address import check_cluster, cluster_address, refuse
from pipeline.cluster.ray_tasks import ray_is_initialized, usable_cpus
from pipeline.cluster.session_folder import session_folder
from pipeline.core.errors import ClusterError
from pipeline.core.interrupts import ENDING_SIGNALS, delay_sigterm, exit_on_signals, hold_signals, undelayed_sigterm
from pipeline.core.processes import children_naming, wait_or_kill
from pipeline.core.shares import counted
from pipeline.core.user_folders import account_variables
from pipeline.core.variables import environment_variables
from pipeline.storage.file_names import escaped, printable

_VARIABLES = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # the workers use this very environment: no need to build another
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives a session must not start another one
    "RAY_DATA_LOG_LEVEL": "ERROR",
}
_END_SECONDS = 0.5
_FEW_WORKERS = 4  # are possible on any machine, for trials of what several workers do
_SET_BY_RAY = ("PYTHONBREAKPOINT", "RAY_CLIENT_MODE")  # by its start and by its import
_LOG_LEVELS = {
    "ray": logging.WARNING,
    # Its warnings are for users of Ray Data: of many tasks, which the order needs; of its progress bars, which are off;
    # and, on a busy machine, of tasks that wait.
    "ray.data": logging.ERROR,
    "ray.train": logging.WARNING,
    # These repeat as an error what a task has raised, which is raised in this process, too.
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
}


@contextmanager
def ray_session(num_workers: int = 0) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names, else starts Ray on this machine; ends it with the block.

    In a process that is in a Ray session already it does nothing. Raises ClusterError if the cluster of RAY_ADDRESS
    doesn't answer or refuses. A local Ray has at least one CPU more than
    `num_workers`, so that there is one for reading.

    Environment variables, signal handlers, levels of loggers and Ray Data's DataContext are restored afterwards.
    What Ray itself doesn't undo stays: its import installs a `sys.excepthook` and reads some variables once
    (RAY_ENABLE_AUTO_CONNECT, RAY_ENABLE_UV_RUN_RUNTIME_ENV, RAY_DATA_LOG_LEVEL), and its loggers keep their handlers.
    """
    if ray_is_initialized():
        yield
        return
    address = cluster_address()
    if address is not None:
        check_cluster(address)
    with ExitStack() as stack:
        stack.callback(_read_authentication)  # last of all, from the host's variables
        stack.enter_context(environment_variables(ray_variables(), also_restored=_SET_BY_RAY))
        _read_authentication()
        import ray

        stack.enter_context(_same_levels_after())
        handler = stack.enter_context(_same_signal_handlers_after())
        if address is not None:
            stack.callback(ray.shutdown)
            _join(address)
        else:
            _start_ray(num_workers, stack)
        quieten_ray()
        _handle_sigterm(handler)
        stack.enter_context(_no_issue_detectors())
        yield


@contextmanager
def ray_in_process() -> Iterator[None]:
    """Sets Ray's variables and log levels for the block: for Ray Train in this process alone, without a session."""
    # Without the token: it would make Ray write one to the home folder if the host started a Ray of its own later.
    with (
        environment_variables({**_VARIABLES, **account_variables()}, keep=True, also_restored=_SET_BY_RAY),
        _same_levels_after(),
    ):
        quieten_ray()
        yield


def _join(address: str) -> None:
    """Joins a cluster that answers. Raises ClusterError if it refuses: another version, another token, no node here."""
    import ray

    try:
        with delay_sigterm():
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (RuntimeError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
        text = " ".join(str(error).split())
        version = re.search(r"Version mismatch.*?(?=This process|$)", text)
        refuse(address, version.group(0) if version else text[:300])


def check_local_workers(num_workers: int) -> None:
    """Raises ClusterError for more workers than a Ray on this machine may have: twice its CPUs, and at least 4.

    Each is a process with a network and libraries of its own, some hundred MB; dozens would fill the memory.
    """
    cpus = usable_cpus()
    if num_workers > max(_FEW_WORKERS, 2 * cpus) and num_workers > _gpus():
        raise ClusterError(
            f"workers={num_workers} are too many for the {counted(cpus, 'CPU')} of this machine; use "
            f"--workers {cpus} or fewer, or name a cluster in RAY_ADDRESS"
        )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _start_ray(num_workers: int, stack: ExitStack) -> None:
    """Starts Ray on this machine. stack: gets what ends it and removes its files.

    Raises ClusterError if Ray isn't up in the 30 s that it allows itself, as on a machine with far more to do.
    """
    check_local_workers(num_workers)
    import ray

    folder = stack.enter_context(session_folder())  # a session leaves its logs behind
    stack.callback(_shut_down, folder)
    # Ray's processes leave temporary files when they are ended.
    with (
        environment_variables({"TMPDIR": folder}),
        hold_signals(),
        delay_sigterm(),
        _ray_as_we_need_it(),
        _slow_start_is_told(),
    ):
        ray.init(
            address="local",
            num_cpus=max(usable_cpus(), num_workers + 1),
            include_dashboard=num_workers > 0 and can_start_dashboard(),
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )


@contextmanager
def _slow_start_is_told() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # that is its class: Ray has none for it
        if "timed out during startup" not in str(error):
            raise
        raise ClusterError(
            "Ray wasn't up after 30 s: this machine has too much else to do, or too little memory; try again later"
        ) from error


def can_start_dashboard() -> bool:
    """Returns whether the packages of Ray's dashboard are here (aiohttp, OpenTelemetry and others: `ray[default]`).

    Ray Train asks it whether the process that led a run still lives, to free what the run had reserved. A session on
    this machine trains without it, too: Ray itself frees that when the process or the session ends.
    """
    try:
        import ray.dashboard.optional_deps  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _ray_as_we_need_it() -> Iterator[None]:
    """Changes, for the block, four things of Ray that have no public setting.

    Its processes get process groups of their own: `timeout`, schedulers and closed terminals signal whole groups, and
    Ray would end before a run could save its state. It installs no handler of SIGTERM while signals are held back; it
    would end the process in the middle of the start and leave what was started. (That of Ray's core, which prints a
    stack trace and aborts, can't be prevented: SIGTERM is delayed instead, but not for Ray's processes.) Its workers
    use this very environment under `uv run`, too: the variable for that is read once, when Ray is imported, which may
    have been long ago. The command line that it keeps is made Unicode: a file's name in it may not be UTF-8.
    """
    from ray._private import ray_constants, services, utils

    entrypoint: Any = getattr(utils, "get_entrypoint_name", str)
    popen: Any = getattr(services, "ConsolePopen", subprocess.Popen)

    def start(*args: Any, **options: Any) -> Any:
        with undelayed_sigterm():
            return popen(*args, process_group=0, **options)

    with (
        _replaced(services, "ConsolePopen", start),
        _replaced(utils, "set_sigterm_handler", lambda handler: None),
        _replaced(utils, "get_entrypoint_name", lambda: printable(escaped(entrypoint()))),
        _replaced(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False),
    ):
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute in the block, if the module has it."""
    if not hasattr(module, name):
        yield
        return
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _shut_down(folder: str) -> None:
    """Ends Ray; an impatient second Ctrl-C must not leave its processes and files behind. folder: of the session."""
    import ray

    with hold_signals():
        processes = children_naming(folder)
        ray.shutdown()
        wait_or_kill(processes, _END_SECONDS)  # its workers end by themselves, some time after it has returned


# --- state of the process ----------------------------------------------------------------------------------------


def ray_variables() -> dict[str, str]:
    """Returns the environment variables of a session, without those that are set already.

    A local Ray gets a random token. Without one, Ray would write one to the home folder, readable by everybody, and
    every later `ray start` of this user would ask for it.
    """
    variables = {**_VARIABLES, **account_variables()}
    if not cluster_address() and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {name: value for name, value in variables.items() if name not in os.environ}


def _read_authentication() -> None:
    """Makes Ray read the mode and the token from the environment again.

    It keeps those that it finds when it is imported. Without this, a process that had imported Ray before the session,
    or had been in another one, would be refused by its own nodes.
    """
    if "ray" not in sys.modules:
        return
    with suppress(ImportError, AttributeError):  # not a public part of Ray
        from ray import _raylet

        raylet: Any = _raylet  # a compiled module without types
        raylet.Config.initialize("")  # the mode first: a thread that still ends mustn't look for a token that has gone
        raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _same_signal_handlers_after() -> Iterator[Any]:
    """Yields the handler of SIGTERM and restores all handlers after the block: Ray installs its own."""
    before = {number: signal.getsignal(number) for number in (*ENDING_SIGNALS, signal.SIGINT)}
    try:
        yield before[signal.SIGTERM]
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # else it isn't Python's, and can't be set from here
                    signal.signal(number, handler)


def _handle_sigterm(host_handler: Any) -> None:
    """Takes Ray's handler of SIGTERM away: it ends the process with status 15, as if that were the caller's choice."""
    if not callable(host_handler):
        exit_on_signals()
    elif threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, host_handler)


@contextmanager
def _same_levels_after() -> Iterator[None]:
    """Restores the levels of Ray's loggers after the block."""
    before = {name: logging.getLogger(name).level for name in _LOG_LEVELS}
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def quieten_ray() -> None:
    """Lets Ray log warnings and errors only, and not those that are repeated or expected here. For a whole process."""
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def _no_issue_detectors() -> Iterator[None]:
    """Switches Ray Data's detectors off for the block: they warn of memory that was asked for."""
    from ray.data import DataContext

    config = DataContext.get_current().issue_detectors_config
    before, config.detectors = config.detectors, []
    try:
        yield
    finally:
        config.detectors = before
