"""Start, break and end a Ray cluster of several nodes on this machine; up.sh and down.sh call it."""

import argparse
import re
import time
from dataclasses import fields

from infra.local.failure import fail
from infra.local.ray_cluster import Cluster, Options
from pipeline.storage.local_s3 import await_answer


def main() -> None:
    """Parses the command line and does what it asks for."""
    args = _parse()
    cluster = Cluster(args.name)
    if args.action == "up":
        _up(cluster, args)
    elif args.action == "down":
        print("ended" if cluster.down() else "there was no cluster")
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="infra/local", description=(__doc__ or "").split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="start a cluster")
    up.add_argument("--nodes", type=int, default=3, help="number of nodes beside the head (default: 3)")
    up.add_argument("--cpu-only", type=int, default=1, help="how many of them are for augmentation only (default: 1)")
    up.add_argument("--cpus", type=float, default=2, help="CPUs that each node announces (default: 2)")
    up.add_argument("--gpus", type=float, default=0, help="GPUs that each training node announces (default: 0)")
    up.add_argument("--namespaces", action="store_true", help="give each node a network of its own; needs root")
    up.add_argument("--tls", action="store_true", help="encrypt Ray's own calls; needs openssl")
    up.add_argument(
        "--redis", action="store_true", help="keep the head's state in Redis, so that a new head continues with it"
    )
    down = actions.add_parser("down", help="end the cluster")
    kill = actions.add_parser("kill", help="send SIGKILL to a node, as when a machine is lost")
    start = actions.add_parser("start", help="start a node that was killed, or one more node")
    cut = actions.add_parser("cut", help="take a node off the network for a while; needs --namespaces")
    cut.add_argument("--seconds", type=float, default=60, help="for how long (default: 60)")
    for each in (kill, start, cut):
        each.add_argument("node", type=_node, metavar="NODE", help="head, node-1 and so on")
    for each in (up, down, kill, start, cut):
        each.add_argument("--name", default="local", help="name of the cluster (default: local)")
    return parser.parse_args()


def _node(name: str) -> str:
    if not re.fullmatch(r"head|node-[1-9]\d?", name):
        raise argparse.ArgumentTypeError(f"node={name!r} must be head or node-1 to node-99")
    return name


def _start(cluster: Cluster, name: str) -> None:
    if not cluster.runs():
        fail("no cluster is running; infra/local/up.sh starts one")
    if name in cluster.names():
        fail(f"{name} is running already")
    cluster.start(name)


def _up(cluster: Cluster, args: argparse.Namespace) -> None:
    if not 0 <= args.cpu_only < args.nodes:
        fail(f"cpu-only={args.cpu_only} must be 0 or more and less than nodes={args.nodes}")
    if cluster.runs():
        fail(f"a cluster is running already ({cluster.folder}); infra/local/down.sh ends it")
    start = time.monotonic()
    try:
        cluster.up(Options(**{field.name: getattr(args, field.name) for field in fields(Options)}))
    except BaseException:  # also on Ctrl-C no process may be left
        cluster.down()
        raise
    await_answer(f"http://{cluster.address('head')}:{cluster.state['dashboard']}/")
    print(
        f"a head and {args.nodes} nodes, {args.cpu_only} of them for augmentation only, after "
        f"{time.monotonic() - start:.0f} s\n"
        f"  source {cluster.folder}/env      # address, token and the variables of S3\n"
        f"  ray job submit --working-dir . -- python jobs/imagenet_resnet.py --help\n"
        f"  infra/local/down.sh              # ends the cluster"
    )


if __name__ == "__main__":
    main()
