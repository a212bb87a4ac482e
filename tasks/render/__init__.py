"""Rows to token ids and labels, made here once and for all: the trainer and the evaluation only read them.

No row is truncated. One that is too long, or in which nothing is trained, stops the run or is quarantined, as
model.on_long says; contract.json says what a server must agree with to ask as the model was trained.
"""

import importlib.metadata
import json
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from tasks.artifacts import IGNORED, QUARANTINE_SCHEMA, TOKEN_SCHEMA, Base, Splits, Tokens
from tasks.caching import cached, digest_of
from tasks.chat import DATE, Chat, Tokenized, tokenize
from tasks.config import Model
from tasks.errors import DataError, retry_transient
from tasks.models import load_tokenizer
from tasks.render.report import measure, preview, write_report

__all__ = ["preview", "render"]

SIDES = ("train", "validation", "test")
BATCH = 1_000  # rows in memory at once


def contract(chat: Chat, base: Base) -> dict[str, Any]:
    """What whoever serves the model must agree with, or it is asked in another way than it was trained."""
    tokenizer, file = chat.tokenizer, base.weights / "tokenizer.json"
    pad = chat.stops[chat.stop_token] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {
        "chat_template": chat.template,
        "chat_template_sha256": sha256(chat.template.encode()).hexdigest(),
        "date_in_template": DATE if "strftime_now" in chat.template else None,
        "generation_prompt": chat.generation_prompt,
        "add_special_tokens": False,  # the template writes them all
        "stop_token": chat.stop_token,
        "stop_token_ids": sorted(chat.stops.values()),
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": pad,
        "pad_is_stop_token": pad in chat.stops.values(),  # so padding is masked by length, never by id
        "special_tokens": dict(sorted((text, tokenizer.convert_tokens_to_ids(text)) for text in chat.control_tokens)),
        "tokenizer_sha256": digest_of(file) if file.is_file() else None,
        "transformers": importlib.metadata.version("transformers"),
    }


def render_side(chat: Chat, rows: Path, target: Path, *, limit: int, last_only: bool) -> list[dict[str, Any]]:
    """Writes a side's rows as TOKEN_SCHEMA and returns those it leaves out, as QUARANTINE_SCHEMA plus `length`."""
    refused: list[dict[str, Any]] = []
    with pq.ParquetWriter(target, TOKEN_SCHEMA) as writer:
        for batch in pq.ParquetFile(rows).iter_batches(BATCH):
            read, kept = batch.to_pylist(), []
            conversations, wheres = [row["messages"] for row in read], [_where(row) for row in read]
            for row, tokens in zip(read, tokenize(chat, conversations, wheres, last_only=last_only), strict=True):
                if reason := _reason(tokens, limit):
                    refused.append(_refused(row, tokens, reason, limit))
                else:
                    named = {"row_id": row["row_id"], "cluster": row["cluster"], "replay": row["side"] == "replay"}
                    kept.append(named | vars(tokens))
            writer.write_table(pa.Table.from_pylist(kept, TOKEN_SCHEMA))
    return refused


def _where(row: dict[str, Any]) -> str:
    return f"{row['file']} line {row['line']}"


def _reason(tokens: Tokenized, limit: int) -> str:
    if all(label == IGNORED for label in tokens.labels):
        return "nothing_trained"
    return "answer_truncated" if len(tokens.input_ids) > limit else ""


def _refused(row: dict[str, Any], tokens: Tokenized, reason: str, limit: int) -> dict[str, Any]:
    length = len(tokens.input_ids)
    too_long = f"{length} tokens are more than {limit}, so the row would lose answer tokens"
    return {
        "file": row["file"],
        "line": row["line"],
        "reason": reason,
        "detail": too_long if reason == "answer_truncated" else "No message is an answer to train on",
        "text": json.dumps(row["messages"], ensure_ascii=False)[:500],
        "length": length,
    }


def _stop_for(refused: list[dict[str, Any]], num_rows: int, bound: str) -> None:
    """Raises for the rows that would lose answers, when they are not to be quarantined."""
    long = [row for row in refused if row["reason"] == "answer_truncated"]
    if long:
        longest = max(long, key=lambda row: row["length"])
        raise DataError(
            f"{len(long)} of {num_rows} rows are longer than {bound} tokens and would lose answer tokens; the longest, "
            f"{_where(longest)}, has {longest['length']}: raise model.max_length, or set model.on_long=quarantine",
            see=("quarantine.parquet",),
        )
    if refused:
        raise DataError(
            f"{len(refused)} of {num_rows} rows have no answer to train on, the first is {_where(refused[0])}: "
            "give them an assistant message, or set model.on_long=quarantine",
            see=("quarantine.parquet",),
        )


def _limit(base: Base, model: Model) -> tuple[int, str]:
    """The most tokens of a row, and what sets it: the setting, or what the base can read at once."""
    config = json.loads((base.weights / "config.json").read_text(encoding="utf-8"))
    context = config.get("max_position_embeddings") or model.max_length
    if context < model.max_length:
        return context, f"the {context} that model.base reads at once, less than model.max_length={model.max_length}"
    return model.max_length, f"model.max_length={model.max_length}"


@task(
    name="render",
    task_run_name="render max_length={model.max_length}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=retry_transient,
)
@cached(libraries=("transformers", "tokenizers", "jinja2", "pyarrow"), volatile=("report",))
def render(folder: Path, splits: Splits, base: Base, model: Model) -> Tokens:
    """Token ids and labels of all sides; of a test row the last answer alone is trained, as evaluation asks for that.

    Raises DataError for a row that breaks a promise, ConfigError for a base that cannot be trained to stop.
    """
    chat = Chat(load_tokenizer(base), base.weights)
    limit, bound = _limit(base, model)
    refused = {
        side: render_side(
            chat,
            splits.path(f"{side}.parquet"),
            folder / f"{side}.parquet",
            limit=limit,
            last_only=side == "test",
        )
        for side in SIDES
    }
    quarantine = [row for side in SIDES for row in refused[side]]
    pq.write_table(pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA), folder / "quarantine.parquet")
    if model.on_long == "error":
        _stop_for(quarantine, splits.num_train + splits.num_validation + splits.num_test, bound)
    sides = {side: measure(folder / f"{side}.parquet") for side in SIDES}
    for side, measured in sides.items():
        if not measured.num_rows:
            raise DataError(
                f"render leaves no row in {side}: of its {len(refused[side])} none has an answer within {bound} tokens",
                see=("quarantine.parquet",),
            )
    reasons = dict(sorted(Counter(row["reason"] for row in quarantine).items()))
    terms = contract(chat, base)
    (folder / "contract.json").write_text(json.dumps(terms, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(folder, chat.tokenizer, sides, terms, reasons, limit)
    return Tokens(
        num_train=sides["train"].num_rows,
        num_validation=sides["validation"].num_rows,
        num_test=sides["test"].num_rows,
        num_quarantined=len(quarantine),
        reasons=reasons,
        num_trained_tokens=int(sides["train"].trained.sum()),
        longest=int(max(measured.whole.max() for measured in sides.values())),
        num_replay=pq.read_table(folder / "train.parquet", columns=["replay"])["replay"].to_pylist().count(True),
    )
