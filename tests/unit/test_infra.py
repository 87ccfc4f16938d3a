"""The images and manifests of infra: valid as far as it can be told offline, and true to the software."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement

from txpert_dist.cli.app import app
from txpert_dist.cli.job_server import STOP_SECONDS
from txpert_dist.cli.pipeline_config import load_pipeline

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="holds Kubernetes' schemas")
jsonschema = pytest.importorskip("jsonschema")
referencing = pytest.importorskip("referencing")

ROOT = Path(__file__).resolve().parents[2]
K8S, DOCKER = ROOT / "infra" / "k8s", ROOT / "infra" / "docker"
KUBERNETES = "1.32"
HADOLINT = shutil.which(
    "hadolint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
)
Document = dict[str, Any]


def documents(folder: str) -> list[Document]:
    files = sorted((K8S / folder).glob("*.yaml"))
    read = [yaml.safe_load_all(file.read_text()) for file in files if file.name != "pipeline.yaml"]
    return [document for part in read for document in part if document["kind"] != "Kustomization"]


def check(document: Document) -> None:
    """As the API server would: Kubernetes' own schemas, and KubeRay's in terms of these."""
    if not document["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    assert (document["apiVersion"], *sorted(document)) == (
        "ray.io/v1",
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    )
    schemas = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    core = json.loads((schemas / f"v{KUBERNETES}.0-local-strict" / "_definitions.json").read_text())
    ours = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
    dialect = referencing.jsonschema.DRAFT202012
    known = [("/api/_definitions.json", core), ("urn:kuberay", ours)]
    registry = referencing.Registry().with_resources(
        [(name, dialect.create_resource(content)) for name, content in known]
    )
    schema = {"$ref": f"urn:kuberay#/$defs/{document['kind']}"}
    jsonschema.Draft202012Validator(schema, registry=registry).validate(document["spec"])


ALL = [
    pytest.param(document, id=f"{folder}-{document['kind']}-{document['metadata']['name']}")
    for folder in ("base", "pipeline")
    for document in documents(folder)
]


def only(kind: str, folder: str = "base") -> Document:
    (found,) = (document for document in documents(folder) if document["kind"] == kind)
    return found


def clusters() -> list[Document]:
    return [only("RayCluster")["spec"], only("RayJob", "pipeline")["spec"]["rayClusterSpec"]]


def pods() -> Iterator[Document]:
    yield only("Deployment")["spec"]["template"]["spec"]
    for cluster in clusters():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]


@pytest.mark.parametrize("document", ALL)
def test_every_manifest_is_accepted(document: Document) -> None:
    check(document)


def at(document: Document, path: str) -> Document:
    for key in path.split("."):
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


POD = "headGroupSpec.template.spec.containers.0"
MISTAKES: list[tuple[str, str, Callable[[Document], object]]] = [
    ("RayCluster", "spec", lambda part: part.update(headGroupSpecs=part.pop("headGroupSpec"))),
    ("RayCluster", "spec.workerGroupSpecs.0", lambda part: part.pop("groupName")),
    ("RayCluster", "spec.workerGroupSpecs.0", lambda part: part.update(replicas="2")),
    ("RayCluster", "spec.headGroupSpec", lambda part: part.update(rayStartParams={"num-cpus": 0})),
    ("RayCluster", "spec.authOptions", lambda part: part.update(mode="tokens")),
    ("RayCluster", f"spec.{POD}", lambda part: part.update(volumeMount=part.pop("volumeMounts"))),
    ("RayCluster", f"spec.{POD}.securityContext", lambda part: part.update(runAsRoot=False)),
    ("RayJob", "spec", lambda part: part.update(backOffLimit=part.pop("backoffLimit"))),
    ("RayJob", "spec", lambda part: part.update(submissionMode="K8sJob")),
    ("RayJob", f"spec.rayClusterSpec.{POD}.envFrom.0", lambda part: part.update(secret="x")),
    ("Deployment", "spec.template.spec.containers.0", lambda part: part.update(arg=[])),
]


@pytest.mark.parametrize(("kind", "path", "spoil"), MISTAKES)
def test_mistakes_are_found(kind: str, path: str, spoil: Callable[[Document], object]) -> None:
    document = deepcopy(only(kind, "pipeline" if kind == "RayJob" else "base"))
    check(document)
    spoil(at(document, path))
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)


def test_the_job_runs_on_a_cluster_like_the_standing_one() -> None:
    standing, own = (deepcopy(cluster) for cluster in clusters())
    pod = own["headGroupSpec"]["template"]["spec"]
    assert pod["volumes"].pop() == {"name": "pipeline", "configMap": {"name": "txpert-pipeline"}}
    assert pod["containers"][0]["volumeMounts"].pop()["mountPath"] == "/etc/txpert"
    assert own == standing


def test_the_head_never_lands_on_a_spot_node_and_workers_may() -> None:
    for cluster in clusters():
        head = cluster["headGroupSpec"]["template"]["spec"]
        (term,) = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        refused = {(rule["key"], rule["operator"], *rule["values"]) for rule in term["matchExpressions"]}
        assert ("karpenter.sh/capacity-type", "NotIn", "spot") in refused
        assert ("cloud.google.com/gke-spot", "NotIn", "true") in refused
        assert "tolerations" not in head
        for group in cluster["workerGroupSpecs"]:
            worker = group["template"]["spec"]
            assert set(worker["affinity"]["nodeAffinity"]) == {
                "preferredDuringSchedulingIgnoredDuringExecution"
            }
            assert worker["tolerations"]


def test_no_pod_is_root_and_no_manifest_holds_a_secret() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not [entry for entry in container.get("env", []) if "TOKEN" in entry["name"]]
    assert "Secret" not in {document["kind"] for document in documents("base") + documents("pipeline")}
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "txpert-ray"}


def test_pods_wait_longer_than_a_job_gets_to_stop() -> None:
    for cluster in clusters():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
            assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) == STOP_SECONDS
            assert pod["terminationGracePeriodSeconds"] > STOP_SECONDS


def test_every_volume_is_the_claim_or_the_pod_s_own() -> None:
    claim = only("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        named = {volume["name"]: volume for volume in pod["volumes"]}
        assert named["data"] == {
            "name": "data",
            "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
        }
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= set(named)


def test_the_job_s_pipeline_loads_and_stays_on_the_shared_volume() -> None:
    pipeline = K8S / "pipeline" / "pipeline.yaml"
    tree = yaml.safe_load(pipeline.read_text())
    assert tree["graphs"].pop("recipe").startswith("/data/")
    paths = [
        *tree["ingest"]["sources"],
        tree["ingest"]["store"],
        tree["graphs"]["out"],
        tree["run"]["output"],
    ]
    assert all(path.startswith("/data/") for path in paths)


def test_the_job_s_entry_point_is_shipped_and_the_pipeline_s(tmp_path: Path) -> None:
    job = only("RayJob", "pipeline")["spec"]
    python, script, config = shlex.split(job["entrypoint"])
    assert python == "python"
    (copied,) = re.findall(r"^COPY (jobs) (\S+)$", (DOCKER / "train.Dockerfile").read_text(), re.MULTILINE)
    assert script.startswith(copied[1])
    assert (ROOT / "jobs" / Path(script).name).exists()
    assert Path(config).parent == Path("/etc/txpert")
    generated = yaml.safe_load((K8S / "pipeline" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generated == [{"name": "txpert-pipeline", "files": [Path(config).name]}]


def test_the_shipped_pipeline_loads() -> None:
    assert load_pipeline(ROOT / "jobs" / "pipeline.yaml").registry.alias == "champion"


def stages(file: Path) -> dict[str, list[str]]:
    """Instructions of each build stage, lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            name = line.split(" AS ")[-1]
            found[name] = [line]
        elif name:
            found[name].append(line)
    return found


IMAGES = sorted(DOCKER.glob("*.Dockerfile"))


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
def test_images_are_pinned_and_not_root(file: Path) -> None:
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", file.read_text(), re.MULTILINE)
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", base)
    built = stages(file)
    for name, instructions in built.items():
        source = instructions[0].split()[1]
        assert source in {"python:${PYTHON}", *built}, name
    finals = {"cpu", "cuda"} if file.name.startswith("train") else {list(built)[-1]}
    for name in finals:
        assert "USER 1000:1000" in built[name]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert all((ROOT / source).exists() for source in sources)
    allowed = (DOCKER / f"{file.name}.dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in sources} == {line for line in allowed if line.startswith("!")}


def needed(name: str, extras: set[str], seen: set[tuple[str, str]]) -> set[str]:
    """Distributions that installing ``name[extras]`` brings, as far as they are installed here."""
    names = set()
    for text in requires(name) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}) | {""})
        if not wanted or (requirement.name.lower(), str(sorted(requirement.extras))) in seen:
            continue
        seen.add((requirement.name.lower(), str(sorted(requirement.extras))))
        names.add(requirement.name.lower())
        try:
            names |= needed(requirement.name, set(requirement.extras), seen)
        except PackageNotFoundError:
            continue
    return names


def test_the_graph_store_s_image_has_no_torch_and_the_other_one_has_ray() -> None:
    def extras(file: str) -> set[str]:
        lines = re.findall(
            r'pip install -c infra/constraints\.txt "\.\[([\w,]+)\]"', (DOCKER / file).read_text()
        )
        (chosen,) = set(lines)
        return set(chosen.split(","))

    store = needed("txpert-dist", extras("graph-store.Dockerfile"), set())
    assert {"pyarrow", "s3fs", "typer", "prometheus-client"} <= store
    assert not store & {"torch", "ray", "deepspeed", "mlflow", "torch-geometric"}
    train = needed("txpert-dist", extras("train.Dockerfile"), set())
    assert {"torch", "ray", "deepspeed", "mlflow", "s3fs"} <= train


def test_versions_are_those_that_are_tested() -> None:
    constraints = dict(
        line.split("==")
        for line in (ROOT / "infra" / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for cluster in clusters():
        assert cluster["rayVersion"] == constraints["ray"]
    assert set(re.findall(r"ARG TORCH=(\S+)", (DOCKER / "train.Dockerfile").read_text())) == {
        constraints["torch"]
    }
    ours = version("txpert-dist")
    for folder in ("base", "pipeline", "gpu"):
        for image in yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())["images"]:
            assert image["newTag"].split("-")[0] == ours


def test_the_graph_store_is_started_with_options_it_has() -> None:
    container = only("Deployment")["spec"]["template"]["spec"]["containers"][0]
    node = typer.main.get_command(app)
    for part in ("graph", "serve"):
        node = node.commands[part]
    context = node.make_context("serve", list(container["args"]))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (context.params["port"], context.params["metrics_port"]) == (ports["flight"], ports["metrics"])
    mounted = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    for given in ("token_file", "read_token_file"):
        assert context.params[given].parent in mounted
    service = only("Service")["spec"]
    assert {port["port"] for port in service["ports"]} == set(ports.values())
    labels = only("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
@pytest.mark.parametrize("folder", ["base", "pipeline", "gpu"])
def test_kustomize_makes_what_is_accepted(folder: str) -> None:
    command = ["kubectl", "kustomize", str(K8S / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    assert {"pipeline": "RayJob"}.get(folder, "RayCluster") in {document["kind"] for document in made}
    for document in made:
        check(document)
    if folder == "gpu":
        (cluster,) = (each for each in made if each["kind"] == "RayCluster")
        (worker,) = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        assert worker["image"].endswith("-cuda")
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not here")
@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    done = subprocess.run([str(HADOLINT), str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
