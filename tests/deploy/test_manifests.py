"""compose.yaml and the Dockerfile against their schemas, and where two files must say the same. The chart is in
test_chart.py."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from qwen3guard_server.server import EXIT_S
from support.places import ROOT

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


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
    (line,) = (line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if '/source "' in line)
    assert set(re.findall(r'"([^"]+<[^"]+)"', line.replace("${ONNXRUNTIME}", "onnxruntime"))) == wanted


def test_the_image_takes_the_versions_of_the_lock() -> None:
    """By the Dockerfile's own command."""
    (command,) = re.findall(r"sed -nE ('[^']+') \\\n", (DEPLOY / "Dockerfile").read_text())
    lock = ROOT / "requirements" / "serve.lock"
    said = subprocess.run(f"sed -nE {command} {lock}", shell=True, capture_output=True, text=True, check=True).stdout
    versions = dict(line.split("==") for line in said.splitlines())
    assert versions.pop("onnxruntime-gpu") == versions["onnxruntime"]
    assert versions == dict(re.findall(r"^(\S+)==(\S+) ", lock.read_text(), re.MULTILINE))


def test_the_image_is_built_of_every_package() -> None:
    let_in = [
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = set(project["tool"]["setuptools"]["packages"]["find"]["where"])
    wanted |= {file for files in project["tool"]["setuptools"]["data-files"].values() for file in files}
    wanted |= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements/serve.lock",
        "deploy/serve.py",
        "deploy/canary.py",
    }
    assert {each for each in wanted if not any(fnmatch(each, pattern) for pattern in let_in)} == set()


def test_nginx_finds_the_containers_by_their_names() -> None:
    listed = (DEPLOY / "nginx" / "replicas.compose.conf").read_text()
    servers = re.findall(r"^server (\S+) resolve;$", listed, re.MULTILINE)
    assert servers == [f"{compose()['name']}-replica-{number}:8001" for number in range(1, len(servers) + 1)]
    assert len(servers) >= compose()["services"]["replica"]["scale"]


def test_no_container_runs_as_root_or_writes_where_it_need_not() -> None:
    services = compose()["services"]
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in services.values())
    assert services["replica"]["volumes"][0].endswith(":/models:ro")


def test_a_container_is_given_the_time_it_takes_to_end() -> None:
    assert int(compose()["services"]["replica"]["stop_grace_period"].removesuffix("s")) > EXIT_S
