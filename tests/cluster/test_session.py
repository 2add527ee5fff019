"""A Ray session leaves the process as it was: variables, signal handlers, levels of loggers, Ray Data's context."""

import shutil
import subprocess
import sys

import pytest

from pipeline.cluster import session
from pipeline.cluster.session import can_start_dashboard
from tests.support.jobs import ROOT

_HOST = """
import logging, os, signal, sys
if "{first}" == "ray first":
    import ray  # as a program does that uses Ray for itself, before and without our variables
    import ray.data
from pipeline.cluster.session import ray_session

def handler(number, frame):
    print("the host's handler")

if "{handler}" == "own":
    signal.signal(signal.SIGTERM, handler)

def state():
    data = sys.modules.get("ray.data")
    context = data.DataContext.get_current() if data else None
    loggers = [name for name in logging.Logger.manager.loggerDict if name.split(".")[0] in ("ray", "pipeline")]
    return {{
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "levels": {{name: logging.getLogger(name).level for name in loggers}},
        "root": (logging.root.level, list(logging.root.handlers)),
        "context": context and (list(context.issue_detectors_config.detectors), context.raise_original_map_exception),
        "folder": os.getcwd(),
    }}

def new(before, after):
    if before["context"] is None:
        after["context"] = None
    after["levels"] = {{name: after["levels"][name] for name in before["levels"]}}
    found = {{name: (before[name], after[name]) for name in before if before[name] != after[name]}}
    if "environment" in found:
        found["environment"] = sorted({{*before["environment"].items()}} ^ {{*after["environment"].items()}})
    return found

for number in range({sessions}):
    before = state()
    with ray_session():
        import pyarrow as pa
        from pipeline.cluster.ray_tasks import THREADS, map_tables
        assert os.environ["RAY_AUTH_MODE"] == "token"  # whoever imported Ray first
        schema = pa.schema([("x", pa.int64())])
        tables = map_tables(lambda n: pa.table({{"x": [n]}}), range(2 * THREADS), schema, lambda done: None)
        assert [table["x"][0].as_py() for table in tables] == list(range(2 * THREADS))
        if "{handler}" == "own":
            assert signal.getsignal(signal.SIGTERM) is handler
    found = new(before, state())
    assert found == {{}}, found
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("first", "handler", "sessions"),
    [
        pytest.param("ray first", "own", 1, marks=pytest.mark.slow),
        pytest.param("the session first", "default", 2, marks=pytest.mark.long),
    ],
)
def test_the_process_is_as_it_was_after_a_session(first: str, handler: str, sessions: int) -> None:
    program = _HOST.format(first=first, handler=handler, sessions=sessions)
    # Where Ray sees `uv run` above it as it is imported, it would start its workers in another environment.
    uv = ["uv", "run", "--no-sync", "--project", str(ROOT)] if first == "ray first" and shutil.which("uv") else []
    python = "python" if uv else sys.executable
    done = subprocess.run([*uv, python, "-c", program], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr


_BUSY = """
import ray

def busy(**_):
    raise Exception("The current node timed out during startup. This could happen because some of the raylet failed")

ray.init = busy
from pipeline.cluster.session import ray_session
from pipeline.core.errors import ClusterError

try:
    with ray_session():
        pass
except ClusterError as error:
    print(error)
"""


@pytest.mark.ray
def test_a_machine_that_is_too_busy_for_ray_is_told_so() -> None:
    done = subprocess.run([sys.executable, "-c", _BUSY], capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.startswith("Ray wasn't up after 30 s: this machine has too much else to do")


def test_ray_starts_where_the_packages_of_its_dashboard_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_start_dashboard()
    monkeypatch.setitem(sys.modules, "ray.dashboard.optional_deps", None)  # as if an import in it had failed
    assert not can_start_dashboard()


def test_ray_gets_a_command_line_of_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import utils

    monkeypatch.setattr(utils, "get_entrypoint_name", lambda: "predict caf\udce9.jpg")
    with session._ray_as_we_need_it():
        assert utils.get_entrypoint_name() == "predict caf\\xe9.jpg"
