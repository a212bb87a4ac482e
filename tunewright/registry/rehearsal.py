"""The proof that a version answers as it was measured: fetched from the registry, verified file by file (files.py),
loaded by this project's own code and asked what the candidate was asked.

What was asked and answered is kept beside the version in MLflow, so that it can be rehearsed again, on any machine that
has its base, whenever the alias is to move to it.
"""

import json
import logging
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from tunewright.errors import TunewrightError
from tunewright.machine import bounded
from tunewright.machine.bounded import Unreadable
from tunewright.modeling import near_ties
from tunewright.modeling.chat import shown, without_reasoning, write_conversations
from tunewright.registry import files
from tunewright.registry.candidate import Candidate
from tunewright.reports.pages import counted
from tunewright.serving import ServedChat, behind
from tunewright.store import bases
from tunewright.store.caching import digest_of
from tunewright.tools.conversation import conversation_of, tools_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("tunewright")

REHEARSED = 8  # rows that a version has to answer as the candidate did
FEW_NEAR_TIES = 1  # of them, beyond which what rules out near ties is named
SAME_ANSWERS = "with evaluation.precision=float32, a served row gets the answer that was measured"
UNCONFIRMED = "not the model that was measured"  # in place of the verdict
ROUNDED = "it was measured in bfloat16: set evaluation.precision=float32 if rounding may be the reason"
FILE = "answers/rehearsal.json"  # among the artifacts of the version's run
IN_MODEL = {"contract": "contract.json", "base": "base.json", "tokenizer": "tokenizer", "model": "model"}


class RehearsalRow(BaseModel, frozen=True):
    """A test row and the candidate's answer to it."""

    row_id: str
    messages: list[dict[str, Any]]  # without the reference
    answer: str
    tools: list[dict[str, Any]] = []
    prompt: str = ""  # as the candidate was asked; empty where an earlier version of Tunewright wrote it


class Rehearsal(BaseModel, frozen=True):
    """The rows that a version must answer again, with the expected answers."""

    rows: tuple[RehearsalRow, ...]
    max_new_tokens: int | None = None  # None where an earlier version of Tunewright wrote it: as the model says


class AnsweredAgain(NamedTuple):
    """The number of rows that a version answered again, and of those that differ from a near tie on."""

    num_rows: int
    num_near_ties: int


def rehearse(client: "MlflowClient", candidate: Candidate, version: "ModelVersion") -> None:
    """Rehearses the version of a candidate, and keeps what it was asked. Raises TunewrightError as `again` does."""
    recorded = pq.read_table(candidate.own_answers.path("answers.parquet"), columns=["row_id", "prompt", "answer"])
    recorded = recorded.slice(0, REHEARSED).to_pylist()
    ids = [row["row_id"] for row in recorded]
    rows = pq.read_table(candidate.run.splits.path("test.parquet"), filters=[("row_id", "in", ids)]).to_pylist()
    dropped = candidate.settings.model.reasoning == "dropped"
    told = {row["row_id"]: conversation_of(row) for row in rows}
    told = {row_id: without_reasoning(each) if dropped else each for row_id, each in told.items()}
    asked = [
        RehearsalRow(
            row_id=row["row_id"],
            messages=[*shown(told[row["row_id"]])[:-1]],
            answer=row["answer"],
            tools=tools_of(told[row["row_id"]]),
            prompt=row["prompt"],
        )
        for row in recorded
    ]
    rehearsal = Rehearsal(rows=tuple(asked), max_new_tokens=candidate.max_new_tokens)
    with files.copied(client, version) as copy:
        if _rehearse(version, copy, rehearsal) > FEW_NEAR_TIES:
            log.warning("  %s", SAME_ANSWERS)
    _keep(client, version, rehearsal)


def again(client: "MlflowClient", version: "ModelVersion") -> AnsweredAgain:
    """Rehearses a version that was registered before, and returns on how many rows, and how many of them differ.

    Raises TunewrightError where a file of it was altered, where it cannot be loaded here, or, with the row and both
    answers, where it says something else.
    """
    rehearsal = kept(client, version)
    log.info("version %s has to answer %d test rows as measured: loading it", version.version, len(rehearsal.rows))
    with files.copied(client, version) as copy:
        try:
            tied = _rehearse(version, copy, rehearsal)
        except (OSError, ValueError) as error:  # such as a base that is not on this machine, or is another one
            raise TunewrightError(
                f"{files.uri_of(version)} cannot be loaded here, so the alias does not move: {error}"
            ) from error
    return AnsweredAgain(len(rehearsal.rows), tied)


def _keep(client: "MlflowClient", version: "ModelVersion", rehearsal: Rehearsal) -> None:
    """Keeps what a version was asked among the artifacts of its run, and the digest of that."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, Path(FILE).name)
        file.write_text(rehearsal.model_dump_json(indent=1), encoding="utf-8")
        client.log_artifact(str(version.run_id), str(file), str(Path(FILE).parent))
        digest = digest_of(file)
    files.remember(version.name, files.model_id(version), files.REHEARSAL, digest)
    client.set_model_version_tag(version.name, version.version, files.REHEARSAL, digest)


def kept(client: "MlflowClient", version: "ModelVersion") -> Rehearsal:
    """Download the rehearsal stored with a version and verify it. Raises TunewrightError."""
    name, digest = files.uri_of(version), files.expected(version, files.REHEARSAL)
    if FILE not in [each.path for each in client.list_artifacts(str(version.run_id), str(Path(FILE).parent))]:
        raise TunewrightError(
            f"{name}: its measured answers are not in MLflow ({FILE} of run {version.run_id}); run its "
            "pipeline again with --refresh register, which stores them"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = files.download(f"runs:/{version.run_id}/{FILE}", Path(folder))
        if digest in ("", digest_of(file)):
            try:
                return Rehearsal.model_validate_json(file.read_bytes())
            except ValidationError:
                pass
    raise TunewrightError(
        f"{name}: {FILE} was altered since the version was registered; it is not loaded: {files.CURE}"
    )


def load(copy: Path) -> ServedChat:
    """The model in a copy of a version's folder, loaded by this project's code and never by what lies in the store."""
    chat, artifacts = ServedChat(), {name: copy / "artifacts" / file for name, file in IN_MODEL.items()}
    try:
        chat.load_context(SimpleNamespace(artifacts=artifacts))
    except (OSError, ValueError):  # it lies where it was tuned, and in the store that machines share
        if bases.fetched(json.loads(artifacts["base"].read_text(encoding="utf-8"))["digest"]) is None:
            raise
        chat.load_context(SimpleNamespace(artifacts=artifacts))
    return chat


def load_here(uri: str, copy: Path, consequence: str = "") -> ServedChat:
    """Loads as `load` does. Raises TunewrightError, with the consequence, where the version or its base cannot be."""
    try:
        return load(copy)
    except (OSError, ValueError) as error:  # such as a base that is not on this machine, or is another one
        raise TunewrightError(f"{uri} cannot be loaded here{consequence}: {error}") from error


def measured_max_new_tokens(copy: Path) -> int:
    """The most tokens of an answer when the version was measured, as the signature of its model has it."""
    from mlflow.models import Model

    (parameter,) = Model.load(str(copy)).signature.params.params
    return int(parameter.default)


def _rehearse(version: "ModelVersion", copy: Path, rehearsal: Rehearsal) -> int:
    """Rehearses what is in the copy, and returns how many answers differ from a near tie on."""
    loaded, consequence = load(copy), "the alias did not move"
    most = measured_max_new_tokens(copy) if rehearsal.max_new_tokens is None else rehearsal.max_new_tokens
    conversations = questions(version, loaded, rehearsal, consequence)
    prompts = loaded.prompts(conversations, [row.tools for row in rehearsal.rows])
    return require_measured(version, loaded, rehearsal, prompts, loaded.answer(prompts, most), consequence)


def questions(
    version: "ModelVersion", loaded: ServedChat, rehearsal: Rehearsal, consequence: str
) -> list[list[dict[str, Any]]]:
    """The conversations of a rehearsal, of which the template is known to meet no limit before this process renders it.

    Raises TunewrightError, which ends with the consequence, where it meets one.
    """
    conversations, special = [row.messages for row in rehearsal.rows], loaded.tokenizer.special_tokens_map
    prompt, whole = loaded.example_prompt, conversations
    if prompt:
        whole = [behind(prompt.before(each), prompt.opening, each) for each in conversations]
    try:
        bounded.call(write_conversations, loaded.template, whole, special, True, [row.tools for row in rehearsal.rows])
    except Unreadable as error:
        raise TunewrightError(
            f"{files.uri_of(version)}: its chat template for {len(conversations)} conversations {error}; {consequence}"
        ) from error
    return conversations


def require_measured(
    version: "ModelVersion",
    loaded: ServedChat,
    rehearsal: Rehearsal,
    prompts: Sequence[Sequence[int]],
    said: Sequence[Sequence[int]],
    consequence: str,
) -> int:
    """Checks the answers that a loaded version gave to the prompts of its rehearsal, both as token ids.

    Returns how many differ from the measured one from a near tie on.

    Raises TunewrightError, which ends with the consequence, where a prompt is not the measured one, or an answer is not
    and differs from it before a near tie.
    """
    _require_prompts(version, loaded, rehearsal, prompts, consequence)
    tied = 0
    others: list[tuple[RehearsalRow, str]] = []
    for row, prompt, ids in zip(rehearsal.rows, prompts, said, strict=True):
        measured, answer = _spelled(loaded.tokenizer, row.answer), loaded.text(ids)
        if _spelled(loaded.tokenizer, answer) == measured:
            continue
        if _is_near_tie(loaded, prompt, ids, measured):
            tied += 1
        else:
            others.append((row, answer))
    if others:
        row, after = others[0]
        raise TunewrightError(
            f"{files.uri_of(version)} is {UNCONFIRMED}: {len(others)} of {len(said)} test rows "
            f"get another answer; row {row.row_id[:12]}: measured {row.answer[:200]!r}, reloaded {after[:200]!r}; "
            f"{f'{ROUNDED}; ' if loaded.precision == 'bfloat16' else ''}{consequence}"
        )
    if tied:
        log.info(
            "  %d of %d test rows are answered as measured; %s from a token on that is nearly as likely as the "
            "measured one, which bfloat16 rounds either way",
            len(said) - tied,
            len(said),
            "1 other differs" if tied == 1 else f"{counted(tied, 'other')} differ",
        )
    return tied


def _require_prompts(
    version: "ModelVersion",
    loaded: ServedChat,
    rehearsal: Rehearsal,
    prompts: Sequence[Sequence[int]],
    consequence: str,
) -> None:
    """Raises TunewrightError, which ends with the consequence, where a prompt is not the one that was measured."""
    for row, ids in zip(rehearsal.rows, prompts, strict=True):
        prompt = loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if row.prompt and prompt != row.prompt:
            same = (before == now for before, now in zip(row.prompt, prompt, strict=False))
            at = sum(1 for _ in takewhile(bool, same))
            raise TunewrightError(
                f"{files.uri_of(version)} is {UNCONFIRMED}: row {row.row_id[:12]} has another prompt "
                f"from character {at + 1} on: measured {row.prompt[at : at + 100]!r}, reloaded "
                f"{prompt[at : at + 100]!r}; {consequence}"
            )


def _is_near_tie(loaded: ServedChat, prompt: Sequence[int], answer: Sequence[int], measured: str) -> bool:
    """Whether rounding explains that an answer is not the measured one: where either was computed in bfloat16."""
    if "bfloat16" not in (loaded.precision, str(loaded.model.dtype).removeprefix("torch.")):
        return False
    stop_ids = loaded.contract["stop_token_ids"]
    return near_ties.explains(
        loaded.model, loaded.tokenizer, prompt, answer, measured, stop_ids=stop_ids, precision="bfloat16"
    )


def _spelled(tokenizer: Any, text: str) -> str:
    """A text as this tokenizer gives it back; some give other spaces than they were given."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
