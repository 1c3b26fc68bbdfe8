"""`make release`: builds the sdist and the wheel of HEAD, checks them, and says what is left to do. It uploads nothing.

The wheel is installed twice: over this environment's packages, where it exports and serves the demo guard, and alone
with its own requirements from the package index, where the client asks that server. `--python` adds interpreters to
the second; it is a command, so that one in a chroot that shares /tmp can be tried too.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
ROOMS = ("contract", "client", "export", "runtime", "server", "apps")
PLACEHOLDER = "git.example"


def run(*command: object, cwd: Path = ROOT) -> str:
    """The output of `command`. Ends the release, with all that it said, where it fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"release: {shlex.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(holds: object, wrong: str) -> None:
    if not holds:
        sys.exit(f"release: {wrong}")


def committed(folder: Path) -> Path:
    """HEAD's files: what is not committed, and what earlier builds left, is not in a release."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def check_contents(wheel: Path, source: Path) -> None:
    """Everything of the rooms is in the wheel, and nothing else."""
    packages = {each.parent for room in ROOMS for each in (source / room).glob("*/py.typed")}
    check(len(packages) == len(ROOMS), f"a room of {ROOMS} has no py.typed")
    files = [file for package in packages for file in package.rglob("*") if file.is_file()]
    expected = {str(file.relative_to(file.parents[-len(source.parts) - 1])) for file in files}
    models = {str(file.relative_to(source)) for file in (source / "model_repository").glob("*/1/model.py")}
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    skeleton = {name for name in names if ".data/data/share/qwen3guard-triton/" in name}
    placed = {name.split("share/qwen3guard-triton/")[1] for name in skeleton}
    check(models and placed == models, f"the model repository's skeleton differs: {sorted(placed ^ models)}")
    differ = sorted((names - skeleton) ^ expected)
    check(not differ, f"in the wheel or in the source alone: {', '.join(differ)}")
    print(f"  {len(expected)} files of {len(packages)} packages, {len(models)} models, nothing else")


def over_these_packages(wheel: Path, folder: Path) -> Path:
    """The `bin` of a fresh environment that has the wheel, and sees this one's packages behind it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "behind.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", wheel)
    return folder / "bin"


@contextmanager
def served(binaries: Path, folder: Path) -> Iterator[str]:
    """The address of the demo guards, exported and served by the wheel's own command."""
    for guard in ("gen", "stream"):
        run(binaries / "qwen3guard", "export", ROOT / "demo" / guard, "--output", folder, cwd=folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binaries / "qwen3guard", "serve", "--model-repository", folder, "--grpc-port", str(port)]
    log = folder / "serve.log"
    with (
        log.open("w") as said,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=said, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            check(server.stdout.readline().startswith("ready on"), f"the wheel does not serve:\n{log.read_text()}")
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def try_alone(wheel: Path, python: Sequence[str], folder: Path, version: str, url: str) -> None:
    """The wheel with its own requirements, in a fresh environment of `python`: a command that ends with it."""
    *before, _ = python
    binaries = folder / "bin"
    run(*python, "-m", "venv", folder)
    run(*before, binaries / "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    said = run(*before, binaries / "qwen3guard", "--version").strip()
    check(said == f"qwen3guard {version}", f"{said!r} is not the version {version}")
    (folder / "client_alone.py").write_text((ROOT / "release" / "client_alone.py").read_text())
    print(run(*before, binaries / "python", "-W", "error", folder / "client_alone.py", url), end="")
    refused = [*before, str(binaries / "qwen3guard"), "serve"]
    sentence = subprocess.run(refused, capture_output=True, text=True, check=False).stderr
    check(re.match(r"qwen3guard: The embedded server (is not installed|needs Python)", sentence), sentence)
    completion = [*before, str(binaries / "qwen3guard"), "completion", "bash"]
    sentence = subprocess.run(completion, capture_output=True, text=True, check=False).stderr
    run(*before, *shlex.split(sentence.partition("is not installed: ")[2].strip().removesuffix(".")), "--quiet")
    run(*completion)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist")
    arguments.add_argument("--python", action="append", default=[], metavar="COMMAND", help="try the client there too")
    given = arguments.parse_args()
    output = given.output.resolve()
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    with tempfile.TemporaryDirectory(prefix="qwen3guard_release_") as place:
        folder = Path(place)
        source = committed(folder / "source")
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        version = project["version"]
        print(f"{project['name']} {version} at {run('git', 'rev-parse', '--short', 'HEAD').strip()}: building ...")
        run(sys.executable, "-m", "build", "--outdir", output, source)
        stem = output / f"{project['name'].replace('-', '_')}-{version}"
        wheel, sdist = Path(f"{stem}-py3-none-any.whl"), Path(f"{stem}.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        run(sys.executable, "-m", "check_wheel_contents", wheel)
        check_contents(wheel, source)
        print("the wheel over this environment's packages: exporting and serving the demo guards ...")
        binaries = over_these_packages(wheel, folder / "over")
        (folder / "repository").mkdir()
        with served(binaries, folder / "repository") as url:
            print("the wheel alone, with its requirements from the index:")
            for number, python in enumerate([sys.executable, *given.python]):
                try_alone(wheel, shlex.split(python), folder / f"alone{number}", version, url)
    print(f"\n{wheel}\n{sdist}\n")
    for step in (*left_to_do(project, version), f"twine upload {wheel} {sdist}"):
        print(f"* {step}")


def left_to_do(project: dict[str, object], version: str) -> Iterator[str]:
    if run("git", "status", "--porcelain", "--untracked-files=no"):
        yield "commit what is changed: this is HEAD without it"
    if PLACEHOLDER in str(project["urls"]):
        yield f"put the repository's address in the place of {PLACEHOLDER} ([project.urls] in pyproject.toml)"
    if not re.search(
        rf"^## \[?{re.escape(version)}\]? - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    ):
        yield f"date the section of {version} in CHANGELOG.md"
    yield f"git tag v{version} && git push origin v{version}"


if __name__ == "__main__":
    main()
