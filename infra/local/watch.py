"""Shows the local cluster to a Prometheus of this machine (Debian: apt-get install prometheus), in the foreground."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from infra.local.cluster import Cluster

CONFIG = Path(__file__).parent.parent / "monitoring" / "prometheus.yml"
_RAYS_FILE = "/tmp/ray/prom_metrics_service_discovery.json"


def write_config(cluster: Cluster) -> Path:
    """Writes Prometheus' configuration for a cluster below its folder, and returns where it is."""
    text = CONFIG.read_text()
    assert _RAYS_FILE in text
    made = cluster.folder / "prometheus.yml"
    made.write_text(
        text.replace(_RAYS_FILE, f"{cluster.folder}/ray/{Path(_RAYS_FILE).name}").replace(
            "alerts.yml", str(CONFIG.with_name("alerts.yml"))
        )
    )
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="infra/local/watch", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--name", default="local", help="of the cluster (default: local)")
    parser.add_argument("--port", type=int, default=9090, help="to listen on (default: 9090)")
    args = parser.parse_args()
    cluster = Cluster(args.name)
    if not cluster.runs():
        sys.exit("error: there is no cluster; infra/local/up.sh starts one")
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("error: prometheus isn't installed; Debian: apt-get install prometheus")
    config = write_config(cluster)
    print(f"http://127.0.0.1:{args.port}/alerts; Ctrl-C ends it", flush=True)
    flags = [f"--config.file={config}", f"--storage.tsdb.path={cluster.folder}/prometheus"]
    os.execv(program, [program, *flags, f"--web.listen-address=127.0.0.1:{args.port}", "--log.level=warn"])


if __name__ == "__main__":
    main()
