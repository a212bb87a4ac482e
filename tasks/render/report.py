"""Report the rows' lengths and trained tokens: report.json, report.html, and the preview for the terminal."""

import json
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.text import Text

from tunewright.artifacts import IGNORED, UNDESIRABLE, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.modeling.pairs import answers_of, last_answer
from tunewright.reports.pages import located, percent, template

NUM_EXAMPLES, NUM_UNDESIRABLE = 6, 2
CONTEXT = 16  # tokens that a token's text is told apart by, as it may be half a character or begin with a space
MOST_UNTRAINED = 400  # characters of a piece that the terminal shows
MARKS = ("⟦", "⟧")  # around what is trained, since colours do not reach every eye and every file
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # they could steer a terminal

Segment = tuple[str, bool, bool]  # text, whether it is trained, whether it is a special token


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of each row of a split: before its last answer, trained, in all; its number of answers; its use."""

    prompt: np.ndarray
    trained: np.ndarray
    whole: np.ndarray
    num_answers: np.ndarray
    is_replay: np.ndarray
    shared_prefix: int  # tokens that all rows begin with

    @property
    def num_rows(self) -> int:
        """The rows of this split."""
        return len(self.whole)

    @property
    def longest_answer(self) -> int:
        """Tokens from the beginning of a row's last answer to its end, at most; rows for replay are left out."""
        return int((self.whole - self.prompt)[~self.is_replay].max(initial=0))


def measure(file: Path) -> TokenCounts:
    """Count the tokens of each row of a TOKEN_SCHEMA table, and those of the prefix that all rows share."""
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    prefix: np.ndarray | None = None
    for batch in pq.ParquetFile(file).iter_batches(columns=["input_ids", "labels", "prompt_length", "replay"]):
        ids, labels = batch.column("input_ids"), batch.column("labels")
        starts = ids.offsets.to_numpy()[:-1] - ids.offsets[0].as_py()
        flat_ids, trained = ids.flatten().to_numpy(), labels.flatten().to_numpy() != IGNORED
        begins = trained & ~np.concatenate([[False], trained[:-1]])
        begins[starts] = trained[starts]
        whole = np.diff(ids.offsets.to_numpy())
        prompts, replays = batch.column("prompt_length").to_numpy(), batch.column("replay").to_numpy(False)
        found = (prompts, _sums(trained, starts), whole, _sums(begins, starts), replays)
        for column, values in zip(columns, found, strict=True):
            column.append(values)
        for start, length in zip(starts, whole, strict=True):
            row = flat_ids[start : start + length]
            prefix = row if prefix is None else prefix[: len(row)]
            differs = np.flatnonzero(prefix != row[: len(prefix)])
            prefix = prefix[: differs[0]] if len(differs) else prefix
    joined = [np.concatenate(column) if column else np.zeros(0, int) for column in columns]
    return TokenCounts(*joined, shared_prefix=0 if prefix is None else len(prefix))


def _sums(flags: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(flags.astype(np.int64), starts) if len(starts) else np.zeros(0, int)


def segments(tokenizer: Any, ids: list[int], labels: list[int]) -> list[Segment]:
    """A row's text in pieces that are trained or not; a special token is a piece of its own."""
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    kinds = [(label != IGNORED, id_ in special) for id_, label in zip(ids, labels, strict=True)]
    pieces, text = [], ""
    for end, kind in enumerate(kinds, start=1):
        if end == len(ids) or kinds[end] != kind or kind[1]:
            # A piece is what it adds to the text before it: alone, a token may be half a character or lose its space.
            longer = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append((_printable(longer[len(text) :]), *kind))
            text = longer
    return pieces


def _printable(text: str) -> str:
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def answer_tokens(tokenizer: Any, prompt: list[int], answer: list[int]) -> list[str]:
    """The text of each token of an answer: what it adds to the text of the few tokens before it."""
    ids, texts = [*prompt, *answer], []
    for at in range(len(prompt), len(ids)):
        window = ids[max(0, at - CONTEXT) : at + 1]
        before, longer = (
            tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for some in (window[:-1], window)
        )
        texts.append(_printable(longer[len(before) :]))
    return texts


def choose_examples(counts: TokenCounts) -> dict[int, str]:
    """Rows worth a look, by position, and why: the first, the longest, one with several answers; others without why."""
    chosen = {0: "the first training row"}
    chosen.setdefault(int(counts.whole.argmax()), "the longest training row")
    if (counts.num_answers > 1).any():
        chosen.setdefault(int((counts.num_answers > 1).argmax()), "the first row with several answers")
    for position in np.linspace(0, counts.num_rows - 1, NUM_EXAMPLES, dtype=int).tolist():
        if len(chosen) < NUM_EXAMPLES:
            chosen.setdefault(position, "")
    return chosen


def _examples(
    file: Path, tokenizer: Any, chosen: dict[int, str], split: Path, *, undesirable: bool = False
) -> list[dict[str, Any]]:
    """The chosen rows of a rendered file; `split` is the table that it was rendered from, which says their places.

    Of rows with an `undesirable` answer SFT trains nothing.
    """
    import pyarrow.dataset as ds  # with pandas

    if not chosen:
        return []
    columns = ["row_id", "input_ids", "labels", "prompt_length", "rejected_ids"]
    rows = ds.dataset(file).take(list(chosen), columns=columns).to_pylist()
    named = ds.field("row_id").isin([row["row_id"] for row in rows])
    found = ds.dataset(split).to_table(columns=["row_id", "file", "line"], filter=named).to_pylist()
    places = {row["row_id"]: _printable(located(row["file"], row["line"])) for row in found}
    trained = [[IGNORED] * len(row["labels"]) if undesirable else row["labels"] for row in rows]
    return [
        {
            "place": places[row["row_id"]],
            "why": why,
            "row_id": row["row_id"],
            "num_tokens": len(row["input_ids"]),
            "num_trained": sum(label != IGNORED for label in labels),
            "segments": segments(tokenizer, row["input_ids"], labels),
            "answers": _answers(tokenizer, row, undesirable=undesirable),
        }
        for why, row, labels in zip(chosen.values(), rows, trained, strict=True)
    ]


def _answers(tokenizer: Any, row: dict[str, Any], *, undesirable: bool) -> dict[str, list[str]]:
    """The tokens of an undesirable answer, or of the chosen and the rejected one of a pair; {} of any other row."""
    answers: dict[str, list[int]] = {}
    if undesirable:
        answers = {"undesirable": last_answer(row)}
    elif row["rejected_ids"] is not None:
        answers = dict(zip(("chosen", "rejected"), answers_of(row), strict=True))
    prompt = row["input_ids"][: row["prompt_length"]]
    return {name: answer_tokens(tokenizer, prompt, answer) for name, answer in answers.items()}


def _percentiles(values: np.ndarray) -> dict[str, int]:
    p50, p95 = np.percentile(values, [50, 95], method="higher")
    return {"p50": int(p50), "p95": int(p95), "max": int(values.max())}


def _histogram(values: np.ndarray) -> list[tuple[int, int, int]]:
    """At most 32 bins of one width as (lowest, highest, rows), both ends in the bin; the last takes the longest 1%."""
    low, high = int(values.min()), int(np.percentile(values, 99, method="higher"))
    width = (high - low) // 32 + 1
    counts = np.bincount((np.minimum(values, high) - low) // width)
    bins = [(low + at * width, low + (at + 1) * width - 1, int(count)) for at, count in enumerate(counts)]
    return [*bins[:-1], (bins[-1][0], max(bins[-1][1], int(values.max())), bins[-1][2])]


def write_report(
    folder: Path,
    tokenizer: Any,
    splits: dict[str, TokenCounts],
    contract: Contract,
    reasons: dict[str, int],
    limit: int,
    split: Path,
) -> None:
    """Writes report.json and report.html on the tables in `folder`; `split` is the train split that was rendered."""
    train, undesirable = splits["train"], folder / UNDESIRABLE.format("train")
    num_undesirable = pq.read_metadata(undesirable).num_rows
    first = dict.fromkeys(range(min(num_undesirable, NUM_UNDESIRABLE)), "")
    kinds = ("prompt", "trained", "whole")
    report = {
        "limit": limit,
        "quarantined": reasons,
        "shared_prefix": train.shared_prefix,
        "splits": {
            name: {
                "rows": counts.num_rows,
                "tokens": int(counts.whole.sum()),
                "trained_tokens": int(counts.trained.sum()),
                "trained_share": round(float(counts.trained.sum() / counts.whole.sum()), 6),
                "lengths": {kind: _percentiles(getattr(counts, kind)) for kind in kinds},
            }
            for name, counts in splits.items()
        },
        "histograms": {kind: _histogram(getattr(train, kind)) for kind in kinds},
        "undesirable": num_undesirable,
        "longest_undesirable": int(measure(undesirable).whole.max(initial=0)),
        "examples": _examples(folder / "train.parquet", tokenizer, choose_examples(train), split)
        + _examples(undesirable, tokenizer, first, split, undesirable=True),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = template(Path(__file__).with_name("report.html")).render(report=report, contract=contract, percent=percent)
    (folder / "report.html").write_text(page, encoding="utf-8")


def preview(tokens: Tokens, num_rows: int = 3) -> list[Text]:
    """Up to six training rows for the terminal: what is trained in marks and in green, the rest dim."""
    report = json.loads(tokens.path("report.json").read_text(encoding="utf-8"))
    return [_coloured(example) for example in report["examples"][:num_rows]]


def _coloured(example: dict[str, Any]) -> Text:
    trained = f"the loss covers {example['num_trained']} of {example['num_tokens']} tokens"
    why = f" ({example['why']})" if example["why"] else ""
    head = f"{example['place']}{why}: {trained}, between {' and '.join(MARKS)}"
    text = Text(head + "\n", style="bold", end="\n")
    for is_trained, pieces in groupby(example["segments"], key=lambda segment: bool(segment[1])):
        text.append(MARKS[0] if is_trained else "")
        for piece, _, special in pieces:
            style = ("bold green reverse" if special else "green") if is_trained else ("cyan dim" if special else "dim")
            if not is_trained and len(piece) > MOST_UNTRAINED:
                ends = piece[: MOST_UNTRAINED // 2], piece[-MOST_UNTRAINED // 2 :]
                piece = f"[... {len(piece) - MOST_UNTRAINED:,} characters ...]".join(ends)
            text.append(piece, style=f"not bold {style}" if "bold" not in style else style)
        text.append(MARKS[-1] if is_trained else "")
    for name, tokens in example["answers"].items():
        if name != "chosen":
            text.append(f"\n{name} answer ({len(tokens)} tokens): ", style="not bold dim")
            text.append("".join(tokens), style="not bold red")
    return text
