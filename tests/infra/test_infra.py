"""What people start clusters with: the image, the launcher's files, the runbook; each planted mistake is found."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.local.certificates import Authority
from pipeline.cluster.session import ray_in_process

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = INFRA / "Dockerfile"

# What a node may be told by its provider, as far as we use it: the launcher hands anything on.
NODE_FIELDS = {
    "aws": {
        "InstanceType", "ImageId", "SubnetIds", "SecurityGroupIds", "IamInstanceProfile", "MetadataOptions",
        "BlockDeviceMappings", "InstanceMarketOptions", "Placement", "NetworkInterfaces",
    },
    "gcp": {
        "machineType", "disks", "networkInterfaces", "serviceAccounts", "shieldedInstanceConfig", "guestAccelerators",
        "scheduling",
    },
}  # fmt: skip
PROVIDER_FIELDS = {
    "aws": {"type", "region", "use_internal_ips", "cache_stopped_nodes"},
    "gcp": {"type", "region", "availability_zone", "project_id", "use_internal_ips", "cache_stopped_nodes"},
}
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-eni.html#network-cards
_NETWORK_CARDS = {"p5.48xlarge": 32}


def cluster(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((INFRA / name / "cluster.yaml").read_text())
    return values


def launcher_problems(config: dict[str, Any]) -> list[str]:
    """What Ray's own loader has against a configuration, and what it doesn't look at."""
    provider = config["provider"]["type"]
    found = []
    with ray_in_process():
        from ray.autoscaler._private.util import prepare_config, validate_config

        try:
            validate_config(prepare_config(copy.deepcopy(config)))
        except Exception as error:  # theirs are several
            found.append(str(error).splitlines()[0])
    found += [f"provider.{name}" for name in set(config["provider"]) - PROVIDER_FIELDS[provider]]
    head = config["head_node_type"]
    for name, node in config["available_node_types"].items():
        found += [f"{name}.node_config.{field}" for field in set(node["node_config"]) - NODE_FIELDS[provider]]
        if not 0 <= node["min_workers"] <= node["max_workers"] <= config["max_workers"]:
            found.append(f"{name}: min_workers <= max_workers <= all nodes' max_workers doesn't hold")
        found += _aws_problems(name, node, head) if provider == "aws" else _gcp_problems(name, node)
    if config["available_node_types"][head]["resources"].get("CPU") != 0:
        found.append("the head runs work")
    if config["provider"].get("use_internal_ips") is not True:
        found.append("nodes have addresses of the world")
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = " ".join(config[kind])
        if "RAY_AUTH_MODE=token" not in start or "0.0.0.0" in start:
            found.append(f"{kind}: no token is asked for, or the dashboard is open")
    return found


def _aws_problems(name: str, node: dict[str, Any], head: str) -> list[str]:
    values, found = node["node_config"], []
    if values.get("MetadataOptions", {}).get("HttpTokens") != "required":
        found.append(f"{name}: the metadata service answers without a token")
    groups = values.get("SecurityGroupIds")
    if "NetworkInterfaces" in values:  # which have the groups and subnets then, and the launcher refuses both
        interfaces = values["NetworkInterfaces"]
        groups = groups is None and "SubnetIds" not in values and all(each.get("Groups") for each in interfaces)
        if [each.get("NetworkCardIndex") for each in interfaces] != list(range(_NETWORK_CARDS[values["InstanceType"]])):
            found.append(f"{name}: not one interface on each network card")
        if {each.get("InterfaceType") for each in interfaces} - {"efa", "efa-only"}:
            found.append(f"{name}: an interface without EFA")
    # Without them the launcher makes ones that may all, or are open.
    for field, there in (("IamInstanceProfile", values.get("IamInstanceProfile")), ("SecurityGroupIds", groups)):
        if not there:
            found.append(f"{name}: {field} is missing")
    if name != head and values.get("InstanceMarketOptions", {}).get("MarketType") != "spot":
        found.append(f"{name}: not spot")
    return found


def _gcp_problems(name: str, node: dict[str, Any]) -> list[str]:
    values = node["node_config"]
    found = [f"{name}: an address of the world" for each in values["networkInterfaces"] if "accessConfigs" in each]
    if not values.get("serviceAccounts"):
        found.append(f"{name}: no service account")
    return found


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_launcher_takes_its_files_and_they_are_safe(name: str) -> None:
    config = cluster(name)
    assert launcher_problems(config) == []
    assert config["available_node_types"]["cpu"]["labels"] == {"image-pipeline/role": "augment"}
    gpus = {kind: node["resources"].get("GPU", 0) for kind, node in config["available_node_types"].items()}
    assert gpus == {"head": 0, "gpu": 1, "h100": 8, "cpu": 0}
    started = [kind for kind, count in gpus.items() if count and _node(config, kind)["max_workers"]]
    assert started == ["gpu"]  # a job would train on a mixture of both kinds


def _node(config: dict[str, Any], name: str = "gpu") -> dict[str, Any]:
    node: dict[str, Any] = config["available_node_types"][name]
    return node


def _starts(config: dict[str, Any]) -> list[str]:
    commands: list[str] = config["head_start_ray_commands"]
    return commands


Change = Callable[[dict[str, Any]], object]
MISTAKES: dict[str, tuple[str, Change]] = {
    "a field of the file": ("aws", lambda c: c.update(max_worker=3)),
    "a field of the provider": ("aws", lambda c: c["provider"].update(use_internal_ip=True)),
    "a field of a node type": ("aws", lambda c: _node(c).update(min_worker=0)),
    "a field of a node": ("aws", lambda c: _node(c)["node_config"].update(InstanceTyp="g6.xlarge")),
    "more at least than at most": ("aws", lambda c: _node(c).update(min_workers=9)),
    "more than all": ("gcp", lambda c: _node(c).update(max_workers=99)),
    "a head that works": ("aws", lambda c: _node(c, "head").update(resources={"CPU": 4})),
    "a head that isn't there": ("gcp", lambda c: c.update(head_node_type="haed")),
    "no profile": ("aws", lambda c: _node(c)["node_config"].pop("IamInstanceProfile")),
    "no group": ("aws", lambda c: _node(c)["node_config"].pop("SecurityGroupIds")),
    "the old metadata service": ("aws", lambda c: _node(c)["node_config"].pop("MetadataOptions")),
    "addresses of the world": ("gcp", lambda c: c["provider"].update(use_internal_ips=False)),
    "an address of the world": (
        "gcp", lambda c: _node(c)["node_config"]["networkInterfaces"][0].update(accessConfigs=[{}])
    ),
    "no token": (
        "aws",
        lambda c: c.update(head_start_ray_commands=[each.replace("AUTH", "AUHT") for each in _starts(c)]),
    ),
    "a network card left out": ("aws", lambda c: _node(c, "h100")["node_config"]["NetworkInterfaces"].pop()),
    "an interface without EFA": (
        "aws", lambda c: _node(c, "h100")["node_config"]["NetworkInterfaces"][3].update(InterfaceType="interface")
    ),
    "an interface that is open": (
        "aws", lambda c: _node(c, "h100")["node_config"]["NetworkInterfaces"][3].pop("Groups")
    ),
    "a group beside those of interfaces": (
        "aws", lambda c: _node(c, "h100")["node_config"].update(SecurityGroupIds=["SECURITY_GROUP"])
    ),
    "an open dashboard": (
        "gcp",
        lambda c: c.update(head_start_ray_commands=[each.replace("127.0.0.1", "0.0.0.0") for each in _starts(c)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    name, change = MISTAKES[mistake]
    config = cluster(name)
    change(config)
    try:
        assert launcher_problems(config) != []
    except KeyError:
        assert mistake == "a head that isn't there"


# --- the image ---------------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_against_the_image() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert DOCKERFILE.read_text().count("\nUSER ") == 2
    assert re.findall(r"^USER (\d+)$", DOCKERFILE.read_text(), re.MULTILINE)[-1] == "1000"


def test_what_the_image_is_built_from_is_small_and_holds_what_it_copies() -> None:
    text = DOCKERFILE.read_text()
    copied = {name for line in re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", text, re.MULTILINE) for name in line.split()}
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    size = sum(path.stat().st_size for name in copied for path in [ROOT / name, *(ROOT / name).rglob("*")]
               if path.is_file() and "__pycache__" not in path.parts)  # fmt: skip
    assert size < 3e6
    version = re.search(r"^FROM rayproject/ray:([\d.]+)-", text, re.MULTILINE)
    assert version is not None
    assert f"ray[data,default,train]=={version.group(1)}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.long
def test_the_images_steps_install_it_in_an_empty_environment(tmp_path: Path) -> None:
    """The RUN lines as they stand but for apt-get, in a copy of what is COPYed, with an environment of its own."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    steps = [step for step in re.findall(r"^RUN (.+)$", text, re.MULTILINE) if "apt-get" not in step]
    assert len(steps) == 2
    uv = os.environ.get("UV") or shutil.which("uv")  # the former is what `uv run` sets
    if uv is None:
        pytest.skip("uv isn't in the path; run the tests by uv run")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").symlink_to(uv)
    venv = tmp_path / "venv"
    environment = {
        "PATH": f"{tmp_path}/bin:{venv}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), **_settings(),
        "UV_PROJECT_ENVIRONMENT": str(venv),
    }  # fmt: skip
    for step in steps:
        # pip's uv is this machine's; without a cache the wheels of gigabytes would be fetched again for nothing
        line = re.sub(r"pip install --no-cache-dir uv==[\d.]+", "true", step).replace(" --no-cache", "")
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "decoder" in done.stdout
    assert not (venv / "bin" / "pytest").exists()


def _settings() -> dict[str, str]:
    """What says where packages come from, and where uv keeps them."""
    return {name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_", "SSL_", "XDG_"))}


# --- certificates of the local cluster ---------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl isn't installed")
def test_a_node_is_known_by_its_address_and_its_keys_are_its_owners_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue("node-1", ["10.77.0.11", "127.0.0.1", "fd00::2", "127.0.0.1"])
    check = ["openssl", "verify", "-CAfile", str(authority.certificate), "-purpose", "sslserver", "-verify_ip"]
    for address, valid in (("10.77.0.11", True), ("fd00::2", True), ("10.77.0.12", False)):
        done = subprocess.run([*check, address, str(certificate)], capture_output=True, text=True)
        assert (done.returncode == 0) is valid, done.stderr
    assert key.stat().st_mode & 0o077 == 0
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0
    assert Authority(tmp_path / "tls").issue("node-2", ["127.0.0.1"])[0] != certificate
    other = Authority(tmp_path / "other").issue("node-1", ["127.0.0.1"])[0]
    assert subprocess.run([*check, "127.0.0.1", str(other)], capture_output=True).returncode != 0


# --- permissions ------------------------------------------------------------------------------------------------------


def test_the_policy_lets_nobody_remove_a_model() -> None:
    policy = json.loads((INFRA / "bucket-policy.json").read_text())
    statements = {each["Sid"]: each for each in policy["Statement"]}
    assert all("*" not in str(each["Action"]) for each in statements.values() if each["Effect"] == "Allow")
    assert all(each["Resource"] != "*" for each in statements.values())
    assert statements["VersionsAreNeverRemoved"]["Effect"] == "Deny"
