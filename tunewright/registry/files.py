"""The files of a version: copied from MLflow's artifact store, which is not trusted, and verified before they are used.

digests.json among them has the sha256 of every other one. Its own sha256 is a tag of the version, `digest.files`. So
are that of what the rehearsal asks, `digest.rehearsal`, and that of the evidence, `digest.evidence`. The machine that
registered the version keeps them in its home too, in `registered/<name>.jsonl`, so that a changed tag is found there. A
version that was registered before there were such tags has `model_digest` alone, which covers its weights and its
contract.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from tunewright import config, serving
from tunewright.errors import StoreError, TunewrightError
from tunewright.store import disk
from tunewright.store.cache_key import hash_of
from tunewright.store.caching import digest_of
from tunewright.store.histories import held, up_to_date

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("tunewright")

Covered = Literal["digest.files", "digest.rehearsal", "digest.evidence"]
FILES: Covered = "digest.files"  # tag: the sha256 of digests.json
REHEARSAL: Covered = "digest.rehearsal"  # tag: that of what the rehearsal asks
EVIDENCE: Covered = "digest.evidence"  # tag: that of evidence.json
WEIGHTS = "model_digest"  # tag: the content digest of train's artifact
CURE = (
    "restore it from a backup of MLflow's artifacts, or run the pipeline that made it with --refresh register, which "
    "uploads it again"
)


class Registration(BaseModel, frozen=True):
    """One line of registered/<name>.jsonl: a digest of a version that this machine registered."""

    model_id: str  # of the version's logged model in MLflow
    covers: Covered
    sha256: str


def seal(folder: Path) -> str:
    """Writes digests.json to the folder of a model that is to be uploaded, and returns its sha256."""
    digests = {name: digest_of(folder / name) for name in sorted(serving.files_in(folder))}
    (folder / serving.DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    return digest_of(folder / serving.DIGESTS)


def remember(name: str, model_id: str, covers: Covered, sha256: str) -> None:
    """Keeps a digest of a version that this machine registers in its home."""
    with held(_file(name)):
        disk.append(_file(name), Registration(model_id=model_id, covers=covers, sha256=sha256))


@contextlib.contextmanager
def copied(client: "MlflowClient", version: "ModelVersion") -> Iterator[Path]:
    """A private, verified copy of a version's folder, which goes afterwards. Raises as `fetch` does."""
    with tempfile.TemporaryDirectory() as folder:
        yield fetch(client, version, Path(folder))


def fetch(client: "MlflowClient", version: "ModelVersion", folder: Path) -> Path:
    """Copies a version's folder into `folder`, and returns where it lies.

    Raises TunewrightError, naming the file, where one is missing, was altered or was added.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path

    uri = client.get_model_version_download_uri(version.name, version.version)
    if uri.startswith(("/", "file:")) and not Path(local_file_uri_to_path(uri)).is_dir():
        raise TunewrightError(
            f"{uri_of(version)}: {uri} is not on this machine; where another machine keeps it, set "
            "registry.tracking_uri to the address of MLflow there (tunewright up), otherwise restore it"
        )
    copy = download(uri, folder)
    check(version, copy)
    return copy


def download(uri: str, folder: Path) -> Path:
    """Copies what MLflow's artifact store has at an address into `folder`, and returns where it lies."""
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def check(version: "ModelVersion", copy: Path) -> None:
    """Raises TunewrightError where a copy of a version's folder is not what was registered."""
    digest = expected(version, FILES)
    if not digest:
        return _check_weights(version, copy)
    if fault := altered(copy, digest):
        raise TunewrightError(f"{uri_of(version)}: {fault}; it is not loaded: {CURE}")
    return None


def altered(copy: Path, digest: str) -> str:
    """The file that is missing, altered or added in a copy whose digests.json has this sha256; empty if none is."""
    listed = copy / serving.DIGESTS
    if not listed.is_file():
        return f"{serving.DIGESTS} is missing"
    if digest_of(listed) != digest:
        return f"{serving.DIGESTS} was altered since the version was registered"
    return serving.altered(copy)


def is_whole(model: "LoggedModel", name: str) -> bool:
    """Whether MLflow has the files of a logged model as they were uploaded."""
    from mlflow.exceptions import MlflowException

    digest = (model.tags or {}).get(FILES, "")
    if not digest or _kept(name, model.model_id, FILES) not in ("", digest):
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            return not altered(download(str(model.artifact_location), Path(folder)), digest)
        except (MlflowException, OSError) as error:
            log.warning("%s is incomplete and is uploaded again: %s", model.artifact_location, error)
            return False


def expected(version: "ModelVersion", covers: Covered) -> str:
    """The digest that a version was registered with; empty for one that was registered before digests were kept.

    Raises TunewrightError where this machine registered it with another one than its tag says.
    """
    tag, kept = version.tags.get(covers, ""), _kept(version.name, model_id(version), covers)
    if kept and kept != tag:
        raise TunewrightError(
            f"{uri_of(version)}: its tag {covers} in MLflow is {tag[:12] or 'gone'}, and this machine registered it "
            f"with {kept[:12]}; it is not loaded: run its pipeline with --refresh register, or, if another "
            f"machine registered it anew, delete the line with {model_id(version)} from {_file(version.name)}"
        )
    return tag


def model_id(version: "ModelVersion") -> str:
    """The id of a version's logged model."""
    return str(version.source).removeprefix("models:/")


def uri_of(version: "ModelVersion") -> str:
    """Such as models:/triage/3."""
    return f"models:/{version.name}/{version.version}"


def _check_weights(version: "ModelVersion", copy: Path) -> None:
    artifacts, digest = copy / "artifacts", version.tags.get(WEIGHTS)
    if digest is None:
        raise TunewrightError(
            f"{uri_of(version)} has neither the tag {FILES} nor {WEIGHTS}: no pipeline of Tunewright registered it, or "
            "somebody removed them; it is not loaded: register it with its pipeline"
        )
    names = (name for name in serving.files_in(artifacts) if name.startswith(("model/", "contract.json")))
    if hash_of({name: digest_of(artifacts / name) for name in names}) != digest:
        raise TunewrightError(
            f"{uri_of(version)}: artifacts/model or artifacts/contract.json was altered since the version was "
            f"registered; it is not loaded: {CURE}"
        )
    log.warning(
        "%s has no tag %s, as it was registered before digests of all files were kept: only its weights and contract "
        "were verified; run its pipeline with --refresh register, which keeps them",
        uri_of(version),
        FILES,
    )


def _kept(name: str, model_id: str, covers: Covered) -> str:
    """The digest that a machine of this store registered a version with last; empty where none did.

    Raises StoreError where the store cannot be reached and this home has no digest of the version.
    """
    try:
        return _last(up_to_date(_file(name)), model_id, covers)
    except StoreError:
        if own := _last(_file(name), model_id, covers):
            return own
        raise


def _last(file: Path, model_id: str, covers: Covered) -> str:
    known = disk.read(file, Registration, "is no digest of a version; delete the line")
    found = [each.sha256 for each in known if (each.model_id, each.covers) == (model_id, covers)]
    return found[-1] if found else ""


def _file(name: str) -> Path:
    return config.home() / "registered" / f"{name}.jsonl"
