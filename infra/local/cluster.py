"""A Ray cluster on one machine, for people to see several nodes and for tests to break them: see up.sh and down.sh.

A head that runs no work, nodes that train, nodes for augmentation alone, and SeaweedFS as S3; a token is needed. Each
node is what `ray start` starts, in its own process group. With --namespaces each has a network of its own, and can be
cut off (root only). All that there is stands in one folder, `state.json` first: what isn't in it is never ended.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from infra.local.certificates import Authority
from pipeline.core.processes import process_tree
from pipeline.storage.local_s3 import await_answer, free_ports, remove_s3, start_s3

BUCKET = "images"
_START_SECONDS = 90
_OBJECT_STORE_BYTES = 300_000_000
_BRIDGE = "ipl0"
_NETWORK = "10.77.0"  # .1 is this machine, .10 the head, .11 and on the nodes


class Cluster:
    """What runs, by its folder."""

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
        """Whether any of it is alive."""
        return bool(self.names())

    def names(self) -> list[str]:
        """Names of what is alive."""
        return [each["name"] for each in self.state["processes"] if _started(each["pid"]) == each["started"]]

    # --- starting -------------------------------------------------------------------------------------------------

    def up(self, nodes: int, cpu_only: int, cpus: float, gpus: float, namespaces: bool, tls: bool, redis: bool) -> None:
        """Starts all of it, where nothing runs; removes what a machine that went down has left."""
        self.down()
        self.state["processes"] = []
        self.folder.mkdir(mode=0o700)
        (self.folder / "logs").mkdir()
        self.state.update(namespaces=namespaces, cpus=cpus, gpus=gpus, tls=tls, trains=nodes - cpu_only)
        self._save()
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        here = f"{_NETWORK}.1" if namespaces else "127.0.0.1"
        if namespaces:
            _run("ip", "link", "add", _BRIDGE, "type", "bridge")
            _run("ip", "address", "add", f"{here}/24", "dev", _BRIDGE)
            _run("ip", "link", "set", _BRIDGE, "up")
        print("S3 ...", flush=True)
        process, variables = start_s3(BUCKET, self.folder / "s3", here)
        self._add("s3", process.pid)
        port, dashboard, store = free_ports(3)
        self.state.update(port=port, dashboard=dashboard, variables={**variables, **self._of_ray(token)})
        self._save()
        if redis:
            print("Redis ...", flush=True)
            self._start_redis(here, store)
        print("head ...", flush=True)
        self.start("head")
        for number in range(1, nodes + 1):
            print(f"node {number} of {nodes} ...", flush=True)
            self.start(f"node-{number}")
        everything = {**self.state["variables"], **self._of_client()}
        (self.folder / "env").touch(mode=0o600)
        (self.folder / "env").write_text("".join(f"export {name}={value}\n" for name, value in everything.items()))

    def start(self, name: str) -> None:
        """Starts the head or a node: one that died, or one more. Those after the ones that train are for augmentation
        alone.
        """
        port = self.state["port"]
        if name == "head":  # Ray takes an address in this file for a head that lives, where others' lines have it, too
            (self.folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)
            self._start_node(name, ["--num-cpus=0", "--head", f"--port={port}", *self._redis_flags()])
            return
        trains = int(name.removeprefix("node-")) <= self.state["trains"]
        labels = [] if trains else ["--labels=image-pipeline/role=augment"]
        gpus = f"--num-gpus={self.state['gpus'] if trains else 0:g}"
        address = f"--address={self.address('head')}:{port}"
        self._start_node(name, [f"--num-cpus={self.state['cpus']:g}", address, gpus, *labels])

    def _start_redis(self, address: str, port: int) -> None:
        """Starts what keeps the head's state. Its password is in a file: others may read what is in argv."""
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program is None:
            _fail("redis needs redis-server or valkey-server; Debian: apt-get install redis-server")
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

    def _of_ray(self, token: Path) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _of_client(self) -> dict[str, str]:
        address = f"http://{self.address('head')}:{self.state['dashboard']}"
        return {"RAY_ADDRESS": address, **self._of_tls("client", "127.0.0.1")}

    def _of_tls(self, name: str, address: str) -> dict[str, str]:
        """Returns the variables with which Ray encrypts its calls, and knows the other side, by its certificate."""
        if not self.state["tls"]:
            return {}
        authority = Authority(self.folder / "tls")
        try:
            certificate, key = authority.issue(name, [address, "127.0.0.1", *_own_addresses()])
        except RuntimeError as error:
            _fail(str(error))
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
        # One of its own: nodes that share a folder remove each other's copy of a job's working directory.
        line.append(f"--temp-dir={self.folder}/{'ray' if head else name}")
        line += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        # Ports that are fixed otherwise: another Ray of this machine may have them, and then no job can be submitted.
        agent, *metrics = free_ports(3)
        line.append(f"--dashboard-agent-listen-port={agent}")
        if self.state["namespaces"]:
            self._make_namespace(name, address)
            line = ["ip", "netns", "exec", self._namespace(name), *line]
        environment = {**os.environ, **self.state["variables"], "PATH": f"{programs}:{os.environ['PATH']}"}
        environment.update(self._of_tls(name, address))
        environment.update(zip(("DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT"), map(str, metrics), strict=True))
        if head and "redis" in self.state:
            environment["RAY_REDIS_ADDRESS"] = self.state["redis"]["address"]
        if self.state["namespaces"]:  # this machine's name stands for its loopback, which is another one there
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
                _fail(f"{name} doesn't start: {log.read_text()[-500:]}")
            time.sleep(0.2)

    # --- networks -------------------------------------------------------------------------------------------------

    def _namespace(self, name: str) -> str:
        return f"ipl-{name}"

    def address(self, name: str) -> str:
        """Where a node is reached."""
        if not self.state["namespaces"]:
            return "127.0.0.1"
        return f"{_NETWORK}.{10 if name == 'head' else 10 + int(name.split('-')[1])}"

    def _make_namespace(self, name: str, address: str) -> None:
        space, outside = self._namespace(name), f"v-{name}"
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", outside, "master", _BRIDGE, "up")
        for line in (
            ["address", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            _run("ip", "-n", space, *line)
        _run("ip", "-n", space, "route", "add", "default", "via", f"{_NETWORK}.1")

    def cut(self, name: str) -> None:
        """Cuts a node off the network, as when a cable is pulled."""
        _run("ip", "link", "set", f"v-{name}", "down")

    def join(self, name: str) -> None:
        """Lets a node that was cut off back."""
        _run("ip", "link", "set", f"v-{name}", "up")

    # --- ending ---------------------------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a node at once, as when a machine is gone."""
        for each in [each for each in self.state["processes"] if each["name"] == name]:
            self._end(each)
            self.state["processes"].remove(each)
            if self.state["namespaces"]:
                self._remove_namespace(name)
            self._save()
            return
        names = ", ".join(each["name"] for each in self.state["processes"])
        _fail(f"node={name!r} isn't there; there are {names or 'none'}")

    def _end(self, process: dict[str, Any]) -> None:
        if _started(process["pid"]) != process["started"]:
            return  # it is gone; another one may have its number now
        for pid in reversed(process_tree(process["pid"])):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _remove_namespace(self, name: str) -> None:
        subprocess.run(["ip", "link", "delete", f"v-{name}"], capture_output=True)
        subprocess.run(["ip", "netns", "delete", self._namespace(name)], capture_output=True)

    def down(self) -> bool:
        """Ends all of it and removes its folder. Returns whether there was any."""
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
        if self.state["namespaces"]:
            for each in self.state["processes"]:
                self._remove_namespace(each["name"])
            subprocess.run(["ip", "link", "delete", _BRIDGE], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return True


def _run(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        _fail(f"{' '.join(line)}: {done.stderr.strip()}; --namespaces needs root and iproute2")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _own_addresses() -> list[str]:
    """Returns this machine's: Ray calls by them also what was started on its loopback."""
    return subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()


def _started(pid: int) -> str:
    """Returns when a process started, in ticks since boot; "" where there is none, or it is but waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="infra/local", description=(__doc__ or "").split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="start a cluster")
    up.add_argument("--nodes", type=int, default=3, help="beside the head (default: 3)")
    up.add_argument("--cpu-only", type=int, default=1, help="of them, for augmentation alone (default: 1)")
    up.add_argument("--cpus", type=float, default=2, help="that each announces (default: 2)")
    up.add_argument("--gpus", type=float, default=0, help="that each node that trains announces (default: 0)")
    up.add_argument("--namespaces", action="store_true", help="a network for each; needs root")
    up.add_argument("--tls", action="store_true", help="encrypt Ray's own calls; needs openssl")
    up.add_argument("--redis", action="store_true", help="keep the head's state, so that a new one goes on with it")
    down = actions.add_parser("down", help="end it")
    kill = actions.add_parser("kill", help="SIGKILL to a node, as when a machine is gone")
    start = actions.add_parser("start", help="start a node that was killed, or one more")
    cut = actions.add_parser("cut", help="cut a node off for some seconds; needs --namespaces")
    cut.add_argument("--seconds", type=float, default=60)
    for each in (kill, start, cut):
        each.add_argument("node", type=_node, metavar="NODE", help="head, node-1 and so on")
    for each in (up, down, kill, start, cut):
        each.add_argument("--name", default="local", help="of the cluster (default: local)")
    args = parser.parse_args()
    cluster = Cluster(args.name)
    if args.action == "up":
        _up(cluster, args)
    elif args.action == "down":
        print("ended" if cluster.down() else "there was none")
    elif args.action == "kill":
        cluster.kill(args.node)
    elif args.action == "start":
        _start(cluster, args.node)
    else:
        cluster.cut(args.node)
        try:
            time.sleep(args.seconds)
        finally:
            cluster.join(args.node)


def _node(name: str) -> str:
    if not re.fullmatch(r"head|node-[1-9]\d?", name):
        raise argparse.ArgumentTypeError(f"node={name!r} must be head or node-1 to node-99")
    return name


def _start(cluster: Cluster, name: str) -> None:
    if not cluster.runs():
        _fail("there is no cluster; infra/local/up.sh starts one")
    if name in cluster.names():
        _fail(f"{name} is up already")
    cluster.start(name)


def _up(cluster: Cluster, args: argparse.Namespace) -> None:
    if not 0 <= args.cpu_only < args.nodes:
        _fail(f"cpu-only={args.cpu_only} must be 0 or more and less than nodes={args.nodes}")
    if cluster.runs():
        _fail(f"a cluster is up already ({cluster.folder}); infra/local/down.sh ends it")
    start = time.monotonic()
    try:
        cluster.up(args.nodes, args.cpu_only, args.cpus, args.gpus, args.namespaces, args.tls, args.redis)
    except BaseException:  # Ctrl-C, too: nothing is left
        cluster.down()
        raise
    await_answer(f"http://{cluster.address('head')}:{cluster.state['dashboard']}/")
    print(
        f"a head and {args.nodes} nodes, {args.cpu_only} of them for augmentation alone, after "
        f"{time.monotonic() - start:.0f} s\n"
        f"  source {cluster.folder}/env      # address, token, S3's variables\n"
        f"  ray job submit --working-dir . -- python jobs/imagenet_resnet.py --help\n"
        f"  infra/local/down.sh              # ends it"
    )


if __name__ == "__main__":
    main()
