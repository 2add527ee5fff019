"""A Ray cluster of several nodes on one machine, for people to try and for tests to break.

It has a head that runs no tasks, nodes that train, nodes for augmentation only, and SeaweedFS as S3; clients need a
token. Each node is started by `ray start`, in its own process group. With `namespaces` each node has a network of its
own and can be cut off (root only). The cluster's files are in one folder. Its `state.json` lists the processes, and no
other process is ever ended.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.local import networks
from infra.local.certificates import Authority
from infra.local.failure import fail
from pipeline.core.processes import process_tree
from pipeline.storage.local_s3 import free_ports, remove_s3, start_s3

BUCKET = "images"
_START_SECONDS = 90
_OBJECT_STORE_BYTES = 300_000_000


@dataclass(frozen=True)
class Options:
    """What a cluster consists of."""

    nodes: int
    """Number of nodes beside the head."""
    cpu_only: int
    """How many of the nodes are for augmentation only: the last ones."""
    cpus: float
    """CPUs that each node announces to Ray, whatever the machine has."""
    gpus: float
    """GPUs that each node that trains announces."""
    namespaces: bool
    """Whether each node gets a network namespace of its own; needs root and iproute2."""
    tls: bool
    """Whether Ray's own calls are encrypted; needs openssl."""
    redis: bool
    """Whether Redis keeps the head's state, so that a new head continues with it."""


class Cluster:
    """The cluster of a name, running or not; its state is read from its folder."""

    def __init__(self, name: str) -> None:
        self.folder = Path(f"/tmp/ipl-{os.getuid()}-{name}")  # short: paths of sockets are at most 107 bytes long
        self.state: dict[str, Any] = {"processes": [], "namespaces": False}
        if self._place.exists():
            self.state = json.loads(self._place.read_text())

    @property
    def _place(self) -> Path:
        return self.folder / "state.json"

    def _save(self) -> None:
        temporary = self._place.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state, indent=1))
        temporary.replace(self._place)

    def _add(self, name: str, process: int) -> None:
        self.state["processes"].append({"name": name, "pid": process, "started": _started(process)})
        self._save()

    def runs(self) -> bool:
        """Returns whether any process of the cluster is alive."""
        return bool(self.names())

    def names(self) -> list[str]:
        """Returns the names of the processes that are alive: s3, redis, head, node-1 and so on."""
        return [each["name"] for each in self.state["processes"] if _started(each["pid"]) == each["started"]]

    # --- starting -------------------------------------------------------------------------------------------------

    def up(self, options: Options) -> None:
        """Starts the cluster, which must not be running; first removes what an earlier one has left behind."""
        self.down()
        self.state["processes"] = []
        self.folder.mkdir(mode=0o700)
        (self.folder / "logs").mkdir()
        self.state.update(asdict(options), trains=options.nodes - options.cpu_only)
        del self.state["redis"]  # as a key of the state: the server's address and password
        self._save()
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        here = networks.make_bridge() if options.namespaces else "127.0.0.1"
        self.state["has_bridge"] = options.namespaces
        self._save()
        print("S3 ...", flush=True)
        process, variables = start_s3(BUCKET, self.folder / "s3", here)
        self._add("s3", process.pid)
        port, dashboard, store = free_ports(3)
        self.state.update(port=port, dashboard=dashboard, variables={**variables, **self._ray_variables(token)})
        self._save()
        if options.redis:
            print("Redis ...", flush=True)
            self._start_redis(here, store)
        print("head ...", flush=True)
        self.start("head")
        for number in range(1, options.nodes + 1):
            print(f"node {number} of {options.nodes} ...", flush=True)
            self.start(f"node-{number}")
        variables = {**self.state["variables"], **self._client_variables()}
        (self.folder / "env").touch(mode=0o600)
        lines = [f"export {name}={value}\n" for name, value in variables.items()]
        # A token in the shell's environment is another cluster's, and Ray would take it before the file.
        (self.folder / "env").write_text("".join(["unset RAY_AUTH_TOKEN\n", *lines]))

    def start(self, name: str) -> None:
        """Starts the head or a node that has died, or one more node; those after the nodes that train only augment."""
        port = self.state["port"]
        if name == "head":  # from an address in this file Ray would conclude that the old head is alive
            (self.folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)
            self._start_node(name, ["--num-cpus=0", "--head", f"--port={port}", *self._redis_flags()])
            return
        trains = int(name.removeprefix("node-")) <= self.state["trains"]
        labels = [] if trains else ["--labels=image-pipeline/role=augment"]
        gpus = f"--num-gpus={self.state['gpus'] if trains else 0:g}"
        address = f"--address={self.address('head')}:{port}"
        self._start_node(name, [f"--num-cpus={self.state['cpus']:g}", address, gpus, *labels])

    def _start_redis(self, address: str, port: int) -> None:
        """Starts Redis. Its password is in a file, because other users can read the arguments of a process."""
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program is None:
            fail("redis needs redis-server or valkey-server; Debian: apt-get install redis-server")
        folder = self.folder / "redis"
        folder.mkdir(mode=0o700)
        password = secrets.token_hex(32)
        self.state["redis"] = {"address": f"{address}:{port}", "password": password}
        (folder / "conf").touch(mode=0o600)
        lines = [f"bind {address}", f"port {port}", f"dir {folder}", "appendonly yes", f"requirepass {password}"]
        (folder / "conf").write_text("\n".join(lines) + "\n")
        with (self.folder / "logs" / "redis.log").open("wb") as log:
            process = subprocess.Popen([program, folder / "conf"], stdout=log, stderr=log, start_new_session=True)
        self._add("redis", process.pid)

    def _redis_flags(self) -> list[str]:
        return [f"--redis-password={self.state['redis']['password']}"] if "redis" in self.state else []

    def _ray_variables(self, token: Path) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _client_variables(self) -> dict[str, str]:
        address = f"http://{self.address('head')}:{self.state['dashboard']}"
        return {"RAY_ADDRESS": address, **self._tls_variables("client", "127.0.0.1")}

    def _tls_variables(self, name: str, address: str) -> dict[str, str]:
        """Returns the variables with which Ray encrypts its calls, each side with a certificate; none without TLS."""
        if not self.state["tls"]:
            return {}
        authority = Authority(self.folder / "tls")
        try:
            certificate, key = authority.issue(name, [address, "127.0.0.1", *_own_addresses()])
        except RuntimeError as error:
            fail(str(error))
        return {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": str(certificate),
            "RAY_TLS_SERVER_KEY": str(key),
            "RAY_TLS_CA_CERT": str(authority.certificate),
        }

    def _start_node(self, name: str, flags: list[str]) -> None:
        programs, address, head = Path(sys.executable).parent, self.address(name), name == "head"
        if head:
            flags = [*flags, f"--dashboard-host={address}", f"--dashboard-port={self.state['dashboard']}"]
        line = [str(programs / "ray"), "start", "--block", f"--node-ip-address={address}", *flags]
        # A folder of its own: nodes that share one remove each other's copy of a job's working directory.
        line.append(f"--temp-dir={self.folder}/{'ray' if head else name}")
        line += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        # By default these ports are fixed. If another Ray of this machine has them, no job can be submitted.
        agent, *metrics = free_ports(3)
        line.append(f"--dashboard-agent-listen-port={agent}")
        if self.state["namespaces"]:
            line = [*networks.make_namespace(name), *line]
        environment = {**os.environ, **self.state["variables"], "PATH": f"{programs}:{os.environ['PATH']}"}
        environment.update(self._tls_variables(name, address))
        environment.update(zip(("DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT"), map(str, metrics), strict=True))
        if head and "redis" in self.state:
            environment["RAY_REDIS_ADDRESS"] = self.state["redis"]["address"]
        if self.state["namespaces"]:  # the machine's name means its loopback, which is another one in a namespace
            environment["GLOO_SOCKET_IFNAME"] = "eth0"
        for variable in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(variable, None)
        log = self.folder / "logs" / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(line, env=environment, stdout=out, stderr=out, start_new_session=True)
        self._add(name, process.pid)
        deadline = time.monotonic() + _START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                fail(f"{name} doesn't start: {log.read_text()[-500:]}")
            time.sleep(0.2)

    # --- networks -------------------------------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """Returns the IP address of the head or a node."""
        return networks.address(name) if self.state["namespaces"] else "127.0.0.1"

    def cut(self, name: str) -> None:
        """Takes a node off the network, as when a cable is pulled."""
        networks.set_link(name, "down")

    def join(self, name: str) -> None:
        """Puts a node that was cut off back on the network."""
        networks.set_link(name, "up")

    # --- ending ---------------------------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """Sends SIGKILL to every process of a node, as when a machine is lost."""
        for each in [each for each in self.state["processes"] if each["name"] == name]:
            self._end(each)
            self.state["processes"].remove(each)
            if self.state["namespaces"]:
                networks.remove_namespace(name)
            self._save()
            return
        names = ", ".join(each["name"] for each in self.state["processes"])
        fail(f"node={name!r} isn't running; running are: {names or 'none'}")

    def _end(self, process: dict[str, Any]) -> None:
        if _started(process["pid"]) != process["started"]:
            return  # it has ended, and another process may have its number now
        for pid in reversed(process_tree(process["pid"])):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def down(self) -> bool:
        """Ends all processes and removes the folder. Returns whether there was a cluster."""
        if not self.folder.exists():
            return False
        for each in reversed(self.state["processes"]):
            self._end(each)
        deadline = time.monotonic() + 10
        while self.runs():
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if (self.folder / "s3" / "ports.json").exists():
            remove_s3(self.folder / "s3")
        if self.state.get("has_bridge"):  # or it is another cluster's
            for each in self.state["processes"]:
                networks.remove_namespace(each["name"])
            networks.remove_bridge()
        shutil.rmtree(self.folder, ignore_errors=True)
        return True


def _own_addresses() -> list[str]:
    """Returns the IP addresses of this machine: Ray uses them even for processes that it started on loopback."""
    return subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()


def _started(pid: int) -> str:
    """Returns when a process started, in ticks since boot; "" if there is none or it has ended (a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
