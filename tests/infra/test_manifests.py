"""What is handed to Kubernetes is what Kubernetes and KubeRay take, and safe; each planted mistake is found."""

import copy
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kuberay import crd_problems, problems

INFRA = Path(__file__).parents[2] / "infra"
BUILDS = (
    "kuberay/overlays/cloud",
    "kuberay/overlays/kind",
    "kuberay/train",
    "schedules/kubernetes",
    "schedules/raycronjob",
)


@lru_cache
def _built(name: str, infra: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl isn't installed")
    done = subprocess.run(["kubectl", "kustomize", infra / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(name: str, infra: Path = INFRA) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(_built(name, infra)) if each]


def find(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(each for each in documents if each["kind"] == kind)


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    """The cluster's spec in a RayCluster, RayJob or RayCronJob."""
    spec = document["spec"]
    spec = spec.get("jobTemplate", spec)
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


@pytest.mark.parametrize("name", BUILDS)
def test_what_kustomize_builds_is_taken(name: str) -> None:
    documents = build(name)
    assert [line for document in documents for line in problems(document)] == []
    rays = [each["kind"] for each in documents if each["apiVersion"].startswith("ray.io")]
    assert rays == {
        "kuberay/train": ["RayJob"], "schedules/kubernetes": ["RayJob"], "schedules/raycronjob": ["RayCronJob"]
    }.get(name, ["RayCluster"])  # fmt: skip


@pytest.mark.parametrize("name", BUILDS)
def test_what_is_built_is_safe(name: str) -> None:
    """As Kubernetes' "restricted" asks for; a token is needed, nothing is open, and GPUs are asked for in full."""
    documents = build(name)
    templates = [each["spec"]["template"] for each in documents if each["kind"] == "StatefulSet"]
    templates += [each["spec"]["jobTemplate"]["spec"]["template"] for each in documents if each["kind"] == "CronJob"]
    for document in documents:
        if document["apiVersion"].startswith("ray.io"):
            cluster = cluster_of(document)
            assert cluster["authOptions"] == {"mode": "token"}
            assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
            assert "serviceType" not in cluster["headGroupSpec"]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            templates += [group["template"] for group in groups]
            for group in groups[1:]:
                resources = group["template"]["spec"]["containers"][0]["resources"]
                assert resources["requests"] == resources["limits"]
                assert group["template"]["spec"]["automountServiceAccountToken"] is False
    for template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
    policies = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "NetworkPolicy"}
    for spec in policies.values():
        for rule in spec["ingress"]:
            assert rule["from"], "open to all"
    assert not [each for each in documents if each["kind"] == "Secret"]
    assert not [
        each for each in documents if each["kind"] == "Service" and each["spec"].get("type", "ClusterIP") != "ClusterIP"
    ]
    assert set(policies) == {"ray", "ray-head", "redis"}


def test_the_spot_workers_have_the_time_for_a_checkpoint_and_the_gpus() -> None:
    groups = {
        each["groupName"]: each
        for each in cluster_of(find(build("kuberay/overlays/cloud"), "RayCluster"))["workerGroupSpecs"]
    }
    gpu = groups["gpu"]["template"]["spec"]
    assert gpu["terminationGracePeriodSeconds"] >= 60
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {each["key"] for each in gpu["tolerations"]} == {"nvidia.com/gpu", "spot"}
    assert "nvidia.com/gpu" not in groups["cpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_a_job_has_the_cluster_and_the_image_of_the_overlay() -> None:
    cluster = find(build("kuberay/overlays/cloud"), "RayCluster")["spec"]
    image = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    for name, kind in (
        ("kuberay/train", "RayJob"),
        ("schedules/kubernetes", "RayJob"),
        ("schedules/raycronjob", "RayCronJob"),
    ):
        document = find(build(name), kind)
        assert cluster_of(document) == cluster
        spec = document["spec"].get("jobTemplate", document["spec"])
        assert spec["submitterPodTemplate"]["spec"]["containers"][0]["image"] == image
    cron = find(build("schedules/kubernetes"), "CronJob")["spec"]
    assert cron["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert (cron["concurrencyPolicy"], cron["timeZone"]) == ("Forbid", "Etc/UTC")
    assert cron["startingDeadlineSeconds"] > 0


@pytest.mark.parametrize("name", ["kuberay/train", "schedules/kubernetes", "schedules/raycronjob"])
def test_what_a_job_starts_is_a_command_that_we_have(name: str) -> None:
    """Each flag is one that the job knows; --dry-run and the like aren't asked: --help is enough to see them."""
    document = next(each for each in build(name) if each["apiVersion"].startswith("ray.io"))
    spec = document["spec"].get("jobTemplate", document["spec"])
    program, job, *arguments = spec["entrypoint"].split()
    assert (program, Path(job).parent) == ("python", Path("/opt/image-pipeline/jobs"))
    line = [sys.executable, INFRA.parent / "jobs" / Path(job).name, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    for flag in [each for each in arguments if each.startswith("--")]:
        assert f"{flag} " in done.stdout or f"{flag}\n" in done.stdout, flag


def test_the_component_turns_tls_on_for_a_cluster_and_for_a_job(tmp_path: Path) -> None:
    """As an overlay takes it."""
    shutil.copytree(INFRA, tmp_path / "infra")
    overlay = tmp_path / "infra" / "kuberay" / "overlays" / "cloud" / "kustomization.yaml"
    assert "# - ../../components/tls" in overlay.read_text()
    overlay.write_text(
        overlay.read_text()
        .replace("# components:", "components:")
        .replace("# - ../../components", "- ../../components")
    )
    for name, kind in (("kuberay/overlays/cloud", "RayCluster"), ("kuberay/train", "RayJob")):
        document = find(build(name, tmp_path / "infra"), kind)
        assert cluster_of(document)["tlsOptions"] == {"enabled": True}
        assert problems(document) == []
        cluster_of(document)["tlsOptions"] = {"mode": "mTLS"}  # no field of KubeRay
        assert problems(document) != []
        assert "tlsOptions" not in cluster_of(find(build(name), kind))


def with_h100(tmp_path: Path) -> Path:
    """Returns a copy of infra/ whose cloud overlay takes the component of eight H100."""
    infra = tmp_path / "infra"
    shutil.copytree(INFRA, infra)
    overlay = infra / "kuberay" / "overlays" / "cloud" / "kustomization.yaml"
    text = overlay.read_text().replace("# components:", "components:")
    overlay.write_text(text.replace("# - ../../components/h100", "- ../../components/h100"))
    return infra


def test_nodes_of_eight_h100_have_their_network_and_room_for_ray_and_nccl(tmp_path: Path) -> None:
    """As Kubernetes' "restricted" asks for, like every pod; and one kind of GPU alone, or a job trained on both."""
    infra = with_h100(tmp_path)
    plain = find(build("kuberay/overlays/cloud"), "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    for name, kind in (("kuberay/overlays/cloud", "RayCluster"), ("kuberay/train", "RayJob")):
        document = find(build(name, infra), kind)
        assert problems(document) == []
        groups = {each["groupName"]: each for each in cluster_of(document)["workerGroupSpecs"]}
        assert {key: each["maxReplicas"] for key, each in groups.items()} == {"gpu": 0, "cpu": 16, "h100": 8}
        pod = groups["h100"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == plain["containers"][0]["image"]  # the overlay's
        assert (pod["securityContext"], container["securityContext"]) == (
            plain["securityContext"],
            plain["containers"][0]["securityContext"],
        )
        assert pod["automountServiceAccountToken"] is False
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {key: resources["limits"][key] for key in ("nvidia.com/gpu", "vpc.amazonaws.com/efa")} == {
            "nvidia.com/gpu": "8",
            "vpc.amazonaws.com/efa": "32",
        }
        assert int(resources["limits"]["cpu"]) < 192  # of the node; some are for its own pods
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        shm = next(each for each in pod["volumes"] if each["name"] == "shm")["emptyDir"]
        assert shm["medium"] == "Memory"
        assert int(shm["sizeLimit"].removesuffix("Gi")) < int(resources["limits"]["memory"].removesuffix("Gi"))
        assert {"name": "FI_PROVIDER", "value": "efa"} in container["env"]
        container["resources"]["limit"] = {}  # no field of a container
        assert problems(document) != []


Change = Callable[[dict[str, Any]], object]
MISTAKES: dict[str, tuple[str, str, Change]] = {
    "a field of the cluster": ("kuberay/overlays/cloud", "RayCluster", lambda d: d["spec"].update(rayVersoin="2.60.0")),
    "a start parameter that is no string": (
        "kuberay/overlays/cloud", "RayCluster",
        lambda d: d["spec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ),
    "a Ray without tokens": ("kuberay/overlays/cloud", "RayCluster", lambda d: d["spec"].update(rayVersion="2.51.0")),
    "more at least than at most": (
        "kuberay/overlays/cloud", "RayCluster", lambda d: d["spec"]["workerGroupSpecs"][0].update(minReplicas=9)
    ),
    "a group twice": (
        "kuberay/overlays/cloud", "RayCluster",
        lambda d: d["spec"]["workerGroupSpecs"].append(d["spec"]["workerGroupSpecs"][0]),
    ),
    "a field of a pod": (
        "kuberay/overlays/cloud", "RayCluster",
        lambda d: d["spec"]["headGroupSpec"]["template"]["spec"].update(serviceAcountName="x"),
    ),
    "a field of a container": (
        "kuberay/train", "RayJob",
        lambda d: cluster_of(d)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(img="x"),
    ),
    "pods that start again beside the autoscaler": (
        "kuberay/overlays/cloud", "RayCluster",
        lambda d: d["spec"]["headGroupSpec"]["template"]["spec"].update(restartPolicy="Always"),
    ),
    "a password in the manifest": (
        "kuberay/overlays/cloud", "RayCluster",
        lambda d: d["spec"]["gcsFaultToleranceOptions"].update(redisPassword={"value": "x"}),
    ),
    "a field of the job": ("kuberay/train", "RayJob", lambda d: d["spec"].update(backofLimit=3)),
    "a mode that isn't": ("kuberay/train", "RayJob", lambda d: d["spec"].update(submissionMode="K8SJobMode")),
    "a side car's submitter": ("kuberay/train", "RayJob", lambda d: d["spec"].update(submissionMode="SidecarMode")),
    "a deadline of nothing": ("kuberay/train", "RayJob", lambda d: d["spec"].update(activeDeadlineSeconds=0)),
    "a cluster that stays and goes": (
        "kuberay/train", "RayJob", lambda d: d["spec"].update(shutdownAfterJobFinishes=False)
    ),
    "two clusters": ("kuberay/train", "RayJob", lambda d: d["spec"].update(clusterSelector={"ray.io/cluster": "x"})),
    "no cluster": ("kuberay/train", "RayJob", lambda d: d["spec"].pop("rayClusterSpec")),
    "a long name": ("kuberay/train", "RayJob", lambda d: d["metadata"].update(name="x" * 48)),
    "a shell's characters": ("kuberay/train", "RayJob", lambda d: d["spec"].update(entrypoint="python a.py; exit 0")),
    "a name too long for a schedule": (
        "schedules/raycronjob", "RayCronJob", lambda d: d["metadata"].update(name="x" * 37)
    ),
    "four fields": ("schedules/raycronjob", "RayCronJob", lambda d: d["spec"].update(schedule="30 2 * *")),
    "a field of the schedule": (
        "schedules/raycronjob", "RayCronJob", lambda d: d["spec"].update(concurrencyPolicy="Forbid")
    ),
    "a field of the CronJob": (
        "schedules/kubernetes", "CronJob", lambda d: d["spec"].update(concurencyPolicy="Forbid")
    ),
    "a field of the policy": (
        "kuberay/overlays/cloud", "NetworkPolicy", lambda d: d["spec"].update(policyType=["Ingress"])
    ),
    "a port by a wrong type": (
        "kuberay/overlays/cloud", "Service", lambda d: d["spec"]["ports"][0].update(port="6379")
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    name, kind, change = MISTAKES[mistake]
    document = copy.deepcopy(find(build(name), kind))
    assert problems(document) == []
    change(document)
    assert problems(document) != []


def test_real_crds_are_asked_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRD as controller-gen writes them, of the few fields that stand below."""
    quantity = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    options = {"idleTimeoutSeconds": {"type": "integer"}, "limit": quantity, "free": {"type": "object"}}
    spec = {
        "type": "object",
        "properties": {"schedule": {"type": "string"}, "options": {"type": "object", "properties": options}},
    }
    top = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec}
    crd = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "names": {"kind": "RayCronJob"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": top}}}],
        },
    }
    (tmp_path / "crds.yaml").write_text(yaml.safe_dump(crd))
    monkeypatch.setenv("KUBERAY_CRD_DIR", str(tmp_path))
    document: dict[str, Any] = {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": {"name": "x"}}
    good = {"schedule": "0 0 * * *", "options": {"idleTimeoutSeconds": 3, "limit": "3Gi", "free": {"any": 1}}}
    assert crd_problems({**document, "spec": good}) == []
    for bad in ({"shedule": "x"}, {"schedule": 3}, {"options": {"limits": 3}}, {"options": {"limit": 0.5}}):
        assert crd_problems({**document, "spec": {**good, **bad}}) != []
    assert "no CRD of it" in crd_problems({**document, "kind": "RayJob"})[0]


class Api(http.server.BaseHTTPRequestHandler):
    """As much of Kubernetes' API server as start_night.py asks for: RayJobs by name, listed, made once, removed."""

    jobs: dict[str, dict[str, Any]]
    states: list[tuple[str, str]]

    def _answer(self, code: int, values: object) -> None:
        data = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def _name(self) -> str:
        return self.path.split("?")[0].rsplit("/rayjobs", 1)[1].strip("/")

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer secret":
            self._answer(401, {})
        elif not self._name:
            self._answer(
                200,
                {
                    "items": [
                        each for each in self.jobs.values() if "image-pipeline/night" in each["metadata"]["labels"]
                    ]
                },
            )
        elif self._name not in self.jobs:
            self._answer(404, {})
        else:
            job = self.jobs[self._name]
            if self.states and self._name != "retrain-template":
                deployment, status = self.states.pop(0)
                job["status"] = {"jobDeploymentStatus": deployment, "jobStatus": status}
            self._answer(200, job)

    def do_POST(self) -> None:
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = made["metadata"]["name"]
        if name in self.jobs:
            self._answer(409, {})
        else:
            made["metadata"]["creationTimestamp"] = "2026-11-25T02:30:00Z"
            self.jobs[name] = made
            self._answer(201, made)

    def do_DELETE(self) -> None:
        self.jobs.pop(self._name)
        self._answer(200, {})

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def start_night(tmp_path: Path, jobs: dict[str, dict[str, Any]], states: list[tuple[str, str]]) -> tuple[int, str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Kept", (Api,), {"jobs": jobs, "states": states}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text("secret")
    settings = {
        **os.environ, "KUBERNETES_API": f"http://127.0.0.1:{server.server_port}", "NAMESPACE": "image-pipeline",
        "SERVICE_ACCOUNT": str(tmp_path), "LOOK_EVERY_SECONDS": "0.01",
    }  # fmt: skip
    script = INFRA / "schedules" / "kubernetes" / "start_night.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=settings, timeout=60)
    server.shutdown()
    return done.returncode, done.stdout + done.stderr


def test_the_cron_job_makes_a_night_from_the_template_once_and_ends_as_it_did(tmp_path: Path) -> None:
    template = find(build("schedules/kubernetes"), "RayJob")
    jobs = {"retrain-template": template}
    for number in range(9):
        jobs[f"old-{number}"] = {
            "metadata": {
                "name": f"old-{number}", "labels": {"image-pipeline/night": "yes"},
                "creationTimestamp": f"2026-11-{10 + number}T02:30:00Z",
            },
            "status": {"jobDeploymentStatus": "Complete" if number else "Running"},
        }  # fmt: skip
    code, said = start_night(tmp_path, jobs, [("Running", ""), ("Running", "RUNNING"), ("Complete", "SUCCEEDED")])
    assert code == 0, said
    made = [each for name, each in jobs.items() if name.startswith("retrain-2")]
    assert len(made) == 1
    assert problems({key: value for key, value in made[0].items() if key != "status"} | {
        "metadata": {key: value for key, value in made[0]["metadata"].items() if key != "creationTimestamp"}
    }) == []  # fmt: skip
    assert made[0]["spec"] == {**template["spec"], "suspend": False}
    assert sorted(name for name in jobs if name.startswith("old")) == ["old-0", *(f"old-{n}" for n in range(2, 9))]
    code, said = start_night(tmp_path, jobs, [("Running", "RUNNING"), ("Failed", "FAILED")])
    assert code == 1
    assert "is there already" in said
    assert len([name for name in jobs if name.startswith("retrain-2")]) == 1
