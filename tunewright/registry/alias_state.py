"""The state of a version beside its verdict: waiting for a person, or the person's decision.

Stored in tags of the version, `approval` and those that begin with it, and in the first line of its description,
which MLflow's lists show.
"""

import html
import re
import shlex
from typing import TYPE_CHECKING

from tunewright.artifacts import WAITING, shown
from tunewright.config import Registry
from tunewright.registry.alias_history import now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

TAG = "approval"
PASSED = "Passed the gate"  # begins the sentence of a verdict that no longer waits for approval
SENTENCE = "sentence"  # tag: of the verdict
WARNINGS = "warnings"  # tag: of the verdict, a line each
KEPT = "Kept: "  # began the sentence of a candidate that is not promoted
TO_APPROVE = " To approve: "  # before the command, at the end of a sentence
ASKS = "Promotion needs approval: "  # begins a line of the model card of a version that may wait
ASKING = re.compile(rf"^{ASKS}.*\n\n?", re.MULTILINE)
NOTE = "mlflow.note.content"  # tag of a run: what MLflow shows as its description
RUN_OF_PAGE = re.compile(r"^\[The verdict page\]\(#/experiments/[^/\s]+/runs/(\w+)/", re.MULTILINE)
SAID = {"rolled back": "rolled back to"}  # of how a version got the alias; others as they are
FINAL = ("rejected", "rolled back", "withdrawn")  # what a person decided against: no pipeline moves the alias to it


def deciding_run(version: "ModelVersion") -> str:
    """The run with the latest verdict on a version, whose page its description names; empty where no run made it."""
    named = RUN_OF_PAGE.search(str(version.description or ""))
    return named[1] if named else str(version.run_id or "")


def alias_state(version: "ModelVersion", registry: Registry) -> str:
    """waiting, approved, rejected, superseded, rolled back or withdrawn; empty where nobody decided or has to."""
    is_of_alias = version.tags.get(f"{TAG}.alias") == registry.alias
    return version.tags.get(TAG, "") if is_of_alias else ""


def set_alias_state(
    client: "MlflowClient",
    registry: Registry,
    version: "ModelVersion",
    state: str,
    by: str = "",
    why: str = "",
    what: str = "",
) -> None:
    """Notes how a version stands; `by` superseded is the version that took its place.

    `what` is how it was approved, if not by an approval. MLflow's run says it in its verdict, for lists of runs.
    """
    values = {"alias": registry.alias, "by": by, "when": now(), "reason": why, "what": what}
    for key, value in values.items():
        client.set_model_version_tag(registry.name, version.version, f"{TAG}.{key}", value)
    client.set_model_version_tag(registry.name, version.version, TAG, state)  # last: it stands when all of it does
    head(client, registry, str(version.version))
    note_in_run(client, version, SAID.get(what, what) or state)


def note_in_run(client: "MlflowClient", version: "ModelVersion", how: str) -> None:
    """Says in the verdict of its runs, for lists of runs, how a version stands; `how` is empty where it does not.

    They are the run that made the version and the one that decided last, each with a verdict of its own.
    """
    decided = deciding_run(version)
    for run_id in dict.fromkeys((decided, str(version.run_id or ""))):
        if run := _active(client, run_id):
            own = version.tags if run_id == decided else run.data.tags
            verdict = filter(None, (shown(own.get("verdict", "")).partition("; ")[0], how))
            client.set_tag(run_id, "verdict", "; ".join(verdict))


def _active(client: "MlflowClient", run_id: str) -> "Run | None":
    """A run that nobody deleted; None as well where a version of another tool has none."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run and run.info.lifecycle_stage == "active" else None


def clear(client: "MlflowClient", version: "ModelVersion") -> None:
    """Ends the wait of a version on which there is another verdict by now."""
    client.delete_model_version_tag(version.name, version.version, TAG)
    note_in_run(client, version, "")


def head(client: "MlflowClient", registry: Registry, number: str) -> None:
    """Makes the first line of a version's description what became of it, and of the notes of its runs.

    Once it no longer waits, nothing of it says so: neither they nor the tag with its verdict.
    """
    version = client.get_model_version(registry.name, number)
    description = str(version.description or "")
    first = html.escape(said(version, registry), quote=False)  # it is Markdown, and has what people wrote
    waits = alias_state(version, registry) == "waiting"
    client.update_model_version(registry.name, number, _anew(description, first, waits=waits))
    if not waits and version.tags.get(SENTENCE, "").startswith(f"{WAITING}: "):
        client.set_model_version_tag(registry.name, number, SENTENCE, verdict_of(version))
    before, _, _ = description.partition("\n")
    for run_id in {*filter(None, [version.run_id]), *RUN_OF_PAGE.findall(description)}:
        _note_anew(client, run_id, before, first, waits=waits)


def _note_anew(client: "MlflowClient", run_id: str, before: str, first: str, *, waits: bool) -> None:
    """Does so with the note of a run that says of the version what its description said, or that it waits."""
    if (run := _active(client, run_id)) is None:
        return
    note = run.data.tags.get(NOTE, "")
    is_of_it = note.startswith(f"{WAITING}: ") or note.partition("\n")[0] == before
    if note and is_of_it:
        client.set_tag(run_id, NOTE, _anew(note, first, waits=waits))


def _anew(text: str, first: str, *, waits: bool) -> str:
    """A model card with another first line, and without the line that asks for approval unless the version waits."""
    _, _, rest = text.partition("\n")
    return f"{first}\n{rest if waits else ASKING.sub('', rest)}"


def said(version: "ModelVersion", registry: Registry) -> str:
    """Describe the state in a sentence or two; the verdict's sentence if no approval was requested or made."""
    tags, sentence = version.tags, verdict_of(version)
    by, why = tags.get(f"{TAG}.by", ""), tags.get(f"{TAG}.reason", "")
    on = f"on {tags.get(f'{TAG}.when', '')[:10]}"
    match alias_state(version, registry):
        case "waiting":
            waits = sentence.partition(": ")[2].removesuffix(".")
            return f"{WAITING}: {waits}.{TO_APPROVE}{command('approve', registry, str(version.version))}"
        case "approved":
            what = tags.get(f"{TAG}.what") or "approved"
            how = SAID.get(what, what)
            return f"{sentence} {how[0].upper()}{how[1:]} by {by} {on}: {why}"
        case "rejected" | "rolled back" | "withdrawn" as state:
            return f"{state.capitalize()} by {by} {on}: {why}. Verdict: {sentence}"
        case "superseded":
            return f"Superseded by version {by} {on}, before a person decided. Verdict: {sentence}"
        case _:
            return sentence


def verdict_of(version: "ModelVersion") -> str:
    """The sentence of its verdict, which does not say that it waits: what became of it is said besides."""
    return lasting(version.tags.get(SENTENCE) or str(version.description or "").partition("\n")[0])


def lasting(sentence: str) -> str:
    """The sentence of a verdict as it holds whatever a person decides."""
    return f"{PASSED}{sentence.removeprefix(WAITING)}" if sentence.startswith(f"{WAITING}: ") else named_anew(sentence)


def named_anew(sentence: str) -> str:
    """Return the sentence of a verdict with its present name: an earlier Tunewright wrote "Kept: ..."."""
    return f"Not promoted: {sentence.removeprefix(KEPT)}" if sentence.startswith(KEPT) else sentence


def command(decision: str, registry: Registry, *version: str) -> str:
    """Return the command of a decision, with all that it requires."""
    return f'tunewright release {decision} {named(registry, *version)} --reason "..."'


def named(registry: Registry, *words: str) -> str:
    """The name and further words of a command, with what else it has to say of where the model is."""
    alias = ["--alias", registry.alias] if registry.alias != Registry().alias else []
    where = ["--tracking-uri", registry.tracking_uri] if registry.tracking_uri else []
    return shlex.join([registry.name, *words, *alias, *where])
