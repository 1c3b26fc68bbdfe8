"""What deploy/ ships against its schemas, and where two of its files must say the same."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.places import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BIN = Path(sys.executable).parent
VERSION = "1.34"
MANIFESTS = sorted(set(KUBERNETES.glob("*.yaml")) - {KUBERNETES / "kustomization.yaml"})


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def found(kind: str, name: str) -> dict[str, Any]:
    everything = [each for path in MANIFESTS for each in documents(path)]
    (one,) = (each for each in everything if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return one


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path: Path) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_a_misspelt_field_is_noticed() -> None:
    document = found("StatefulSet", "replica")
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_kustomizations_name_what_is_there() -> None:
    for folder in (KUBERNETES, DEPLOY / "kubernetes-gpu", DEPLOY / "nginx"):
        (kustomization,) = documents(folder / "kustomization.yaml")
        files = [file for each in kustomization.get("configMapGenerator", []) for file in each["files"]]
        for path in [*kustomization.get("resources", []), *files]:
            assert (folder / path).exists()
    (base,) = documents(KUBERNETES / "kustomization.yaml")
    assert {path.name for path in MANIFESTS} - {"loader.yaml"} == {
        name for name in base["resources"] if name.endswith(".yaml")
    }


def test_compose_knows_every_field() -> None:
    checked = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_dockerfile_is_well_formed() -> None:
    checked = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_image_installs_what_serve_does_but_its_server() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {each for each in extras["serve"] if not each.startswith("nvidia-pytriton")}
    (line,) = (line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if "/source " in line)
    assert set(re.findall(r'"([^"]+<[^"]+)"', line.replace("${ONNXRUNTIME}", "onnxruntime"))) == wanted


def test_nginx_finds_the_replicas_by_their_names() -> None:
    stateful, service = found("StatefulSet", "replica"), found("Service", "replicas")
    (base,) = documents(KUBERNETES / "kustomization.yaml")
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    domain = f"{service['metadata']['name']}.{base['namespace']}.svc.cluster.local"
    servers = re.findall(r"^server (\S+) resolve;$", (KUBERNETES / "replicas.conf").read_text(), re.MULTILINE)
    assert servers == [f"{stateful['metadata']['name']}-{number}.{domain}:8001" for number in range(len(servers))]
    assert len(servers) >= stateful["spec"]["replicas"]

    (compose,) = documents(DEPLOY / "compose.yaml")
    servers = re.findall(r"^server (\S+) resolve;$", (DEPLOY / "nginx" / "replicas.compose.conf").read_text(), re.M)
    assert servers == [f"{compose['name']}-replica-{number}:8001" for number in range(1, len(servers) + 1)]
    assert len(servers) >= compose["services"]["replica"]["scale"]


def test_nothing_runs_as_root_or_writes_where_it_need_not() -> None:
    specs = [found("Pod", "loader")["spec"]]
    specs += [
        found(kind, name)["spec"]["template"]["spec"]
        for kind, name in (("StatefulSet", "replica"), ("Deployment", "proxy"))
    ]
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"]
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    (models,) = (each for each in specs[1]["containers"][0]["volumeMounts"] if each["mountPath"] == "/models")
    assert models["readOnly"]
    (compose,) = documents(DEPLOY / "compose.yaml")
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in compose["services"].values())
    assert compose["services"]["replica"]["volumes"][0].endswith(":/models:ro")
