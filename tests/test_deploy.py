"""deploy/: each file is of its schema, names what exists, and has the versions of constraints.txt; pods end in order.

The schema of a pod is Kubernetes' own (`kubernetes-validate`, strict). That of KubeRay's resources comes in no package:
the fields that ray-operator/apis/ray/v1/*_types.go of ray-project/kuberay has are written down below, with the rules of
its ValidateRayClusterSpec, ValidateRayJobSpec and ValidateRayServiceSpec for what we use.
"""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from kubernetes_validate import ValidationError, validate
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic import ValidationError as Misfit

import flowers
from docs.cli import COMMANDS
from flowers.cli import given
from flowers.config import DoctorOptions, TrainConfig
from serving.http.proxy import CALLBACK
from serving.options import Address, ServeOptions
from tests.test_cluster import pinned

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.30"  # the oldest that we claim
PYTHON = "3.12"
TAG = f"{flowers.__version__}-ray{pinned('ray')}-py{PYTHON.replace('.', '')}"

Pod = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)]
Count = Annotated[int, Field(ge=0)]
Texts = dict[str, str]


class Strict(BaseModel):
    """A type of KubeRay's: other fields are refused, numbers are no texts."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"] = "token"
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(Strict):
    resources: dict[str, Texts] | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    securityContext: dict[str, Any] | None = None
    idleTimeoutSeconds: Count | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None
    env: list[Any] | None = None
    envFrom: list[Any] | None = None
    volumeMounts: list[Any] | None = None
    command: list[str] | None = None
    args: list[str] | None = None


class HeadGroup(Strict):
    template: dict[Literal["metadata", "spec"], Pod]
    headService: dict[str, Any] | None = None
    enableIngress: bool | None = None
    resources: Texts | None = None
    labels: Texts | None = None
    rayStartParams: Texts = {}
    serviceType: str | None = None


class WorkerGroup(Strict):
    groupName: Name
    replicas: Count | None = None
    minReplicas: Count
    maxReplicas: Count
    idleTimeoutSeconds: Count | None = None
    resources: Texts | None = None
    labels: Texts | None = None
    rayStartParams: Texts = {}
    template: dict[Literal["metadata", "spec"], Pod]
    numOfHosts: int | None = None


class RayClusterSpec(Strict):
    upgradeStrategy: dict[Literal["type"], Literal["Recreate", "None"]] | None = None
    authOptions: AuthOptions | None = None
    suspend: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    headServiceAnnotations: Texts | None = None
    enableInTreeAutoscaling: bool | None = None
    headGroupSpec: HeadGroup
    rayVersion: str
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(Strict):
    activeDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    backoffLimit: Count | None = None
    rayClusterSpec: RayClusterSpec
    submitterPodTemplate: dict[Literal["metadata", "spec"], Pod] | None = None
    metadata: Texts | None = None
    submitterConfig: dict[Literal["backoffLimit"], Count] | None = None
    entrypoint: str
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    ttlSecondsAfterFinished: Count | None = None
    shutdownAfterJobFinishes: bool | None = None
    suspend: bool | None = None


class RayServiceSpec(Strict):
    rayClusterDeletionDelaySeconds: Count | None = None
    serveService: dict[str, Any] | None = None
    upgradeStrategy: dict[Literal["type"], Literal["NewCluster", "None"]] | None = None
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec
    excludeHeadPodFromServeSvc: bool | None = None


class Metadata(Strict):
    name: Name
    namespace: str | None = None
    labels: Texts | None = None
    annotations: Texts | None = None


class Resource(Strict):
    apiVersion: Literal["ray.io/v1"]
    metadata: Metadata


class RayCluster(Resource):
    kind: Literal["RayCluster"]
    spec: RayClusterSpec


class RayJob(Resource):
    kind: Literal["RayJob"]
    spec: RayJobSpec


class RayService(Resource):
    kind: Literal["RayService"]
    spec: RayServiceSpec


KUBERAY: TypeAdapter[Any] = TypeAdapter(Annotated[RayCluster | RayJob | RayService, Field(discriminator="kind")])


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


MANIFESTS = {
    f"{path.name} {found['kind']}": found
    for path in sorted(DEPLOY.glob("*.yaml"))
    if path.name != "cluster.yaml"
    for found in documents(path.name)
}
OURS = {key: found for key, found in MANIFESTS.items() if found["apiVersion"] == "ray.io/v1"}


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def templates(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All pod templates of a manifest, by what they are for."""
    spec = manifest["spec"]
    if manifest["apiVersion"] != "ray.io/v1":
        return {"server": spec["template"]} if "template" in spec else {}
    cluster = cluster_of(manifest)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return found | ({"submitter": spec["submitterPodTemplate"]} if "submitterPodTemplate" in spec else {})


PODS = {f"{key} {name}": pod for key, found in MANIFESTS.items() for name, pod in templates(found).items()}


def options_of(command: str, model: Any, *more: Any) -> list[Any]:
    """The options that a command of ours is given in a shell's words."""
    python, flag, module, *words = shlex.split(command)
    assert (python, flag) == ("python", "-m")
    values = COMMANDS[f"python -m {module}"].make_context(module, words).params
    return [kind(**given(values, kind)) for kind in (model, *more)]


@pytest.mark.parametrize("key", MANIFESTS)
def test_a_manifest_is_of_its_schema(key: str) -> None:
    found = MANIFESTS[key]
    if key in OURS:
        KUBERAY.validate_python(found)
    else:
        validate(found, KUBERNETES, strict=True)


@pytest.mark.parametrize("key", [key for key in PODS if not key.startswith("deployment")])
def test_a_pod_is_of_kubernetes_schema(key: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": copy.deepcopy(PODS[key]["spec"])}
    validate(pod, KUBERNETES, strict=True)


def test_what_is_of_no_kubernetes_schema_is_found() -> None:
    found = copy.deepcopy(MANIFESTS["deployment.yaml Deployment"])
    found["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(ValidationError, match="livenesProbe"):
        validate(found, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "workerGroupSpec"), []),
        (("spec", "rayVersion"), 2.6),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "autoscalerOptions", "upscalingMode"), "Fast"),
        (("metadata", "name"), "Flowers"),
        (("kind",), "RayClusters"),
    ],
)
def test_what_is_of_no_kuberay_schema_is_found(path: tuple[str, ...], value: Any) -> None:
    found = copy.deepcopy(OURS["raycluster.yaml RayCluster"])
    inner = found
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(Misfit):
        KUBERAY.validate_python(found)


@pytest.mark.parametrize("key", OURS)
def test_kuberays_own_rules(key: str) -> None:
    cluster = cluster_of(OURS[key])
    groups = cluster["workerGroupSpecs"]
    assert cluster["authOptions"] == {"mode": "token"}  # which asks for rayVersion >= 2.52
    assert len({group["groupName"] for group in groups}) == len(groups)
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in templates(OURS[key]).values():
        assert pod["spec"].get("restartPolicy", "Never") == "Never"  # with the autoscaler's second version
    job = OURS[key]["spec"]
    assert job.get("shutdownAfterJobFinishes", True) or not job.get("ttlSecondsAfterFinished")


@pytest.mark.parametrize("key", OURS)
def test_rays_autoscaler_reads_it(key: str) -> None:
    """The autoscaler's own reading of a RayCluster, which ends in `validate_config`: what each group offers to Ray."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = cluster_of(OURS[key])
    found = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "flowers", "namespace": "default"}, "spec": cluster}
    )
    types = found["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    for group in cluster["workerGroupSpecs"]:
        known = types[group["groupName"]]
        assert (known["min_workers"], known["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert known["resources"]["CPU"] == int(limits["cpu"])
        assert known["resources"].get("GPU", 0) == int(limits.get("nvidia.com/gpu", 0))
    scales = any(group["minReplicas"] < group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert scales == bool(cluster.get("enableInTreeAutoscaling"))


@pytest.mark.parametrize("key", OURS)
def test_ray_start_knows_its_options(key: str) -> None:
    from ray.scripts.scripts import start

    known = {option.lstrip("-") for parameter in start.params for option in parameter.opts}
    cluster = cluster_of(OURS[key])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group["rayStartParams"]) <= known
    assert not {"no-such-option"} <= known


@pytest.mark.parametrize("key", PODS)
def test_images_are_those_that_the_dockerfile_makes(key: str) -> None:
    spec = PODS[key]["spec"]
    for container in spec["containers"]:
        registry, _, tag = container["image"].rpartition(":")
        gpus = "nvidia.com/gpu" in container["resources"]["limits"]
        assert (registry, tag) == ("registry.example.com/flowers", TAG + ("-gpu" if gpus else ""))


def test_versions_are_those_of_constraints() -> None:
    for found in OURS.values():
        assert cluster_of(found)["rayVersion"] == pinned("ray")
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM python:(\d+\.\d+)-slim-\w+$", text, re.MULTILINE) == [PYTHON]
    assert re.findall(r"-t flowers:(\S+)", text) == [TAG, f"{TAG}-gpu"]
    cluster = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"python(3\.\d+)", cluster)) == {PYTHON}
    for line in re.findall(r"pip install [^\\&]*", text):
        assert "-c constraints.txt" in line, line


def test_the_dockerfile_passes_its_linter_and_copies_what_exists() -> None:
    words = [str(Path(sys.executable).parent / "hadolint"), "Dockerfile"]
    done = subprocess.run(words, cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))
    assert [name for name in copied if not (ROOT / name).exists()] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"EXTRAS=(\w+)", text)) == {"gpu"} <= set(extras)
    command = yaml.safe_load(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])
    serve, address = options_of(shlex.join(command), ServeOptions, Address)
    assert (serve.bundle, address.host) == ("/storage/models", "0.0.0.0")


@pytest.mark.parametrize("key", PODS)
def test_nobody_is_root_and_what_is_written_is_a_volume(key: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _round_up_k8s_quantity

    spec = PODS[key]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    head_scales = key.startswith(("raycluster", "rayservice")) and key.endswith("head")
    assert spec.get("automountServiceAccountToken", True) is head_scales  # only the autoscaler asks Kubernetes
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for folder in ("/tmp", "/home/flowers"):
            assert "emptyDir" in volumes[mounts[folder]]
        assert set(mounts.values()) == set(volumes)
        wanted, most = container["resources"]["requests"], container["resources"]["limits"]
        assert wanted.keys() == most.keys() >= {"cpu", "memory"}
        assert all(_round_up_k8s_quantity(wanted[name]) <= _round_up_k8s_quantity(most[name]) for name in most)
        if "/storage" in mounts:
            assert volumes[mounts["/storage"]]["persistentVolumeClaim"]["claimName"] == "flowers"
    assert documents("storage.yaml")[0]["metadata"]["name"] == "flowers"


@pytest.mark.parametrize("key", [key for key in PODS if not key.endswith("submitter")])
def test_probes_and_drains(key: str) -> None:
    spec = PODS[key]["spec"]
    (container,) = spec["containers"]
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    for kind, probe in probes.items():
        asked = probe["httpGet"]
        if asked["path"] == "/api/healthz":
            assert asked["port"] == 52365
        elif asked["path"] == "/-/healthz":
            assert (kind, asked["port"]) == ("readiness", ports["serve"])
        else:
            assert asked == {"path": f"/v2/health/{'ready' if kind == 'readiness' else 'live'}", "port": "http"}
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    # A start may take minutes; whoever is asked too often meanwhile is not ended.
    assert probes["startup"]["failureThreshold"] * probes["startup"]["periodSeconds"] >= 300
    assert probes["liveness"]["failureThreshold"] * probes["liveness"]["periodSeconds"] >= 60
    if "lifecycle" not in container:
        assert key == "rayservice.yaml RayService head"  # it answers nobody
        return
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    numbers = [int(number) for number in re.findall(r"\d+", " ".join(command))]
    assert numbers
    assert spec["terminationGracePeriodSeconds"] > max(numbers)


def test_rays_health_pages_need_no_token() -> None:
    from ray.dashboard import http_server_agent

    assert "/api/healthz" in Path(http_server_agent.__file__).read_text(encoding="utf-8")


def test_the_service_is_the_one_of_serve_yaml() -> None:
    from ray.serve.schema import ServeDeploySchema

    found = OURS["rayservice.yaml RayService"]
    given_there = yaml.safe_load((ROOT / "serving" / "serve.yaml").read_text(encoding="utf-8"))
    here = yaml.safe_load(found["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(here)
    (app,), (known,) = here["applications"], given_there["applications"]
    assert {**here, "applications": 0, "http_options": 0} == {**given_there, "applications": 0, "http_options": 0}
    assert {**app, "args": 0} == {**known, "args": 0}
    assert {**here["http_options"], "host": 0} == {**given_there["http_options"], "host": 0}
    options = ServeOptions(**app["args"])
    assert options.tokens_file  # whoever reaches the pod has to have one
    assert here["http_options"]["request_timeout_s"] > options.timeout_s
    cluster = cluster_of(found)
    (group,) = cluster["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert options.cpus <= cpus < 2 * options.cpus  # one replica a pod
    assert (group["minReplicas"], group["maxReplicas"]) == (options.replicas, options.max_replicas)
    pods = templates(found)
    for pod in pods.values():
        (container,) = pod["spec"]["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert CALLBACK.items() <= environment.items()
        assert {"name": "tokens", "mountPath": "/etc/flowers", "readOnly": True} in container["volumeMounts"]
    # A replica that has to leave is replaced, and then ends what it was asked, before the pod ends.
    drain = pods["serving"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    deadline, slept = map(int, re.findall(r"deadline-remaining-seconds=(\d+).*sleep (\d+)", drain, re.DOTALL)[0])
    assert slept >= deadline >= 2 * options.grace_s


def before_the_end(key: str) -> list[str]:
    """The preStop command of a pod."""
    found = PODS[key]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    return shlex.split(found[-1].partition(";")[0]) if found[0] == "bash" else list(found)


def test_a_drain_is_a_command_of_ray() -> None:
    from ray.scripts.scripts import drain_node, stop

    ray, name, *words = before_the_end("rayservice.yaml RayService serving")
    assert (ray, name) == ("ray", "drain-node")
    assert drain_node.make_context(name, words).params["deadline_remaining_seconds"] == 60
    ray, name, *words = before_the_end("raycluster.yaml RayCluster cpu")
    assert (ray, name) == ("ray", "stop")
    assert stop.make_context(name, words).params["grace_period"] == 30


def test_the_deployment_serves_and_ends_in_time() -> None:
    spec = PODS["deployment.yaml Deployment server"]["spec"]
    (container,) = spec["containers"]
    serve, address = options_of(shlex.join([*container["command"], *container["args"]]), ServeOptions, Address)
    assert address.port == container["ports"][0]["containerPort"]
    assert serve.cpus == int(container["resources"]["limits"]["cpu"])
    assert serve.tokens_file == "/etc/flowers/tokens"
    slept = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > slept + serve.grace_s
    labels = MANIFESTS["deployment.yaml Deployment"]["spec"]["template"]["metadata"]["labels"]
    for key, found in MANIFESTS.items():
        if key.startswith("deployment.yaml") and "selector" in found["spec"]:
            selector = found["spec"]["selector"]
            assert selector.get("matchLabels", selector) == labels
    scaled = MANIFESTS["deployment.yaml HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "flowers"}


def test_commands_in_comments_and_manifests_are_ours() -> None:
    (train,) = options_of(OURS["rayjob.yaml RayJob"]["spec"]["entrypoint"], TrainConfig)
    assert (train.data, train.storage) == ("/storage/photos", "/storage/runs")
    found = []
    for path in sorted(DEPLOY.glob("*.yaml")):
        text = path.read_text(encoding="utf-8").replace("\\\n#", "")
        found += re.findall(r"^#.*?(python -m (?:jobs\.\w+) .*)$", text, re.MULTILINE)
        for name in re.findall(r"(?:-f|ray \w+) (deploy/[\w.]+)", text):
            assert (ROOT / name).is_file(), name
    assert len(found) >= 3
    for command in found:
        model = TrainConfig if "jobs.train" in command else DoctorOptions
        options_of(command, model)


def test_rays_launcher_accepts_machines_of_ones_own() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (given_there,) = documents("cluster.yaml")
    found = prepare_config(copy.deepcopy(given_there))
    validate_config(found)
    (machines,) = found["available_node_types"].values()
    count = len(given_there["provider"]["worker_ips"])
    assert (machines["min_workers"], machines["max_workers"], found["max_workers"]) == (count, count, count)
    setup = "\n".join(found["setup_commands"])
    assert re.findall(r'ray\.__version__ == "([^"]+)"', setup) == [pinned("ray")]
    assert set(re.findall(r"python(3\.\d+)", setup)) == {PYTHON}
    assert "-c constraints.txt" in setup
    mounts = given_there["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert [source for source in mounts.values() if not (ROOT / source).exists()] == []
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert given_there[key] == aws[key]
