"""Run Prometheus in the foreground, with the local cluster as its target. Debian: apt-get install prometheus."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from infra.local.ray_cluster import Cluster

CONFIG = Path(__file__).parent.parent / "monitoring" / "prometheus.yml"
_RAY_TARGETS = "/tmp/ray/prom_metrics_service_discovery.json"


def write_config(cluster: Cluster) -> Path:
    """Writes the configuration of Prometheus for a cluster to its folder, and returns the path."""
    text = CONFIG.read_text()
    assert _RAY_TARGETS in text
    config = cluster.folder / "prometheus.yml"
    config.write_text(
        text.replace(_RAY_TARGETS, f"{cluster.folder}/ray/{Path(_RAY_TARGETS).name}").replace(
            "alerts.yml", str(CONFIG.with_name("alerts.yml"))
        )
    )
    return config


def main() -> None:
    """Parses the command line and becomes Prometheus."""
    parser = argparse.ArgumentParser(prog="infra/local/watch", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--name", default="local", help="name of the cluster (default: local)")
    parser.add_argument("--port", type=int, default=9090, help="port to listen on (default: 9090)")
    args = parser.parse_args()
    cluster = Cluster(args.name)
    if not cluster.runs():
        sys.exit("error: no cluster is running; infra/local/up.sh starts one")
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("error: prometheus isn't installed; Debian: apt-get install prometheus")
    config = write_config(cluster)
    print(f"http://127.0.0.1:{args.port}/alerts; Ctrl-C ends it", flush=True)
    flags = [f"--config.file={config}", f"--storage.tsdb.path={cluster.folder}/prometheus"]
    os.execv(program, [program, *flags, f"--web.listen-address=127.0.0.1:{args.port}", "--log.level=warn"])


if __name__ == "__main__":
    main()
