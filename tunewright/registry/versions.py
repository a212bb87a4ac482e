"""The registered model: one version a candidate, and which of them carries the alias, which a candidate has to beat."""

import atexit
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tunewright import config
from tunewright.artifacts import Base, Contender, Registered, Splits
from tunewright.artifacts.placement import Because
from tunewright.config import Registry, Split, home
from tunewright.errors import ONLY_READ, ConfigError, TunewrightError
from tunewright.modeling import models
from tunewright.registry import files
from tunewright.registry.alias_state import SENTENCE, WARNINGS
from tunewright.registry.candidate import Candidate, card, drawn
from tunewright.registry.tracking import connected, patient, patient_at_first
from tunewright.store import bases, data_history

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

LoadBase = Callable[[str, str | None, str], Base]  # the stage base of a reference, its revision and its identity
ADVICE = (
    "this favours the champion: for a fair comparison, add test rows that are new to both, in a source with "
    "use_as: test"
)


def _make_model(client: "MlflowClient", name: str) -> None:
    """Makes the registered model where there is none; another run may make it at the same moment."""
    from mlflow.exceptions import MlflowException

    if client.search_registered_models(f"name = '{name}'"):
        return
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def get_or_create(client: "MlflowClient", candidate: Candidate, model: "LoggedModel", run: "Run") -> "ModelVersion":
    """The version of this candidate, with what was found out about it this time."""
    name = candidate.name
    found = client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{candidate.identity}'")
    tags = {
        "verdict": candidate.run.verdict.in_words,
        SENTENCE: candidate.run.verdict.sentence,
        WARNINGS: "\n".join(candidate.run.warnings),
        "gain": candidate.run.verdict.gain,
        files.WEIGHTS: candidate.run.adapter.digest,
        files.FILES: model.tags[files.FILES],
        "challenged": candidate.challenged,
        **candidate.data,
    }
    if found:
        version = found[0]
        if (
            files.model_id(version) != model.model_id
        ):  # somebody deleted that one, and its files are still the version's
            del tags[files.FILES]
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    else:
        _make_model(client, name)
        version = client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run.info.run_id,
            tags | {"fingerprint": candidate.identity},
            await_creation_for=0,
            model_id=model.model_id,
        )
    client.update_model_version(name, version.version, card(candidate, run.info.experiment_id, run.info.run_id))
    shown = json.dumps([{"name": name, "version": str(version.version)}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": shown})  # in the UI's list of models
    return client.get_model_version(name, version.version)  # with its tags as they are now


def lost(registered: Registered) -> str:
    """Describe the missing part of a registered version that somebody deleted, or return "" if it is there."""
    from mlflow.exceptions import MlflowException

    name, number = registered.name, registered.version
    if registered.tracking_uri is None and not config.mlflow_database().is_file():
        return f"{config.mlflow_database()} is gone"
    with connected(Registry(name=name, tracking_uri=registered.tracking_uri)) as client:
        try:
            is_there = client.get_model_version(name, number).run_id == (registered.version_run_id or registered.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            is_there = False
    return "" if is_there else f"{registered.uri} is not in MLflow any more"


def current_version(client: "MlflowClient", registry: Registry) -> "ModelVersion | None":
    """The version that carries the alias."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(registry.name, registry.alias)
    except MlflowException as error:
        # No such model is RESOURCE_DOES_NOT_EXIST, no such alias of a model INVALID_PARAMETER_VALUE.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def require_answer(registry: Registry) -> None:
    """Asks the MLflow that is set what a run asks it later; not the database in the home, which a first run makes.

    Raises TrackingError where it does not answer, ConfigError where it lets nobody in or is not MLflow's.
    """

    def ask() -> None:
        with connected(registry) as client:
            current_version(client, registry)

    if registry.tracking_uri is not None:
        patient_at_first(registry, ask)


@patient
def champion(
    registry: Registry, candidate_digest: str, base: Base, load_base: LoadBase, *, splits_digest: str = ""
) -> Contender | None:
    """Return the contender to beat: the version under the alias, with its weights downloaded; None if there is none.

    If that version is this candidate on these splits, return the version that the candidate was compared with then, so
    that a run of unchanged settings decides the same. Equal weights on other splits, such as more test rows or a source
    under another name, are another version, which the one under the alias is compared with. `base` is this run's, used
    if the champion has the same base, and in a plan if its base is still to be made, so that none is; `load_base` makes
    another one.
    """
    if registry.tracking_uri is None and not config.mlflow_database().exists():
        return None
    with connected(registry) as client:
        version = current_version(client, registry)
        is_of_splits = not (version and splits_digest) or version.tags.get("data.splits") in (None, splits_digest)
        if version and is_of_splits and version.tags.get("model_digest") == candidate_digest:
            before = version.tags.get("challenged")
            version = client.get_model_version(registry.name, before) if before else None
        return None if version is None else _contender(client, version, base, load_base)


@patient
def trained_on_test(registry: Registry, champion: Contender, splits: Splits, settings: Split) -> str:
    """Warns where test rows in `splits`, or near-duplicates of these, were training rows of the champion; or is empty.

    `settings` drew the splits. Where the champion's are not kept any more, it may have been trained on these rows if
    its splits were drawn otherwise.
    """
    with connected(registry) as client:
        tags = client.get_model_version(registry.name, champion.version).tags
    digest, before = tags.get("data.splits"), tags.get("data.drawn")
    if digest == splits.digest:
        return ""
    which = f"the champion, version {champion.version}"
    trained = data_history.trained(registry.name, digest) if digest else None
    if trained is None:
        if before == drawn(settings):  # in one history rows keep their splits
            return ""
        return f"{which}, may have trained on some of these test rows: its own splits are no longer known; {ADVICE}"
    tested = trained & _ids(splits, "test.parquet")
    repeated = trained & _ids(splits, "quarantine.parquet", Because.REPEATS_TEST_ROW)
    of_group = trained & _ids(splits, "quarantine.parquet", Because.GROUP_OF_TEST_ROW)
    found = []
    if tested:
        found.append(f"{len(tested):,} of {splits.num_test:,} test rows are training rows of {which}")
    if repeated:
        one = len(repeated) == 1
        rows, verb = ("row", "is a near-duplicate") if one else ("rows", "are near-duplicates")
        found.append(f"{len(repeated):,} training {rows} of {which}, {verb} of test rows")
    if of_group:
        rows, verb = ("row", "has the group") if len(of_group) == 1 else ("rows", "have groups")
        found.append(f"{len(of_group):,} training {rows} of {which}, {verb} of test rows")
    return f"{'; '.join(found)}; {ADVICE}" if found else ""


def _ids(splits: Splits, file: str, reason: Because | None = None) -> set[str]:
    """The row_ids of a table, or of its rows with this reason."""
    filters = None if reason is None else [("reason", "=", reason.name.lower())]
    return {*pq.read_table(splits.path(file), columns=["row_id"], filters=filters)["row_id"].to_pylist()}


def _contender(client: "MlflowClient", version: "ModelVersion", base: Base, load_base: LoadBase) -> Contender:
    try:
        folder = verified(client, version) / "artifacts"
    except TunewrightError as error:
        raise TunewrightError(f"{error}; or {_withdraw(version)}") from error
    named = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    if base.weights_digest and named["digest"] != base.weights_digest:
        try:  # wherever this machine has it
            weights = str(bases.find(named["reference"], named["revision"], named["digest"]))
            base = load_base(weights, None, models.identity(weights))
        except (OSError, ValueError, ConfigError) as error:
            raise TunewrightError(f"{files.uri_of(version)}: {error}; or {_withdraw(version)}") from error
    return Contender(
        name="champion",
        base=base,
        model=folder / "model",
        model_digest=version.tags["model_digest"],
        version=str(version.version),
    )


def _withdraw(version: "ModelVersion") -> str:
    return f'take the alias off: tunewright release withdraw {version.name} --reason "..."'


def verified(client: "MlflowClient", version: "ModelVersion") -> Path:
    """A verified copy of the version's folder: in this home, or until the process ends where that can only be read.

    Raises TunewrightError.
    """
    try:
        return _kept(client, version)
    except OSError as error:
        if error.errno not in ONLY_READ:
            raise
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return files.fetch(client, version, Path(folder.name))


def _kept(client: "MlflowClient", version: "ModelVersion") -> Path:
    """A copy of the version's folder in this home, fetched once and verified each time. Raises TunewrightError."""
    kept = home() / "champions" / f"{version.name}-{version.version}-{files.expected(version, files.FILES)[:12]}"
    if kept.is_dir():
        with suppress(TunewrightError):
            files.check(version, kept)
            with suppress(OSError):  # a home that is only read
                os.utime(kept)  # tunewright clean goes by when it was used last
            return kept
        shutil.rmtree(kept)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as unfinished:  # renamed when whole
        fetched = files.fetch(client, version, Path(unfinished, "copy"))
        try:
            fetched.rename(kept)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            files.check(version, kept)  # another process was faster
    return kept
