"""A Ray session: joins the cluster of RAY_ADDRESS, or starts Ray on this machine and ends it."""

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.core.processes import exit_on_sigterm


@contextmanager
def ray_session(num_workers: int = 0) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (as in `ray job submit`), else starts Ray here and ends it after.

    A local Ray announces one CPU more than there are workers, at least, so that reading never starves.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        exit_on_sigterm()
        quieten_ray()
        _quieten_ray_data()
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Its own folder, because a session leaves its logs behind; in /tmp, because the path of a socket is at most
    # 107 bytes long and temporary folders have long names on some machines.
    _remove_stale_sessions()
    folder = tempfile.mkdtemp(prefix=f"ray-{os.getpid()}-", dir="/tmp")
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder  # for what Ray's processes leave in temporary folders when they are ended
    try:
        ray.init(
            address="local",
            num_cpus=max(usable_cpus(), num_workers + 1),
            include_dashboard=num_workers > 0,  # Ray Train's clean-up asks it
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )
        exit_on_sigterm()
        _restore_variable("TMPDIR", before)
        quieten_ray()
        _quieten_ray_data()
        yield
    finally:
        _restore_variable("TMPDIR", before)
        ray.shutdown()
        for _ in range(20):  # Ray's processes may still be writing their last lines
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)


def _restore_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _remove_stale_sessions() -> None:
    """Removes what killed jobs of this user left behind: logs, which would fill the disk in time."""
    for folder in Path("/tmp").glob("ray-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and folder.owner() == Path("/proc/self").owner():
            shutil.rmtree(folder, ignore_errors=True)


def prepare_environment() -> None:
    """Sets the variables that Ray reads when it is imported, in case this process imports it before `ray_session`."""
    for name, value in (
        ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"),  # this environment is the workers' too: no need to build another
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
        ("RAY_ENABLE_AUTO_CONNECT", "0"),  # a thread that outlives a session must not start another
        ("RAY_DATA_LOG_LEVEL", "WARNING"),
    ):
        os.environ.setdefault(name, value)
    # A local Ray gets a token of its own, before ray is imported. Left alone, Ray would write one to the home folder,
    # for all to read, and every later `ray start` of this user would ask for it.
    if not os.environ.get("RAY_ADDRESS") and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def quieten_ray() -> None:
    """Leaves Ray's warnings and errors on the screen, not its course of events."""
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("ray.data._internal.execution.streaming_executor_state", "ray.data.exceptions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what a task raised, which is raised here too
    for name in (
        "ray.data._internal.progress",  # that its bars are off: ours are on
        "ray.data._internal.logical.rules.set_read_parallelism",  # that there are many tasks: the order wants them
        "ray.data._internal.util",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def _quieten_ray_data() -> None:
    from ray.data import DataContext

    DataContext.get_current().issue_detectors_config.detectors = []  # they warn of memory that was asked for
