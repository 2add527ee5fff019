"""Create today's RayJob from the one named retrain-template, wait for it, and end with 0 if it succeeded, else 1.

A second start on the same day waits for the RayJob of the first. Of the RayJobs that have ended, the newest seven are
kept. This program runs in a pod of the CronJob and needs nothing but Python.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TEMPLATE, KEEP = "retrain-template", 7
LABEL = "image-pipeline/night"
ENDED = ("Complete", "Failed", "ValidationFailed")
_LOOK_EVERY_SECONDS = float(os.environ.get("LOOK_EVERY_SECONDS", "15"))
_MOST_FAILURES = 20  # requests in a row: the API server may be unavailable for some minutes
_ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
_API = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")


def ask(method: str, name: str = "", body: dict[str, Any] | None = None, query: str = "") -> dict[str, Any]:
    """Returns the API server's answer about RayJobs of this namespace. Raises urllib.error.URLError."""
    url = f"{_API}/apis/ray.io/v1/namespaces/{os.environ['NAMESPACE']}/rayjobs/{name}".rstrip("/") + query
    headers = {"Authorization": f"Bearer {(_ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    context = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt")) if url.startswith("https") else None
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        values: dict[str, Any] = json.load(answer)
    return values


def start(name: str) -> None:
    """Creates the RayJob, unless there is one of this name."""
    template = ask("GET", TEMPLATE)
    labels = {**template["metadata"].get("labels", {}), LABEL: "yes"}
    spec = {**template["spec"], "suspend": False}
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name, "labels": labels}, "spec": spec}
    try:
        ask("POST", body=job)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        print(f"{name} is there already; waiting for it", flush=True)


def clear() -> None:
    """Deletes RayJobs that have ended, but for the newest ones."""
    nights = ask("GET", query=f"?labelSelector={LABEL}%3Dyes")["items"]
    ended = [each for each in nights if each.get("status", {}).get("jobDeploymentStatus") in ENDED]
    ended.sort(key=lambda each: each["metadata"]["creationTimestamp"])
    for each in ended[:-KEEP]:
        ask("DELETE", each["metadata"]["name"])


def wait(name: str) -> bool:
    """Waits until the RayJob has ended and returns whether it succeeded."""
    failures, last = 0, ""
    while True:
        try:
            status = ask("GET", name).get("status", {})
            failures = 0
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            failures += 1
            if failures == _MOST_FAILURES:
                raise
            status = {}
        state = status.get("jobDeploymentStatus", "")
        if state and state != last:
            print(f"{name}: {state} {status.get('message', '')}".rstrip(), flush=True)
            last = state
        if state in ENDED:
            return bool(state == "Complete" and status.get("jobStatus") == "SUCCEEDED")
        time.sleep(_LOOK_EVERY_SECONDS)


def main() -> None:
    """Runs the retraining of today."""
    name = f"retrain-{datetime.now(UTC):%Y%m%d}"
    start(name)
    clear()
    sys.exit(0 if wait(name) else 1)


if __name__ == "__main__":
    main()
