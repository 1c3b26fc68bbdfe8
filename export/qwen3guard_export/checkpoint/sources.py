"""Where a checkpoint comes from: a folder, Hugging Face's hub or a mirror of it, or ModelScope.

A hub is asked for JSON, safetensors and templates alone. What went wrong is told apart: a hub that cannot be reached, a
model that it does not have, a revision that the model does not have, and a package that is not installed.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from qwen3guard_contract.errors import CheckpointNotFound
from qwen3guard_contract.extras import how_to_install

MODELSCOPE = "modelscope:"
"""What stands before the id of a model on ModelScope."""
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)


def on_hub(source: str, hub: str) -> str:
    """The source with the prefix of `hub`: modelscope, or huggingface, which has none. A source that has a prefix
    already stays as it is."""
    return f"{MODELSCOPE}{source}" if hub == "modelscope" and not source.startswith(MODELSCOPE) else source


def checkpoint_folder(source: str, revision: str | None = None) -> Path:
    """The folder of `source`: a folder, or an id org/name on Hugging Face, or modelscope:org/name, which is downloaded.

    `revision` is a branch, a tag or a commit of a hub; None is the hub's default. Raises CheckpointNotFound.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointNotFound(f"{source} is a folder, which has no revisions: leave the revision out.")
        return folder
    if folder.exists():
        raise CheckpointNotFound(f"{source} is a file; name the checkpoint's folder.")
    name = source.removeprefix(MODELSCOPE)
    if not _ID.fullmatch(name):
        raise CheckpointNotFound(f"{source} is neither a folder nor a hub id of the form org/name.")
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CheckpointNotFound(f"The revision {revision!r:.100} is not the name of a branch, a tag or a commit.")
    return _from_modelscope(name, revision) if source != name else _from_huggingface(name, revision)


def _from_huggingface(name: str, revision: str | None) -> Path:
    """HF_ENDPOINT names a mirror, and HF_TOKEN who asks; huggingface_hub reads both."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    hub = f"Hugging Face's hub ({constants.ENDPOINT})"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except RevisionNotFoundError as error:
        raise _no_revision(name, hub, revision) from error
    except RepositoryNotFoundError as error:
        raise CheckpointNotFound(
            f"{name} is not a folder, and {hub} has no such model, or none that you may read."
        ) from error
    except (LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:  # the first is raised without a network
        raise _unreachable(name, hub) from error
    except Exception as error:  # errors of the hub, of requests, of httpx or of the disk
        raise _not_given(name, hub, error) from error


def _from_modelscope(name: str, revision: str | None) -> Path:
    """MODELSCOPE_ENDPOINT names another address, which modelscope_hub reads."""
    try:
        import modelscope_hub
    except ImportError:
        raise CheckpointNotFound(
            f"ModelScope needs a package that is not installed: {how_to_install('modelscope')}."
        ) from None
    hub = f"ModelScope ({modelscope_hub.HubConfig().endpoint})"
    try:
        with _quiet("modelscope_hub"):
            return Path(
                modelscope_hub.HubApi().download_repo(name, "model", revision=revision, allow_patterns=PATTERNS)
            )
    except modelscope_hub.NotExistError as error:
        having = f", or none with the revision {revision}" if revision else ""
        raise CheckpointNotFound(f"{hub} has no model {name}{having}, or none that you may read.") from error
    except (ConnectionError, TimeoutError) as error:
        raise _unreachable(name, hub) from error
    except Exception as error:  # errors of the hub, of requests or of the disk
        raise _not_given(name, hub, error) from error


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without the warnings of each of its attempts: the one error says what they said."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _unreachable(name: str, hub: str) -> CheckpointNotFound:
    return CheckpointNotFound(
        f"{name} is not a folder, and {hub} cannot be reached: give a folder, or see to the connection."
    )


def _no_revision(name: str, hub: str, revision: str | None) -> CheckpointNotFound:
    return CheckpointNotFound(f"{name} on {hub} has no revision {revision}.")


def _not_given(name: str, hub: str, error: Exception) -> CheckpointNotFound:
    return CheckpointNotFound(f"{name} is not a folder, and {hub} did not give the model ({type(error).__name__}).")
