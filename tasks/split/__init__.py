"""Train, validation and test splits that share no near-duplicates and do not move as data grow, and the proof of it.

A cluster is what must stay together: rows with similar prompts, directly or through others, and rows of one group. Rows
of the previous version keep their split (split.sticky), rows of a source with use_as go where it says, and rows similar
to either join them (assignment.py); the other clusters are drawn (draw.py). Training rows that share a passage with an
evaluation row (contamination.py) and replay rows beyond their share are quarantined, and so is a row that fits in no
split, with its reason and the row it conflicts with. By time, rows that keep their split do not follow the newest
rows.

Of a row that is gone only its row_id and split are kept, since it may be gone for privacy: it comes back to its split,
but a near copy of it that comes later can be drawn into another.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from tunewright.artifacts import ASSIGNMENTS_FILE, Artifact, Rows, Splits, UniqueRows
from tunewright.artifacts.payloads import Decontamination, LeakProof, PlacedRow
from tunewright.artifacts.placement import NONE, OF_GROUP, SPLITS, TEST, TRAIN, VALIDATION, Because
from tunewright.config import Split
from tunewright.errors import DataError
from tunewright.machine.cluster import EngineName
from tunewright.metrics.closed_set import ROWS_OF_A_STRATUM, count_answers, stop_if_open
from tunewright.metrics.labels import MAX_LABELS
from tunewright.reports.pages import counted, located, percent
from tunewright.similarity.engine import engine_of, read_pieces
from tunewright.similarity.folding import fold, fold_messages
from tunewright.similarity.prompts import Shingles, cut, read_boilerplate, shingles
from tunewright.store.stage import stage
from tunewright.tasks.split.assignment import Assignment, Links, fix, settle
from tunewright.tasks.split.columns import (
    RowColumns,
    Strata,
    balance,
    earlier_splits,
    read_columns,
    strata_of,
    undesirable,
    uneven,
    untested,
)
from tunewright.tasks.split.contamination import find_contamination
from tunewright.tasks.split.draw import apart, draw, draw_replay
from tunewright.tasks.split.exchanges import known_from_training
from tunewright.tasks.split.joins import Joined
from tunewright.tasks.split.proof import (
    COUNTED_ALONE,
    decontamination,
    findings,
    in_time,
    in_words,
    largest_cluster,
    quarantine_reasons,
    random_leak_share,
    reasons_by_split,
    rows_by_split,
    split_groups,
    unmet_shares,
    versions,
    visible_difference,
)
from tunewright.tasks.split.writing import Details, write_memory, write_splits

log = logging.getLogger("tunewright")

MANY_ROWS = 200_000  # beyond which looking for pairs far under the threshold would take longer than the split
MANY_CONTAMINATED = 0.2  # of the training rows, from which the removal of those is warned of
MANY_OF_GROUPS = 0.05  # of the rows, the same
OF_GROUP_REASONS = {because.name.lower() for because in OF_GROUP.values()}
MAX_QUARANTINED_SHARE = 0.5  # of the rows: if more fit in no split, the splits are wrong, not the rows
OF_CONTAMINATED = (
    "contaminated rows share a passage with a row of another split, such as the instruction of all rows, which is "
    "ignored only where ten rows have it; add rows, or set split.decontaminate=report"
)
OF_SIMILAR = "a higher split.threshold leaves out fewer, if they are no near-duplicates of each other"
OF_GROUPS = (
    "rows of one group stay in one split: give a validation or test set of your own other groups than the other rows "
    "have, or leave the group out, if it need not be unseen"
)
OF_OTHERS = "if groups, split.threshold or data.sources[].use_as changed, split.sticky=false splits anew"


def _stratify(settings: Split) -> Literal["none", "source", "label"]:
    """Return what to stratify by: nothing by time, since the newest rows are tested as they are."""
    if settings.by != "time":
        return settings.stratify
    if settings.stratify != "none" and "stratify" in settings.model_fields_set:
        log.info("split: split.stratify=%s is not used with split.by=time", settings.stratify)
    return "none"


def _strata(file: Path, columns: RowColumns, stratify: Literal["none", "source", "label"]) -> Strata:
    """The strata of all rows but replay rows, which are given and in none."""
    rows = np.flatnonzero(~columns.replay)
    if stratify == "label":
        answers = compress(_answers(file), ~columns.replay)
        strata = strata_of(answers, lambda answer: " ".join(fold(answer).split()))
        stop_if_open(len(strata.names), len(rows))  # ingest has looked, but check and dedupe may have changed it
    else:
        sources = columns.table["source"].take(rows).to_pylist()
        strata = strata_of(sources if stratify == "source" else ["all rows"] * len(rows))
    of = np.zeros(len(columns), np.int64)
    of[rows] = strata.of
    return replace(strata, of=of)


def _missed_strata(
    file: Path,
    columns: RowColumns,
    strata: Strata,
    split: np.ndarray,
    exact: frozenset[int],
    stratify: Literal["none", "source", "label"],
    settings: Split,
) -> list[str]:
    """Warn of strata without a test row, and of one with far more or fewer rows in a split than its share.

    By time, where there are no strata, labels without a test row are warned of, if the answers are labels.
    """
    if settings.by == "time":
        num_different, num_rows = count_answers(file)
        if not 2 <= num_different <= min(MAX_LABELS, num_rows / ROWS_OF_A_STRATUM):
            return []
        stratify, strata = "label", _strata(file, columns, "label")
        cause = "split.by=time tests only the newest clusters of rows"
    else:
        group = ", have one group" if columns.has_groups else ""
        larger = " or ".join(f"split.{SPLITS[number]}" for number in (TEST, VALIDATION) if number not in exact)
        cause = (
            f"rows that are near-duplicates{group} or keep their earlier split cannot be drawn one by one, and may be "
            f"drawn last where together they are more than a quarter of a split or a third of their {stratify}; a "
            f"larger {larger} has room for more of them"
        )
    if stratify == "none":
        return []
    of_drawn = np.where(columns.given == NONE, split, NONE)
    said = untested(strata, of_drawn, stratify, cause) if TEST not in exact else []
    drawn = [] if settings.by == "time" else [number for number in (TEST, VALIDATION) if number not in exact]
    return said + uneven(strata, of_drawn, stratify, drawn, cause)


def _answers(file: Path) -> Iterator[str]:
    for batch in read_pieces(file, ["messages"]):
        turns = batch["messages"].combine_chunks()
        last = pa.array(np.asarray(turns.offsets)[1:] - np.asarray(turns.offsets)[0] - 1)
        yield from turns.flatten().field("content").take(last).to_pylist()


def prompt_shingles(batch: pa.Table, left_out: np.ndarray) -> Shingles:
    """Return the shingles of the prompts of a batch without the segments `left_out`."""
    return shingles(cut(fold_messages(batch["messages"])), left_out)


def _many_contaminated(found: Decontamination, num_training: int) -> list[str]:
    """Warn where so many training rows are removed that the rest may be too few."""
    share = found.training_rows / max(1, num_training)
    if not found.removed or share < MANY_CONTAMINATED:
        return []
    return [
        f"{found.training_rows:,} of {num_training:,} training rows ({percent(share)}) share a passage with a row of "
        "another split and are quarantined (contaminated); split.decontaminate=report keeps them"
    ]


def _many_of_groups(assignment: Assignment, columns: RowColumns) -> list[str]:
    """Warn where many rows are removed only because a row of their group is in another split."""
    of_group, num_rows = np.isin(assignment.because, [*OF_GROUP.values()]), int((~columns.replay).sum())
    if (share := of_group.sum() / max(1, num_rows)) < MANY_OF_GROUPS:
        return []
    return [
        f"{int(of_group.sum()):,} of {num_rows:,} rows ({percent(share)}) have the same group as a row of another "
        f"split and are quarantined ({_listed(quarantine_reasons(assignment.because[of_group]))}), as {OF_GROUPS}"
    ]


def _stop_if_unusable(assignment: Assignment, columns: RowColumns, settings: Split, gone: pa.Table) -> None:
    own = ~columns.replay
    aside, num_rows = np.flatnonzero((assignment.split == NONE) & own), int(own.sum())
    see = ("quarantine.parquet",) if len(aside) else ()
    if len(aside) > MAX_QUARANTINED_SHARE * num_rows:
        found = quarantine_reasons(assignment.because[aside])
        advice = [OF_CONTAMINATED] if "contaminated" in found else []
        if found.keys() & OF_GROUP_REASONS:
            advice.append(OF_GROUPS)
        if found.keys() - {"contaminated", *OF_GROUP_REASONS}:
            advice.append(OF_SIMILAR)
        if found.keys() - {"contaminated"} and (assignment.because == Because.KEPT).any():
            advice.append(OF_OTHERS)
        raise DataError(
            f"{len(aside)} of {num_rows} rows fit in no split ({_listed(found)}), more than half; the first is "
            f"{columns.place(int(aside[0]))}; {'; '.join(advice)}",
            see=see,
        )
    counts = rows_by_split(assignment.split[own])
    if empty := [name for name, count in counts.items() if not count]:
        why = _why_empty(empty[0], assignment, own, settings, gone)
        raise DataError(f"the {empty[0]} split is empty ({_listed(counts)}): {why}", see=see)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _why_empty(name: str, assignment: Assignment, own: np.ndarray, settings: Split, gone: pa.Table) -> str:
    """Explain an empty split: its rows of the version before are gone, or there are too few clusters."""
    stay, left = int((own & (assignment.because == Because.KEPT)).sum()), gone["side"].to_pylist().count(name)
    if left:
        return (
            f"rows keep the split that they had in the version before (split.sticky=true): {stay:,} are here again, "
            f"and its {left:,} {name} rows are gone; put them back (data.limit may leave them out), add others in a "
            f"source with use_as: {name}, or draw all splits anew with another split.seed or registry.name"
        )
    sizes = np.bincount(assignment.cluster[assignment.cluster != NONE], minlength=1)
    num_rows, aside = int(own.sum()), (assignment.split == NONE) & own
    reasons = quarantine_reasons(assignment.because[aside])
    fit_nowhere = f"; {int(aside.sum())} fit in no split ({_listed(reasons)})" if reasons else ""
    return (
        f"{counted(num_rows, 'row')} {'makes' if num_rows == 1 else 'make'} "
        f"{counted(int(np.count_nonzero(sizes)), 'cluster')}, the largest of {counted(int(sizes.max()), 'row')}, with "
        f"split.test={settings.test:g}, split.validation={settings.validation:g}, "
        f"split.threshold={settings.threshold:g}; each split needs a cluster{fit_nowhere}"
    )


@stage(
    "test={settings.test} validation={settings.validation}",
    libraries=("pyarrow", "numpy", "scipy", "numba"),
    volatile=("proof",),
    unkeyed=("engine",),
)
def split(
    folder: Path,
    rows: UniqueRows,
    held_out: Rows,
    settings: Split,
    earlier: Artifact | None,
    engine: EngineName = "local",
) -> Splits:
    """Write the three splits and the quarantined rows; rows of `earlier`, the version before, keep their split.

    Raises DataError where a split is empty, most rows fit in no split, or rows of two splits are similar;
    ConfigError where the earlier version is not whole.
    """
    file, left_out = rows.path("rows.parquet"), read_boilerplate(rows.folder)
    columns = read_columns(file)
    stratify = _stratify(settings)
    strata = _strata(file, columns, stratify)
    times = columns.times() if settings.by == "time" else None
    before = earlier_splits(columns.row_ids, earlier if settings.sticky else None)
    fixed, because, exact = fix(columns.given, before.split)

    with engine_of(engine) as machine:
        sets = machine.sets(machine.over_batches(file, ["messages"], prompt_shingles, left_out=left_out))
        links = Links(machine.similar_pairs(sets, settings.threshold), columns.group)

        joins_of = partial(Joined, machine, sets, links, settings.threshold)
        clusters, repeats = apart(links.clusters(), columns.replay, joins_of)
        assignment = settle(clusters, fixed, because, exact, joins_of)
        assignment.partners |= repeats
        assignment.quarantine(np.array(sorted(repeats), np.int64), Because.REPEATS_OWN_ROW)
        draw(
            assignment, columns.row_ids, strata, times.ranks if times else None, columns.given == NONE, exact, settings
        )
        returns_to = np.where(assignment.split == NONE, fixed, assignment.split)
        found = find_contamination(file, assignment.split, held_out, left_out)
        num_given = int((assignment.split == TRAIN).sum())
        removes = settings.decontaminate == "remove"
        contaminated = decontamination(assignment.split, found, columns.identity, removed=removes)
        if contaminated.removed:
            assignment.quarantine(np.array(sorted(found.training_rows()), np.int64), Because.CONTAMINATED)
        draw_replay(assignment, columns.row_ids, columns.replay, settings.replay)
        write_splits(folder, file, Details(columns, assignment, found))
        _stop_if_unusable(assignment, columns, settings, before.gone)
        assigned = np.flatnonzero(assignment.split != NONE)
        floor = (0.9 if len(columns) > MANY_ROWS else 0.5) * settings.threshold  # a pair below it is far from a leak
        sets = sets[assigned]
        nearest = machine.nearest_across(sets, assignment.split[assigned], floor).named(assigned)

    most_similar = (nearest.one, nearest.other) if nearest.one >= 0 else ()
    pair = tuple(PlacedRow(split=SPLITS[int(assignment.split[row])], **columns.identity(row)) for row in most_similar)
    if nearest.similarity >= settings.threshold:
        named = " and ".join(f"{located(row.file, row.line)} ({row.split})" for row in pair)
        raise DataError(f"near-duplicates across splits, over split.threshold: {named}")
    num_groups, num_parted = split_groups(columns.group, assignment.split)
    if num_parted:
        raise AssertionError(f"{num_parted} groups are in two splits")
    counts, unwanted = rows_by_split(assignment.split), undesirable(file)
    asked = (assignment.split == TEST) & ~unwanted
    in_test = np.unique(assignment.cluster[asked])
    sizes = Counter(np.bincount(assignment.cluster[assigned]).tolist())  # size -> clusters
    own_split = np.where(columns.replay, NONE, assignment.split)
    time, smallest = in_time(own_split, times) if times else None, visible_difference(max(1, len(in_test)))
    proof = LeakProof(
        threshold=settings.threshold,
        pairs_compared=nearest.num_compared,
        largest_similarity=max(nearest.similarity, floor),
        largest_pair=pair,
        floor=floor,
        num_groups=num_groups,
        random_leak_share=random_leak_share(links, np.flatnonzero(~columns.replay), counts["test"]),
        rows=counts,
        because=reasons_by_split(assignment),
        quarantined=quarantine_reasons(assignment.because[assignment.split == NONE]),
        cluster_sizes={str(size): count for size, count in sorted(sizes.items())},
        test_clusters=len(in_test),
        smallest_visible_difference=smallest,
        balance=balance(strata, own_split, stratify),
        user_provided_splits=tuple(SPLITS[number] for number in sorted(exact)),
        versions=versions(
            assignment.split,
            columns.given,
            np.where(columns.replay, NONE, before.last),
            exact,
            before.listed & ~columns.replay,
            before.num_left,
            earlier.digest if earlier else None,
        ),
        time=time,
        decontamination=contaminated,
        settings=settings.model_dump(),
        findings=findings(contaminated, known_from_training(file, assignment.split), time, int(asked.sum()), smallest),
    )
    for name in proof.user_provided_splits:
        log.info("split: the %s split is user-provided; split.%s is not used", name, name)
    warnings = [
        in_words(code, count, proof, has_groups=columns.has_groups)
        + ("" if code == COUNTED_ALONE else "; proof.json has more")
        for code, count in proof.findings.items()
    ]
    warnings += _many_contaminated(contaminated, num_given)
    warnings += _many_of_groups(assignment, columns)
    warnings += largest_cluster(assignment, settings)
    warnings += unmet_shares(assignment, columns.given == NONE, exact, settings)
    warnings += _missed_strata(file, columns, strata, own_split, exact, stratify, settings)
    for said in warnings:
        log.warning("split: %s", said)
    proof.save(folder)
    write_memory(folder / ASSIGNMENTS_FILE, columns.row_ids, returns_to, assignment.because, before.gone)
    return Splits(
        num_train=counts["train"],
        num_validation=counts["validation"],
        num_test=counts["test"],
        num_clusters=int(assignment.cluster.max()) + 1,
        num_quarantined=sum(proof.quarantined.values()),
        reasons=proof.quarantined,
        findings=proof.findings,
        largest_similarity=proof.largest_similarity,
        random_leak_share=proof.random_leak_share,
        num_replay=int((assignment.because == Because.REPLAY).sum()),
        undesirable=tuple(int((unwanted & (assignment.split == each)).sum()) for each in (TRAIN, VALIDATION, TEST)),
        warned=tuple(warnings),
    )
