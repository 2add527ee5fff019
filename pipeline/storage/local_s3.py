"""A real S3 server on loopback, for tests and benchmarks: SeaweedFS, from the dev group of the dependencies."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.variables import environment_variables

ACCESS_KEY, SECRET_KEY = "tester", "a-secret-of-the-tests"
READER_KEY, READER_SECRET = "reader", "a-secret-of-who-only-reads"
_SERVERS = ("master", "volume", "filer", "s3", "admin")


@contextmanager
def local_s3(bucket: str, parent: str = "/tmp") -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server with an empty bucket for the block, with its address and credentials in the standard variables.

    Yields the process of the server. Afterwards the server has ended, its files are removed and the variables are
    restored. parent: a folder with a short path, because it holds sockets, whose paths have 107 bytes at most.
    """
    folder = Path(tempfile.mkdtemp(prefix="weed-", dir=parent))
    process, variables = start_s3(bucket, folder)
    try:
        with environment_variables(variables):
            yield process
    finally:
        _end(process)
        remove_s3(folder)


def start_s3(bucket: str, folder: Path, address: str = "127.0.0.1") -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Starts a server with an empty bucket and its files in `folder`.

    Returns its process, which leads a process group, and the standard variables with its address and credentials.
    """
    import boto3

    folder.mkdir(exist_ok=True)
    ports = free_ports(2 * len(_SERVERS))
    (folder / "ports.json").write_text(json.dumps(ports))
    endpoint = f"http://{address}:{ports[_SERVERS.index('s3')]}"
    variables = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
        "actions": ["Read", "List"],
    }
    (folder / "s3.json").write_text(
        json.dumps({"identities": [reader]})
    )  # the identity of the variables may do everything
    weed = Path(sys.executable).with_name("weed")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [weed, "-logtostderr=true", "mini", *_flags(folder, ports, address)],
            stderr=log,
            stdout=log,
            cwd=folder,
            env={**os.environ, **variables, "TMPDIR": str(folder)},
            start_new_session=True,  # so that Ctrl-C in a terminal doesn't reach it before its clients
        )
    try:
        await_answer(f"{endpoint}/healthz")
        session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=variables["AWS_DEFAULT_REGION"])
        session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    except BaseException:
        _end(process)
        remove_s3(folder)
        raise
    return process, variables


def remove_s3(folder: Path) -> None:
    """Removes the folder of a server that has ended, and its sockets, which are in /tmp whatever TMPDIR is."""
    for port in json.loads((folder / "ports.json").read_text()):
        for socket_file in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            socket_file.unlink(missing_ok=True)
    shutil.rmtree(folder)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # it sometimes waits half a minute for its own parts; its data are removed anyway
        process.kill()
        process.wait()


def _flags(folder: Path, ports: list[int], address: str) -> list[str]:
    flags = [f"-{name}.port={port}" for name, port in zip(_SERVERS, ports, strict=False)]
    flags += [f"-{name}.port.grpc={port}" for name, port in zip(_SERVERS, ports[len(_SERVERS) :], strict=True)]
    flags += [f"-ip={address}", f"-ip.bind={address}", "-master.telemetry=false"]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    flags += ["-volume.preStopSeconds=0", "-s3.autoCreateBucket=false"]
    return [
        *flags,
        f"-s3.config={folder}/s3.json",
        f"-dir={folder}",
        f"-filer.localSocket={folder}/f.sock",
        f"-s3.localSocket={folder}/s.sock",
    ]


def free_ports(count: int) -> list[int]:
    """Returns free ports of loopback; another process may take them meanwhile."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def await_answer(url: str, timeout_seconds: float = 30) -> None:
    """Waits until a server answers. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} doesn't answer") from error
            time.sleep(0.1)
