"""The content of proof.json: no similar rows across splits, the leak rate of a random split, and splits that are small.

And counts: the rows of each split and why, those quarantined, those from the version before.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from tunewright.artifacts.payloads import Decontamination, EarlierRows, LeakProof, PlacedRow, TimeSpans
from tunewright.artifacts.placement import NONE, SPLITS, TEST, TRAIN, VALIDATION, Because
from tunewright.config import Split
from tunewright.reports.pages import number
from tunewright.tasks.split.assignment import Assignment, Links
from tunewright.tasks.split.columns import Times
from tunewright.tasks.split.contamination import Contamination

RANDOM_SPLITS = 20
LEAST_VISIBLE = 0.12  # a test split that cannot detect this difference decides nothing
DISCORDANT = 0.2  # of the rows of a usual comparison, answered rightly by one model alone
IMAGINED = 1.5  # losses that the artificial row of Gaffke's bound comes to there, fitted to the power of the decision
CONFIDENCE, POWER = 1.960, 0.842  # normal quantiles of one-sided 97.5% and of 80%
MISSED = 0.05  # of the rows: a share that is missed by less is as near as clusters allow
SHORT = 0.75  # of the rows that a share asks for, under which clusters alone are worth a warning
A_FEW = 2  # rows that a share is missed by in any set
TOO_SMALL = "too_small"
NEWER = "train_newer_than_test"
WHY_NEWER = "; a cluster ({what}) is as old as its oldest row"
OF_GROUPS = "; to test on the newest rows of all groups, map no field to group"
COUNTED_ALONE = "test_in_training_chats"  # the finding that the proof has no more about
MOST_ROWS = 100  # that are named of a finding
FINDINGS = {  # which rows are counted under a code, and what is with them
    "contaminated": ("training row", "share{s} a passage with an evaluation row"),
    "validation_in_held_out": ("validation row", "share{s} a passage with a record of data.held_out"),
    "test_in_held_out": ("test row", "share{s} a passage with a record of data.held_out"),
    COUNTED_ALONE: ("test row", "end{s} with a question and answer that a training chat has, too"),
    NEWER: ("training row", "{are} newer than the oldest test row"),
    TOO_SMALL: (
        "test row",
        "{independent}can show only a difference of more than about {difference} between two models, in a score from 0 "
        "to 1 (estimated before training): for a clearer verdict, {advice}",
    ),
}


def random_leak_share(links: Links, rows: np.ndarray, num_test: int) -> float:
    """The share of test rows with a similar row, or one of their group, outside test, were the `rows` drawn at random.

    The mean of 20 draws.
    """
    pairs, num_rows = links.pairs, len(links.group)
    shares = []
    for seed in range(RANDOM_SPLITS):
        tested = rows[np.random.default_rng(seed).permutation(len(rows))[:num_test]]
        outside = np.zeros(num_rows, np.bool_)
        outside[rows] = True
        outside[tested] = False
        leaks = np.zeros(num_rows, np.bool_)
        leaks[pairs.first[outside]] = True
        neighbours = leaks.copy()
        neighbours[pairs.left[leaks[pairs.right]]] = True
        neighbours[pairs.right[leaks[pairs.left]]] = True
        parted = np.isin(links.group[tested], links.group[outside & (links.group >= 0)])
        shares.append((neighbours[pairs.first[tested]] | parted).mean())
    return round(float(np.mean(shares)), 6)


def split_groups(group: np.ndarray, split: np.ndarray) -> tuple[int, int]:
    """How many groups have rows in a split, and how many of them in two; `group` and `split` are (rows,), -1: none."""
    grouped = (group >= 0) & (split != NONE)
    parts = np.unique(group[grouped] * len(SPLITS) + split[grouped])  # each group in each of its splits
    num_groups = len(np.unique(parts // len(SPLITS)))
    return num_groups, len(parts) - num_groups


def visible_difference(num_clusters: int) -> float:
    """The smallest difference in exact match that so many independent test rows show with 80% power.

    Of a paired comparison in which 20% of the rows are answered rightly by one model alone, at one-sided 97.5%, which
    is that of the first use of a test set (store/test_set_uses.py), and with what Gaffke's bound imagines
    (Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43).
    """
    return min(1.0, round((CONFIDENCE + POWER) * math.sqrt(DISCORDANT / num_clusters) + IMAGINED / num_clusters, 4))


def in_words(code: str, count: int, proof: LeakProof, *, has_groups: bool = False) -> str:
    """Describe a finding in a sentence, with its cause where the proof or the settings have it."""
    clusters = proof.test_clusters
    independent = ""
    if clusters != count:
        rows = "1 independent row" if clusters == 1 else f"{clusters:,} independent rows"
        independent = f"count as {rows} (near-duplicates and rows of one group count once) and "
    difference = number(proof.smallest_visible_difference)
    is_provided = SPLITS[TEST] in proof.user_provided_splits
    advice = "add rows to the source with use_as: test" if is_provided else "use more data or a larger split.test"
    said = counted_in_words(code, count, difference=difference, independent=independent, advice=advice)
    if code != NEWER:
        return said
    together = "near-duplicates and rows of one group" if has_groups else "near-duplicates"
    kept = ", and rows keep the split that they had" if proof.versions.earlier else ""
    return said + WHY_NEWER.format(what=together) + kept + OF_GROUPS * has_groups


def counted_in_words(code: str, count: int, **more: str) -> str:
    """Describe a finding in a sentence, without the proof."""
    row, what = FINDINGS[code]
    is_one = count == 1
    verb = what.format(s="s" if is_one else "", are="is" if is_one else "are", **more)
    return f"{count:,} {row}{'' if is_one else 's'} {verb}"


def findings(
    contaminated: Decontamination,
    in_training_chats: int,
    time: TimeSpans | None,
    num_test: int,
    smallest_difference: float,
) -> dict[str, int]:
    """Return the findings to review, by code: the number of rows concerned."""
    found = {
        "contaminated": 0 if contaminated.removed else contaminated.training_rows,
        "validation_in_held_out": contaminated.in_held_out.get("validation", 0),
        "test_in_held_out": contaminated.in_held_out.get("test", 0),
        COUNTED_ALONE: in_training_chats,
        NEWER: time.train_rows_newer_than_a_test_row if time else 0,
        TOO_SMALL: num_test if smallest_difference > LEAST_VISIBLE else 0,
    }
    return {code: count for code, count in found.items() if count}


def unmet_shares(assignment: Assignment, free: np.ndarray, exact: frozenset[int], settings: Split) -> list[str]:
    """Explain the shares that are missed, because of rows of the version before or of large clusters.

    `free` are the rows that no source assigns to a split.
    """
    free = free & (assignment.split != NONE)
    num_rows = int(free.sum())
    fixed = free & np.isin(assignment.because, [Because.KEPT, Because.INHERITED])
    said = []
    for at in (TEST, VALIDATION):
        share, least = getattr(settings, SPLITS[at]), int((fixed & (assignment.split == at)).sum())
        count = int((free & (assignment.split == at)).sum())
        missing = share * num_rows - count
        missed = (
            f"split.{SPLITS[at]} {share:g} is not reached: {count:,} of {num_rows:,} rows "
            f"({100 * count / max(num_rows, 1):.0f} %), as"
        )
        if at not in exact and fixed.any() and max(least - share * num_rows, missing) > MISSED * num_rows:
            said.append(f"{missed} old rows keep their split; split.sticky=false draws all anew")
        elif at not in exact and not fixed.any() and missing > max(A_FEW, (1 - SHORT) * share * num_rows):
            said.append(f"{missed} near-duplicates and rows of one group stay in one split")
    return said


def largest_cluster(assignment: Assignment, settings: Split) -> list[str]:
    """Warn of a cluster that holds more than half of the rows."""
    assigned = np.flatnonzero(assignment.cluster != NONE)
    sizes = np.bincount(assignment.cluster[assigned], minlength=1)
    if 2 * sizes.max() <= len(assigned) or sizes.max() == 1:
        return []
    name = SPLITS[int(assignment.split[assignment.cluster == sizes.argmax()][0])]
    return [
        f"one cluster has {sizes.max():,} of {len(assigned):,} rows ({100 * sizes.max() / len(assigned):.0f} %), all "
        f"in the {name} split: rows of one group, or near-duplicates directly or through others (split.threshold "
        f"{settings.threshold:g}; a higher one makes smaller clusters)"
    ]


def rows_by_split(splits: np.ndarray) -> dict[str, int]:
    """Return the number of rows by split."""
    return {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)}


def reasons_by_split(assignment: Assignment) -> dict[str, dict[str, int]]:
    """Return the number of rows by split and by why they are in it."""
    counts = Counter(zip(assignment.split.tolist(), assignment.because.tolist(), strict=True))
    return {
        name: {reason.name.lower(): counts[number, reason] for reason in Because if (number, reason) in counts}
        for number, name in enumerate(SPLITS)
    }


def quarantine_reasons(because: np.ndarray) -> dict[str, int]:
    """Return the number of quarantined rows by reason."""
    counts = Counter(Because(reason).name.lower() for reason in because.tolist())
    return dict(sorted(counts.items()))


def versions(
    split: np.ndarray,
    given: np.ndarray,
    before: np.ndarray,
    exact: frozenset[int],
    listed: np.ndarray,
    num_gone: int,
    earlier: str | None,
) -> EarlierRows:
    """Count the outcomes of the rows, but replay rows, that the last version had in a split (`before`, or NONE).

    `listed` says of each row whether the last version knew it, in a split or not.
    """
    known = before != NONE
    return EarlierRows(
        earlier=earlier,
        known_rows=int(known.sum()),
        stayed=int((known & (split == before)).sum()),
        given_elsewhere=int((known & (given != NONE) & (given != before)).sum()),
        freed_by_a_given_split=int((known & (given == NONE) & np.isin(before, list(exact))).sum()),
        gone=num_gone,
        quarantined=int((known & (split == NONE)).sum()),
        returned=int((listed & ~known).sum()),
        returned_in_split=int((listed & ~known & (split != NONE)).sum()),
    )


def in_time(split: np.ndarray, times: Times) -> TimeSpans:
    """Return the time span of each split, and how many training rows are newer than the oldest test row."""
    ranks, values = times
    spans: dict[str, tuple[str, ...]] = {}
    for position, name in enumerate(SPLITS):
        known = ranks[(split == position) & (ranks >= 0)]
        spans[name] = tuple(values[int(end)].as_py() for end in (known.min(), known.max())) if len(known) else ()
    tested = ranks[(split == TEST) & (ranks >= 0)]
    newer = int(((split == TRAIN) & (ranks > tested.min())).sum()) if len(tested) else 0
    return TimeSpans(spans=spans, train_rows_newer_than_a_test_row=newer)


def decontamination(
    split: np.ndarray, found: Contamination, identity: Callable[[int], dict[str, Any]], *, removed: bool
) -> Decontamination:
    """Count training rows by the evaluation texts that they share a passage with, and evaluation rows in records.

    `identity` is the row id, file and line of a row.
    """
    texts = [text for text, _ in found.training_rows().values()]
    partners = Counter(SPLITS[split[text]] if text < found.num_rows else "held_out" for text in texts)
    repeating = found.evaluation.rows.tolist()
    in_records = Counter(SPLITS[split[row]] for row in repeating)
    return Decontamination(
        training_rows=len(texts),
        removed=removed,
        by_partner=dict(sorted(partners.items())),
        held_out_records=found.held_out.num_rows,
        in_held_out=dict(sorted(in_records.items())),
        rows_in_held_out=tuple(PlacedRow(split=SPLITS[split[row]], **identity(row)) for row in repeating[:MOST_ROWS]),
    )
