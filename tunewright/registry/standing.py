"""What became of a version beside its verdict: whether it waits for a person, and what a person decided.

Kept in tags of the version, `approval` and those that begin with it, and said in the first line of its description,
which is what MLflow's lists show.
"""

import html
from typing import TYPE_CHECKING

from tunewright.artifacts import WAITING
from tunewright.config import Registry
from tunewright.registry.history import now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TAG = "approval"
PASSED = "Passed the gate"  # begins the sentence of a verdict that no longer waits for approval
SENTENCE = "sentence"  # tag: of the verdict
SAID = {"rolled back": "rolled back to"}  # of how a version got the alias; others as they are
FINAL = ("rejected", "rolled back", "withdrawn")  # what a person decided against: no pipeline moves the alias to it


def standing(version: "ModelVersion", registry: Registry) -> str:
    """waiting, approved, rejected, superseded, rolled back or withdrawn; empty where nobody decided or has to."""
    is_of_alias = version.tags.get(f"{TAG}.alias") == registry.alias
    return version.tags.get(TAG, "") if is_of_alias else ""


def set_standing(
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
    if version.run_id:  # a version of another tool may have none
        how = SAID.get(what, what) or state
        client.set_tag(str(version.run_id), "verdict", f"{version.tags.get('verdict', '')}; {how}")


def clear(client: "MlflowClient", version: "ModelVersion") -> None:
    """Ends the wait of a version on which there is another verdict by now."""
    client.delete_model_version_tag(version.name, version.version, TAG)
    client.set_tag(str(version.run_id), "verdict", version.tags.get("verdict", ""))


def head(client: "MlflowClient", registry: Registry, number: str) -> None:
    """Makes the first line of a version's description what became of it."""
    version = client.get_model_version(registry.name, number)
    _, _, rest = str(version.description or "").partition("\n")
    first = html.escape(said(version, registry), quote=False)  # it is Markdown, and has what people wrote
    client.update_model_version(registry.name, number, f"{first}\n{rest}")


def said(version: "ModelVersion", registry: Registry) -> str:
    """What became of it, in a sentence or two; where nobody was asked and nobody decided, the verdict's."""
    tags, sentence = version.tags, verdict_of(version)
    by, why = tags.get(f"{TAG}.by", ""), tags.get(f"{TAG}.reason", "")
    on = f"on {tags.get(f'{TAG}.when', '')[:10]}"
    match standing(version, registry):
        case "waiting":
            waits = sentence.partition(": ")[2].removesuffix(".")
            return f"{WAITING}: {waits}. To approve: {command(version)}"
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
    sentence = version.tags.get(SENTENCE) or str(version.description or "").partition("\n")[0]
    return f"{PASSED}{sentence.removeprefix(WAITING)}" if sentence.startswith(f"{WAITING}: ") else sentence


def command(version: "ModelVersion") -> str:
    """What a person types to say yes."""
    return f'tunewright release approve {version.name} {version.version} --reason "..."'
