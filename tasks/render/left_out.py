"""Sentences on the rows that render leaves out: how many, of which source and language, and what to do."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import Splits
from tunewright.reports.pages import counted, located, percent

TOO_LONG = "too_many_tokens"
SPLITS = ("train", "validation", "test")
MAINLY = 0.8  # of the rows that are left out: the share of one source or language from which it is named
MORE_OFTEN = 2  # times as often as other rows, at least: a source with most of the rows has most of any


class Bound(NamedTuple):
    """The most tokens of a row: the setting, or what the base reads at once where that is less."""

    max_length: int
    context: int

    @property
    def limit(self) -> int:
        """The smaller of both."""
        return min(self)

    def __str__(self) -> str:
        if self.context < self.max_length:
            return f"the {self.context} tokens of the context of model.base (model.max_length={self.max_length})"
        return f"model.max_length={self.max_length} tokens"

    def cure(self, longest: int, on_long: str) -> str:
        """Return the advice for rows of up to `longest` tokens, where model.on_long is set to `on_long`."""
        is_set = on_long == "quarantine"
        quarantine = "" if is_set else "set model.on_long=quarantine to quarantine such rows"
        if longest <= self.context:
            return f"raise model.max_length to {longest}{' to train on them' if is_set else f', or {quarantine}'}"
        lengthen = "shorten them, or use a base with a longer context"
        if self.max_length < self.context:
            lengthen = (
                f"raise model.max_length up to {self.context}, which is all that the base reads, and shorten those "
                "that are longer still, or use a base with a longer context"
            )
        return lengthen if is_set else f"{quarantine}, {lengthen}"


def lengths_in_words(lengths: Sequence[int]) -> str:
    """The shortest, the longest and the median of some lengths."""
    shortest, longest = min(lengths), max(lengths)
    return f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}, median {round(median(lengths)):,}"


def many_long(
    refused: Mapping[str, list[dict[str, Any]]], splits: Splits, bound: Bound, most: float
) -> tuple[str, ...]:
    """A warning where more than this share of the rows is too long: what is left may be another kind of rows."""
    long = {name: [row for row in rows if row["reason"] == TOO_LONG] for name, rows in refused.items()}
    lengths = [row["length"] for rows in long.values() for row in rows]
    num_rows = splits.num_train + splits.num_validation + splits.num_test
    if len(lengths) <= most * num_rows:
        return ()
    mainly = " and ".join(_mainly(splits, {row["row_id"] for rows in long.values() for row in rows}))
    return (
        f"{len(lengths):,} of {num_rows:,} rows ({percent(len(lengths) / num_rows)}) are longer than {bound} and are "
        f"quarantined, {len(long['test']):,} of the {splits.num_test:,} test rows among them, so that the verdict says "
        f"nothing of such rows{f': they are {mainly}' if mainly else ''}; {bound.cure(max(lengths), 'quarantine')}",
    )


def of_user_provided(refused: Mapping[str, list[dict[str, Any]]], splits: Splits) -> Iterator[str]:
    """Yield a warning for each user-provided split that loses rows: no other rows take their place."""
    for name in ("validation", "test"):
        if not refused[name]:
            continue
        table = pq.read_table(splits.path(f"{name}.parquet"), columns=["row_id", "use_as"])
        provided = table.filter(pc.field("use_as") == name)["row_id"].to_pylist()
        row_ids = set(provided)
        if lost := [row for row in refused[name] if row["row_id"] in row_ids]:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in Counter(row["reason"] for row in lost).most_common())
            yield (
                f"{len(lost):,} of the {len(provided):,} rows of the user-provided {name} set cannot be used with "
                f"model.base and are quarantined: {reasons}; first: {located(lost[0]['file'], lost[0]['line'])}"
            )


def _mainly(splits: Splits, row_ids: Collection[str]) -> Iterator[str]:
    """Name the source and the language that most of these rows have, and other rows have more rarely."""
    from tunewright.data_checks.columns import language_of_prompt
    from tunewright.privacy.excerpts import in_a_line

    every = {"source": Counter[str](), "language": Counter[str]()}
    left_out = {"source": Counter[str](), "language": Counter[str]()}
    for name in SPLITS:
        for batch in pq.ParquetFile(splits.path(f"{name}.parquet")).iter_batches(
            1_000, columns=["row_id", "source", "messages"]
        ):
            for row in batch.to_pylist():
                asked = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
                spoken = language_of_prompt(asked)
                told = {"source": row["source"]} | ({"language": spoken.code} if spoken else {})
                for kind, value in told.items():
                    every[kind][value] += 1
                    left_out[kind][value] += row["row_id"] in row_ids
    for kind, counts in left_out.items():
        value, number = counts.most_common(1)[0] if counts else ("", 0)
        others, rest = counts.total() - number, every[kind].total() - every[kind][value]
        is_more_often = number * rest >= MORE_OFTEN * others * every[kind][value]
        if rest and number >= MAINLY * len(row_ids) and is_more_often:
            rows, those = counted(every[kind][value], "row"), counted(rest, "row")
            yield f"{number:,} of the {rows} of {kind} {in_a_line(value)} (and {others:,} of the {those} of another)"
