"""Check manifests against KubeRay 1.7: the fields that ours use, by name and type, and the operator's own rules.

Pod templates, services and the like are Kubernetes' own and are checked against its schema. Manifests are checked
against KubeRay's own CRDs, too, if they are in the folder KUBERAY_CRD_DIR or, without that variable, in ../shared/crds
beside the checkout.
"""

import os
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import kubernetes_validate
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

KUBERNETES = "1.34"
SHARED_CRDS = Path(__file__).parents[3] / "shared" / "crds"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = {"RayCluster": 47, "RayJob": 47, "RayCronJob": 36}
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """No field that isn't named, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class SecretKey(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKey  # noqa: N815


class Credential(Strict):
    valueFrom: ValueFrom  # noqa: N815 - a password in the manifest itself isn't ours


class GcsFaultTolerance(Strict):
    redisAddress: str  # noqa: N815
    redisPassword: Credential  # noqa: N815
    externalStorageNamespace: str | None = None  # noqa: N815


class TlsOptions(Strict):
    enabled: bool


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    idleTimeoutSeconds: NotNegative | None = None  # noqa: N815
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None  # noqa: N815
    resources: dict[str, Any] | None = None
    securityContext: dict[str, Any] | None = None  # noqa: N815


class Group(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    labels: dict[str, str] = {}

    @model_validator(mode="after")
    def _no_labels_in_parameters(self) -> "Group":
        if "labels" in self.rayStartParams:
            raise ValueError("labels belong beside rayStartParams, not into them")
        return self


class Head(Group):
    template: dict[str, Any]
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None  # noqa: N815


class WorkerGroup(Group):
    groupName: str  # noqa: N815
    replicas: NotNegative = 0
    minReplicas: NotNegative = 0  # noqa: N815
    maxReplicas: NotNegative = 2147483647  # noqa: N815
    idleTimeoutSeconds: NotNegative | None = None  # noqa: N815
    template: dict[str, Any]

    @model_validator(mode="after")
    def _in_bounds(self) -> "WorkerGroup":
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: minReplicas <= replicas <= maxReplicas doesn't hold")
        return self


class ClusterSpec(Strict):
    rayVersion: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]  # noqa: N815
    authOptions: AuthOptions | None = None  # noqa: N815
    enableInTreeAutoscaling: bool = False  # noqa: N815
    autoscalerOptions: AutoscalerOptions | None = None  # noqa: N815
    gcsFaultToleranceOptions: GcsFaultTolerance | None = None  # noqa: N815
    tlsOptions: TlsOptions | None = None  # noqa: N815
    headGroupSpec: Head  # noqa: N815
    workerGroupSpecs: list[WorkerGroup] = []  # noqa: N815

    @model_validator(mode="after")
    def _rules(self) -> "ClusterSpec":
        version = tuple(map(int, self.rayVersion.split(".")))
        if self.authOptions and self.authOptions.mode == "token" and version < (2, 52, 0):
            raise ValueError("authOptions.mode: token needs rayVersion 2.52.0 or later")
        names = [group.groupName for group in self.workerGroupSpecs]
        if len(set(names)) < len(names):
            raise ValueError(f"two worker groups have one name: {names}")
        templates = [self.headGroupSpec.template, *(group.template for group in self.workerGroupSpecs)]
        if self.autoscalerOptions and not self.enableInTreeAutoscaling:
            raise ValueError("autoscalerOptions without enableInTreeAutoscaling")
        second = bool(self.autoscalerOptions and self.autoscalerOptions.version == "v2")
        for template in templates:
            if not template.get("spec", {}).get("containers"):
                raise ValueError("a group has no container")
            if second and template["spec"].get("restartPolicy") != "Never":
                raise ValueError("the autoscaler's second version needs restartPolicy: Never")
        return self


class JobSpec(Strict):
    entrypoint: str = ""
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"  # noqa: N815
    suspend: bool = False
    shutdownAfterJobFinishes: bool = False  # noqa: N815
    ttlSecondsAfterFinished: NotNegative = 0  # noqa: N815
    backoffLimit: NotNegative = 0  # noqa: N815
    preRunningDeadlineSeconds: Positive | None = None  # noqa: N815
    activeDeadlineSeconds: Positive | None = None  # noqa: N815
    submitterPodTemplate: dict[str, Any] | None = None  # noqa: N815
    submitterConfig: dict[str, int] | None = None  # noqa: N815
    clusterSelector: dict[str, str] | None = None  # noqa: N815
    rayClusterSpec: ClusterSpec | None = None  # noqa: N815
    runtimeEnvYAML: str = ""  # noqa: N815

    @model_validator(mode="after")
    def _rules(self) -> "JobSpec":
        if (self.rayClusterSpec is None) == (not self.clusterSelector):
            raise ValueError("one of rayClusterSpec and clusterSelector must be set")
        if not self.shutdownAfterJobFinishes and (self.suspend or self.ttlSecondsAfterFinished):
            raise ValueError("suspend and ttlSecondsAfterFinished need shutdownAfterJobFinishes: true")
        if self.clusterSelector and (self.suspend or self.backoffLimit or self.shutdownAfterJobFinishes):
            raise ValueError("a job on a cluster that stands can't be suspended, retried or end it")
        if self.submissionMode == "SidecarMode" and (
            self.submitterPodTemplate or self.submitterConfig or self.clusterSelector
        ):
            raise ValueError("SidecarMode forbids submitterPodTemplate, submitterConfig and clusterSelector")
        if self.submissionMode == "InteractiveMode" and self.backoffLimit:
            raise ValueError("InteractiveMode has no retries")
        if any(character in word for word in shlex.split(self.entrypoint) for character in ";|&$`"):
            raise ValueError("the entrypoint goes through shells on its way: plain words only")
        return self


class CronSpec(Strict):
    schedule: Annotated[str, Field(pattern=r"^\S+( \S+){4}$")]
    timeZone: Annotated[str, Field(min_length=1)] | None = None  # noqa: N815
    suspend: bool = False
    jobTemplate: JobSpec  # noqa: N815


_SPECS: dict[str, type[Strict]] = {"RayCluster": ClusterSpec, "RayJob": JobSpec, "RayCronJob": CronSpec}


def problems(document: dict[str, Any]) -> list[str]:
    """Returns what is wrong with a manifest, a line each."""
    kind = document.get("kind", "")
    if kind not in _SPECS:
        return _core_problems(document)
    found = []
    if document.get("apiVersion") != "ray.io/v1":
        found.append(f"{kind}: apiVersion {document.get('apiVersion')}")
    name = document["metadata"].get("name", "")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME[kind]:
        found.append(f"{kind} {name}: the name must be a label of {_LONGEST_NAME[kind]} characters at most")
    if set(document) - {"apiVersion", "kind", "metadata", "spec"}:
        found.append(f"{kind} {name}: unknown {sorted(document)}")
    try:
        _SPECS[kind].model_validate(document["spec"])
    except ValidationError as error:
        found += [f"{kind} {name}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    for template in _templates(document["spec"]):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        found += _core_problems(pod)
    return found + crd_problems(document)


def _templates(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    if "jobTemplate" in spec:
        return _templates(spec["jobTemplate"])
    if "submitterPodTemplate" in spec:
        found.append(spec["submitterPodTemplate"])
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", [])]
    return found + [group["template"] for group in groups if "template" in group]


def _core_problems(document: dict[str, Any]) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except Exception as error:  # theirs are several
        return [f"{document.get('kind')}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"]
    return []


def crd_problems(document: dict[str, Any]) -> list[str]:
    """Returns the violations of KubeRay's own CRDs in a manifest; none where there are no CRDs."""
    folder = crd_folder()
    if folder is None:
        return []
    schema = _crds(folder).get((document["kind"], document["apiVersion"]))
    if schema is None:
        return [f"{document['kind']}: no CRD of it in {folder}"]
    # iter_errors by itself doesn't check the schema: that would take longer than all the manifests
    return [
        f"{document['kind']}: {'.'.join(map(str, each.absolute_path))}: {each.message[:200]}"
        for each in jsonschema.Draft202012Validator(schema).iter_errors(document)
    ]


def crd_folder() -> Path | None:
    """Returns the folder with KubeRay's CRDs: KUBERAY_CRD_DIR, else ../shared/crds where it exists, else None."""
    if named := os.environ.get("KUBERAY_CRD_DIR"):
        return Path(named)
    return SHARED_CRDS if SHARED_CRDS.is_dir() else None


@lru_cache
def _crds(folder: Path) -> dict[tuple[str, str], Any]:
    """Returns {(kind, API version): schema}, made strict: the API server silently drops fields that a CRD doesn't name.

    A CRD has a megabyte of YAML, which libyaml's loader reads ten times as fast as Python's.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        for crd in yaml.load_all(path.read_text(), loader):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                for version in crd["spec"]["versions"]:
                    key = crd["spec"]["names"]["kind"], f"ray.io/{version['name']}"
                    found[key] = _strict(version["schema"]["openAPIV3Schema"])
    return found


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: {key: _strict(each) for key, each in value.items()} if name == "properties" else _strict(value)
        for name, value in schema.items()
        if name not in ("default", "description", "example")
    }
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    free = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if schema.get("type") == "object" and schema.get("properties") and not free:
        made.setdefault("additionalProperties", False)
    return made
