"""A network namespace for each node of a local cluster, joined by a bridge. Linux only, as root, by iproute2."""

import subprocess
from typing import Literal

from infra.local.failure import fail

_BRIDGE = "ipl0"
_NETWORK = "10.77.0"  # .1 is this machine, .10 the head, .11 and up are the nodes


def address(node: str) -> str:
    """Returns the IP address of the head or of node-N."""
    return f"{_NETWORK}.{10 if node == 'head' else 10 + int(node.split('-')[1])}"


def make_bridge() -> str:
    """Makes the bridge and returns this machine's address on it. A machine has one such cluster at a time."""
    here = f"{_NETWORK}.1"
    if subprocess.run(["ip", "link", "show", _BRIDGE], capture_output=True).returncode == 0:
        fail(
            f"another cluster has --namespaces here, or was left behind: the bridge {_BRIDGE} exists; end it with "
            f"infra/local/down.sh --name NAME, or remove the bridge with: ip link delete {_BRIDGE}"
        )
    _run("ip", "link", "add", _BRIDGE, "type", "bridge")
    _run("ip", "address", "add", f"{here}/24", "dev", _BRIDGE)
    _run("ip", "link", "set", _BRIDGE, "up")
    return here


def remove_bridge() -> None:
    """Removes the bridge, if there is one."""
    subprocess.run(["ip", "link", "delete", _BRIDGE], capture_output=True)


def make_namespace(node: str) -> list[str]:
    """Makes the namespace of a node and returns the words that run a command in it: ip netns exec NAME."""
    space, outside = _namespace(node), _link(node)
    _run("ip", "netns", "add", space)
    _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
    _run("ip", "link", "set", outside, "master", _BRIDGE, "up")
    for line in (
        ["address", "add", f"{address(node)}/24", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["link", "set", "lo", "up"],
        ["route", "add", "default", "via", f"{_NETWORK}.1"],
    ):
        _run("ip", "-n", space, *line)
    return ["ip", "netns", "exec", space]


def remove_namespace(node: str) -> None:
    """Removes the namespace of a node, if there is one."""
    subprocess.run(["ip", "link", "delete", _link(node)], capture_output=True)
    subprocess.run(["ip", "netns", "delete", _namespace(node)], capture_output=True)


def set_link(node: str, state: Literal["up", "down"]) -> None:
    """Takes a node off the network (down), or puts it back (up)."""
    _run("ip", "link", "set", _link(node), state)


def _namespace(node: str) -> str:
    return f"ipl-{node}"


def _link(node: str) -> str:
    return f"v-{node}"


def _run(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        fail(f"{' '.join(line)}: {done.stderr.strip()}; --namespaces needs root and iproute2")
