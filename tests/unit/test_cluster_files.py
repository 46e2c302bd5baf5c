"""The files of `cluster/`, checked as far as a machine without a cloud, a docker engine or Kubernetes can."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from reco_ray.cli import main
from reco_ray.config import Settings, load_settings
from reco_ray.distributed.workers import READER_CPUS
from reco_ray.serving.options import ServeOptions

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PLACEMENT = CLUSTER / "placement.yaml"
RAY = "2.60.0"
OVERLAYS = ("cpu", "gpu", "serve")
IMAGE_EXTRAS = {"cpu", "gpu", "serve", "train", "sweep", "video", "heic"}
STAGES = ("embed", "references", "segment", "label", "evaluate")


# --- the parts of KubeRay's ray.io/v1 that we use: an unknown field is an error ---------------------------------------


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Auth(Part):
    mode: Literal["token"]


class AutoscalerOptions(Part):
    version: Literal["v2"]
    idleTimeoutSeconds: int = Field(ge=1)


class HeadGroup(Part):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class WorkerGroup(HeadGroup):
    groupName: str
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class ClusterSpec(Part):
    rayVersion: Literal["2.60.0"]
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    authOptions: Auth
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Part):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode"]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    backoffLimit: int
    rayClusterSpec: ClusterSpec


class ServiceSpec(Part):
    serveConfigV2: str
    rayClusterConfig: ClusterSpec


RAY_KINDS: dict[str, type[BaseModel]] = {
    "RayCluster": ClusterSpec,
    "RayJob": JobSpec,
    "RayService": ServiceSpec,
}


def built(overlay: str) -> list[dict[str, Any]]:
    """What `kustomize build` reads: the base's resources, then the overlay's; every file must be listed in one."""
    found, waiting = [], [CLUSTER / "kuberay" / "overlays" / overlay]
    while waiting:
        folder = waiting.pop()
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())
        others = {name for name in listed["resources"] if (folder / name).is_dir()}
        files = set(listed["resources"]) - others
        assert files == {f.name for f in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert all((folder / name).is_file() for name in listed.get("configurations", []))
        waiting += [(folder / name).resolve() for name in others]
        for name in sorted(files):
            found += list(yaml.safe_load_all((folder / name).read_text()))
    return found


def ray_clusters() -> list[Any]:
    found = []
    for overlay in OVERLAYS:
        for resource in built(overlay):
            if model := RAY_KINDS.get(resource["kind"]):
                spec: Any = model.model_validate(resource["spec"])
                cluster = getattr(spec, "rayClusterSpec", getattr(spec, "rayClusterConfig", spec))
                found.append(pytest.param(cluster, id=f"{overlay}-{resource['kind']}"))
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_resources_are_valid(overlay: str) -> None:
    names = [(r["kind"], r["metadata"]["name"]) for r in built(overlay)]
    assert len(set(names)) == len(names)
    for resource in built(overlay):
        if resource["kind"] in RAY_KINDS:
            assert resource["apiVersion"] == "ray.io/v1"
            RAY_KINDS[resource["kind"]].model_validate(resource["spec"])
        else:
            kubernetes_validate.validate(resource, "1.34", strict=True)


@pytest.mark.parametrize("cluster", ray_clusters())
def test_pods_are_valid_and_restricted(cluster: ClusterSpec) -> None:
    names = {r["metadata"]["name"] for r in built("cpu")}
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        pod = {"apiVersion": "v1", "kind": "Pod", **group.template}
        pod["metadata"] = {"name": "checked", **pod["metadata"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
        spec = pod["spec"]
        # The namespace enforces the Pod Security Standard "restricted".
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["serviceAccountName"] in names
        assert all(v["persistentVolumeClaim"]["claimName"] in names for v in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["image"].startswith("RECO-REGISTRY/reco-ray:")
        assert pod["metadata"]["labels"] == {"app.kubernetes.io/part-of": "reco-ray"}  # network policies'


# --- resources ----------------------------------------------------------------------------------------------


def kuberay_nodes(cluster: ClusterSpec) -> list[tuple[dict[str, float], int]]:
    """What Ray's nodes of each group have, and how many there may be."""
    found = []
    for group in cluster.workerGroupSpecs:
        limits = group.template["spec"]["containers"][0]["resources"]["limits"]
        custom = json.loads(json.loads(group.rayStartParams["resources"]))
        node = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0)), **custom}
        found.append((node, group.maxReplicas))
    return found


def autoscaler_nodes(cloud: str) -> list[tuple[dict[str, float], int]]:
    config = yaml.safe_load((CLUSTER / "autoscaler" / f"{cloud}.yaml").read_text())
    return [(n["resources"], n["max_workers"]) for n in config["available_node_types"].values()]


def room(nodes: list[tuple[dict[str, float], int]], asked: dict[str, float]) -> int:
    """How many of something fit on all nodes together."""
    asked = {name: amount for name, amount in asked.items() if amount}
    return sum(
        count * int(min(node.get(name, 0) / amount + 1e-9 for name, amount in asked.items()))
        for node, count in nodes
    )


def settings() -> Settings:
    return load_settings("mini", str(PLACEMENT))


def fleets() -> list[Any]:
    gpu = ClusterSpec.model_validate(
        next(r["spec"] for r in built("gpu") if r["kind"] == "RayCluster"), strict=False
    )
    return [autoscaler_nodes("aws"), autoscaler_nodes("gcp"), kuberay_nodes(gpu)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("nodes", fleets(), ids=["aws", "gcp", "kuberay"])
def test_every_worker_that_a_stage_asks_for_fits(nodes: Any, stage: str) -> None:
    placement = getattr(settings().placement, stage)
    worker = {
        "CPU": placement.cpus_per_worker,
        "GPU": placement.gpus_per_worker,
        **placement.worker_resources,
    }
    assert room(nodes, worker) >= placement.workers
    if placement.reader_resources:
        reader = {"CPU": READER_CPUS, **placement.reader_resources}
        decoders = [node for node, _ in nodes if node.get("decode")]
        assert decoders
        assert all(node["decode"] * READER_CPUS == node["CPU"] for node in decoders)
        assert room(nodes, reader) >= placement.workers


# --- the autoscaler -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_autoscaler_configs_pass_rays_own_checks(cloud: str) -> None:
    config = yaml.safe_load((CLUSTER / "autoscaler" / f"{cloud}.yaml").read_text())
    validate_config(prepare_config(config))
    kinds = config["available_node_types"]
    for kind in ("decode", "gpu"):
        spot, on_demand = kinds[f"{kind}_spot"], kinds[kind]
        assert spot["resources"] == on_demand["resources"]
        assert spot["priority"] > on_demand["priority"]
        is_spot = {"InstanceMarketOptions", "scheduling"} & spot["node_config"].keys()
        assert is_spot
        assert "SPOT" in json.dumps(spot["node_config"]).upper()
        assert "SPOT" not in json.dumps(on_demand["node_config"]).upper()
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in c for c in starts if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)


# --- commands and paths -------------------------------------------------------------------------------------


def commands() -> set[str]:
    """Every `python jobs/X.py ...` and `reco-ray X ...` in the folder's files, comments and lists included."""
    found = set()
    for file in (f for f in CLUSTER.rglob("*") if f.suffix in (".yaml", ".md") or f.name == "Dockerfile"):
        text = re.sub(r"\n[ #]+(?=--)", " ", file.read_text())
        found |= {
            m[0].strip() for m in re.findall(r"((python jobs/\w+\.py|reco-ray [a-z]\w*)[^`\n\"]*)", text)
        }
    return found


@pytest.mark.parametrize("command", sorted(commands()))
def test_commands_exist_with_their_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        word.split("=")[0] for word in shlex.split(command.replace("python jobs/", "").replace("...", ""))
    ]
    words = words[1:] if words[0] == "reco-ray" else [words[0].removesuffix(".py"), *words[1:]]
    if command.startswith("python"):
        assert (ROOT / "jobs" / f"{words[0]}.py").is_file()
    name = words[:2] if words[0] == "weights" else words[:1]
    main([*name, "--help"])
    printed = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", printed), f"{name} has no {option}"


def test_settings_files_of_commands_exist_and_load() -> None:
    named = {m for c in commands() for m in re.findall(r"--settings (?:/app/)?(\S+)", c)}
    assert named == {"cluster/placement.yaml"}
    assert settings().placement.embed.workers


# --- the image ----------------------------------------------------------------------------------------------


def dockerfile() -> list[str]:
    return re.sub(r"\\\n\s*", " ", (CLUSTER / "Dockerfile").read_text()).splitlines()


def test_every_copied_path_exists_and_is_not_ignored() -> None:
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert kept[0] == "*"
    copied = [w for line in dockerfile() if line.startswith("COPY") for w in line.split()[1:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in kept, source


def test_the_image_runs_as_a_user_from_a_pinned_base_with_nothing_left_over() -> None:
    lines = [line for line in dockerfile() if line and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert set(words) <= {
        "FROM",
        "ARG",
        "ENV",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "CMD",
    }  # no ADD, no root's SHELL
    assert words.index("USER") == len(words) - 2
    assert lines[words.index("USER")] == "USER 1000:1000"
    assert re.fullmatch(r"FROM python:3\.\d+\.\d+-slim-\w+", lines[0])
    runs = [line for line in lines if line.startswith("RUN")]
    for line in runs:
        assert "sudo" not in line
        if "apt-get install" in line:
            assert "-y --no-install-recommends" in line
            assert (
                line.index("apt-get update")
                < line.index("apt-get install")
                < line.index("rm -rf /var/lib/apt")
            )
        if "pip install" in line:
            assert "pip install -c cluster/constraints.txt" in line
        shell = line.removeprefix("RUN ")
        assert subprocess.run(["sh", "-n", "-c", shell]).returncode == 0, shell
    assert sum("pip install" in line for line in runs) == 2
    extras = re.findall(r"\.\[([^\]]+)\]", " ".join(runs))[0].replace("${FLAVOUR}", "cpu,gpu").split(",")
    assert set(extras) == IMAGE_EXTRAS
    assert not re.search(r"(?i)(password|secret|token|access_key)=", "".join(lines))


def test_pinned_versions_are_what_the_package_asks_for() -> None:
    lines = (CLUSTER / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    assert pins["ray"] == RAY
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(r for e in IMAGE_EXTRAS for r in extras[e])]:
        needed = Requirement(text)
        name = needed.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not pinned"
        assert pins[name] in needed.specifier, name


def test_the_served_application_takes_its_options_and_demands_keys() -> None:
    service = next(r for r in built("serve") if r["kind"] == "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert f"def {name}(args: ServeOptions)" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    options = ServeOptions.model_validate(application.args)
    assert config.http_options.host == "0.0.0.0"  # of the pod; the network policies say who reaches it
    assert options.keys


# --- the buckets --------------------------------------------------------------------------------------------


def test_bucket_policies_grant_nothing_beyond_the_bucket() -> None:
    policy = json.loads((CLUSTER / "policies" / "aws-bucket.json").read_text())
    for statement in (s for s in policy["Statement"] if s["Effect"] == "Allow"):
        assert all("*" not in action for action in statement["Action"])
        assert statement["Resource"].startswith("arn:aws:s3:::RECO-BUCKET")
        if {"s3:PutObject", "s3:DeleteObject"} & set(statement["Action"]):
            assert statement["Resource"].endswith("/artifacts/*")
    bindings = yaml.safe_load((CLUSTER / "policies" / "gcp-bucket.yaml").read_text())["bindings"]
    assert all(b["role"].startswith("roles/storage.") and "admin" not in b["role"].lower() for b in bindings)
    assert all("condition" in b for b in bindings if b["role"] != "roles/storage.legacyBucketReader")
