"""The profile of a set of rows in a few counts, stored with each version, and its drift from another profile."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tunewright.metrics.labels import are_labels

if TYPE_CHECKING:  # a command that plans or deploys has no use for pandas
    import pandas as pd

Profile = dict[str, Any]
Counts = Mapping[str, int]

NAMES = 100  # of sources or languages that are counted by name
REST = "(others)"
UNKNOWN = "(unknown)"
FEW_LABELS, FEW_LABEL_SHARE = 100, 0.1  # so few different answers, of so small a share of the rows, are labels too
LABEL_CHARS = 80
CONFIDENCE = 0.95
MIN_PAIRS = 50  # of different lengths, from which on the share of those whose chosen answer is longer is looked at


class Measure(NamedTuple):
    """One number about a set, None where there is nothing to measure."""

    value: float | None
    noise: float = 0.0  # what two samples of the same rows would exceed once in twenty times
    counts: Counts | None = None  # of the labels, where it is about these


class RowChanges(NamedTuple):
    """The rows compared with those of an earlier version, by their row_id."""

    before: int
    added: int
    removed: int


def profile(frame: "pd.DataFrame", labels: Counts | None, listed: "pd.Series") -> Profile:
    """Counts of `frame`: rows, duplicates, lengths (by doubling lengths), languages, sources, labels and pairs.

    `listed` are the sources as the settings list them, of which a new file of a glob is none.
    """
    return {
        "rows": len(frame),
        "duplicate_rows": int(frame["row_id"].duplicated().sum()),
        "prompt_chars": lengths(frame["prompt_chars"]),
        "answer_chars": lengths(frame["max_answer_chars"]),
        "prompt_languages": counts(frame["prompt_language"]),
        "answer_languages": counts(frame["answer_language"]),
        "sources": counts(frame["source"]),
        "listed_sources": counts(listed),
        "is_one_file": listed.nunique() == 1 and is_named_after_file(frame),
        "labels": None if labels is None else dict(labels),
        "pairs": pairs(frame["chosen_chars"], frame["rejected_chars"]),
    }


def is_named_after_file(frame: "pd.DataFrame") -> bool:
    """Whether the source of each row is the name of its file, as it is where the record names none."""
    pairs = frame[["source", "file"]].astype(object).fillna("").drop_duplicates()
    return all(source == file.rpartition("/")[2] for source, file in pairs.itertuples(index=False))


def lengths(characters: "pd.Series") -> dict[str, Any]:
    """Median, 95th percentile, longest, and the number of lengths from each of 0, 1, 2, 4, 8, ... up to the next."""
    known = characters.dropna().to_numpy(dtype=np.int64)
    if not len(known):
        return {"median": 0, "percentile_95": 0, "longest": 0, "bars": {}}
    bits = np.frexp(known)[1]  # binary digits
    median, high = np.quantile(known, [0.5, 0.95])
    return {
        "median": int(median),
        "percentile_95": int(high),
        "longest": int(known.max()),
        "bars": {
            str(2 ** (bit - 1) if bit else 0): int((bits == bit).sum()) for bit in range(bits.min(), bits.max() + 1)
        },
    }


def pairs(chosen: "pd.Series", rejected: "pd.Series") -> dict[str, int] | None:
    """The preference pairs among some rows, and which answer is longer in how many of them; None without any."""
    longer = {"chosen_longer": int((chosen > rejected).sum()), "rejected_longer": int((chosen < rejected).sum())}
    rows = int((chosen.notna() & rejected.notna()).sum())
    return {"rows": rows} | longer if rows else None


def counts(names: "pd.Series") -> dict[str, int]:
    """The rows of each name, the most frequent first and then by name; what is beyond NAMES in one sum."""
    found = names.astype(object).fillna(UNKNOWN).value_counts()
    ordered = sorted(((str(name), int(number)) for name, number in found.items()), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ordered[NAMES:])
    return dict(ordered[:NAMES]) | ({REST: rest} if rest else {})


def labels_at(answers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Return the first place and the count of each different answer; None where the answers are no labels.

    `answers` are hashes. Answers are labels where evaluate takes them for labels, and where few are given, again and
    again, if only one or though many rows have one of their own.
    """
    _, first, number = np.unique(answers, return_index=True, return_counts=True)
    if 1 <= len(number) <= min(FEW_LABELS, FEW_LABEL_SHARE * len(answers)) or are_labels(number.tolist()):
        return first, number
    return None


def label_name(answer: str) -> str:
    """An answer as it is called in a profile: on one line, at most LABEL_CHARS long."""
    name = re.sub(r"\s+", " ", answer).strip()
    return name if len(name) <= LABEL_CHARS else f"{name[: LABEL_CHARS - 1]}…"


def measures(now: Profile, before: Profile | None, changed: RowChanges | None) -> dict[str, Measure]:
    """The measures that set-level expectations look at (expectations.py); those of drift need an earlier profile."""
    rows, sources, labels = now["rows"], now["sources"], now["labels"]
    return {
        "largest_source_share": Measure(max(sources.values()) / rows if len(sources) > 1 else None),
        "largest_label_share": Measure(max(labels.values()) / rows if labels else None),
        "smallest_label_rows": Measure(min(labels.values()) if labels else None, counts=labels),
        "duplicate_share": Measure(now["duplicate_rows"] / rows if rows else None),
        "changed_share": Measure((changed.added + changed.removed) / changed.before if changed else None),
    } | dict([*_longer(now["pairs"]), *_drift(now, before)])


def _longer(pairs: Counts | None) -> Iterator[tuple[str, Measure]]:
    """The share of the pairs of different lengths in which each of the two answers is the longer one."""
    longer = {name: pairs[name] if pairs else 0 for name in ("chosen_longer", "rejected_longer")}
    differing = sum(longer.values())
    for name, number in longer.items():
        yield f"{name}_share", Measure(number / differing if differing >= MIN_PAIRS else None)


def _drift(now: Profile, before: Profile | None) -> Iterator[tuple[str, Measure]]:
    for measure, field in {
        "prompt_length_psi": "prompt_chars",
        "answer_length_psi": "answer_chars",
        "prompt_language_psi": "prompt_languages",
        "answer_language_psi": "answer_languages",
        "source_psi": "listed_sources",
        "label_psi": "labels",
    }.items():
        found = [(each or {}).get(field) for each in (now, before)]
        of_now, of_before = (each["bars"] if each and "bars" in each else each for each in found)
        is_renamed = field == "listed_sources" and now.get("is_one_file") and len(of_before or ()) == 1
        yield measure, stability(of_before, of_now) if of_before and of_now and not is_renamed else Measure(None)


def stability(before: Counts, now: Counts) -> Measure:
    """The population stability index of two tables of counts, and what it reaches for two samples of the same rows.

    PSI is the sum of (p - q) ln(p / q) over the categories (Siddiqi, Credit Risk Scorecards, 2006); half a row more in
    each keeps it finite. For samples of N and M rows from one population it is about (1/N + 1/M) times a chi-square of
    B - 1 degrees of freedom (Yurdakul, Statistical Properties of Population Stability Index, 2018): its 95% quantile.
    """
    from scipy.stats import chi2

    categories = sorted({*before, *now})
    tables = [np.array([table.get(category, 0) for category in categories]) for table in (before, now)]
    p, q = ((table + 0.5) / (table.sum() + 0.5 * len(categories)) for table in tables)
    psi = float(np.sum((q - p) * np.log(q / p)))
    scale = sum(1 / table.sum() for table in tables)
    noise = float(scale * chi2.ppf(CONFIDENCE, len(categories) - 1)) if len(categories) > 1 else 0.0
    return Measure(psi, noise)


def table_of(found: Mapping[str, Measure]) -> "pd.DataFrame":
    """The measures as a frame of one line."""
    import pandas as pd

    return pd.DataFrame({name: pd.array([measure.value], dtype="Float64") for name, measure in found.items()})


def changed_rows(before: "pd.Series", now: "pd.Series") -> RowChanges:
    """Count the different row_ids of `now` that are not in `before`, and those that are gone."""
    old, new = before.drop_duplicates(), now.drop_duplicates()
    return RowChanges(before=len(old), added=int((~new.isin(old)).sum()), removed=int((~old.isin(new)).sum()))
