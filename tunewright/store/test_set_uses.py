"""Count how often the test rows were used, and spend alpha on each use: of many candidates one wins by chance.

Each candidate that is decided on is one test-set use; the same candidate on the same rows counts once. Its comparisons
are tested at a share of alpha, 1 - gate.confidence: use k spends 1 / (k (k + 1)), and what the use before it spent as
well if that promoted, since a test that rejected has nothing to lose (the online fallback procedure: Tian & Ramdas
2021, Statistical Methods in Medical Research 30:976; of fixed tests, Wiens 2003, Pharmaceutical Statistics 2:211). All
shares together are at most 1, so that of all candidates that test rows judge, the chance that any is promoted without
being better is at most alpha, however their scores depend on each other. It does not hold for a candidate that was
made by looking at the answers to the test rows.

`<home>/test_set_uses/<name>.jsonl` has a line where a use begins, since two runs may decide at the same time, and one
with its verdict. A use of another test set counts by the share of rows that both have, so a test set that grows from
version to version is not taken for a new one. Of each test set the smallest row_ids are kept: these are hashes, so the
smallest are a fair sample, and the share in common is known from them (bottom-k sketches, Cohen & Kaplan 2007), exactly
up to 1,000 rows.

The number of a use and its share never change afterwards, so a run of unchanged settings decides as before.

With gate.rotate other test rows are drawn after gate.max_test_set_uses uses. The seeds follow each other from
split.seed on, each with splits and a history of its own (data_versions.py), so a number that was set by hand gives the
same rows. The seed is known before the first stage, from the ledger and from the recipe of the candidate: a recipe that
was decided on keeps its seed. So a run of unchanged settings draws as before and runs nothing anew.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from prefect.runtime import flow_run
from pydantic import BaseModel

from tunewright import config
from tunewright.artifacts import Answers, Artifact, Verdict, shown
from tunewright.config import Gate, Settings
from tunewright.store import disk
from tunewright.store.disk import now
from tunewright.store.histories import held, up_to_date

SAMPLE = 1_000  # row_ids of a test set
DIGITS = 12  # of a row_id: of a million rows, no two begin alike in all likelihood


class TestSetUse(BaseModel, frozen=True):
    """One line: a candidate begins to be decided on, on some test rows, or was decided on."""

    candidate: str  # digest of its weights
    test: str  # digest of all its rows
    decided: str  # UTC
    run: str  # the name of the flow run; empty for a call outside a flow
    verdict: str = ""  # empty where it begins
    alpha_share: float | None = None  # of 1 - gate.confidence; None in a line from before alpha was spent: all of it
    seed: int | None = None  # split.seed that drew the rows; None in a line that was written before it was kept
    recipe: str = ""  # the hash of what the candidate was made of
    sample: tuple[str, ...] | None = None  # of the test rows; None where an earlier line of the same rows has it


@dataclass(frozen=True)
class TestRows:
    """The test rows of a candidate."""

    test: str
    sample: tuple[str, ...]
    number: int

    @classmethod
    def of(cls, answers: Answers) -> "TestRows":
        """Those that were answered."""
        row_ids = pq.read_table(answers.path("answers.parquet"), columns=["row_id"])["row_id"].to_pylist()
        rows = sorted({*row_ids})
        digest = hashlib.sha256(" ".join(rows).encode()).hexdigest()[:20]
        return cls(digest, tuple(row[:DIGITS] for row in rows[:SAMPLE]), len(rows))

    def share(self, others: tuple[str, ...]) -> float:
        """The share of them that is among those that `others` is a sample of, as far as both samples go."""
        ends = [sample[-1] for sample in (self.sample, others) if len(sample) == SAMPLE]
        within = [row for row in self.sample if not ends or row <= min(ends)]
        return len({*within} & {*others}) / len(within) if within else 0.0


def begin(name: str, candidate: Artifact, answers: Answers, *, seed: int, recipe: str) -> float:
    """Enter this test-set use before it is decided, unless it was entered before; return its share of alpha, 0 to 1.

    `seed` drew these rows, and `recipe` is the hash of what the candidate was made of.
    """
    rows, file = TestRows.of(answers), file_of(name)
    with held(file):
        uses = read(file)
        share = _alpha_share(uses, candidate.digest, rows)
        if not any(_is(use, candidate.digest, rows) for use in uses):
            is_known = any(use.test == rows.test for use in uses)
            use = TestSetUse(
                candidate=candidate.digest,
                test=rows.test,
                decided=now(),
                run=flow_run.name or "",
                alpha_share=share,
                seed=seed,
                recipe=recipe,
                sample=None if is_known else rows.sample,
            )
            disk.append(file, use)
    return share


def end(name: str, verdict: Verdict, candidate: Artifact, answers: Answers, gate: Gate, *, seed: int) -> Verdict:
    """Enter what the use led to, unless it is known, and return the verdict with the number of its use.

    The verdict gets a warning if the number is over gate.max_test_set_uses, and if another seed drew some of these rows
    before.
    """
    rows, file = TestRows.of(answers), file_of(name)
    with held(file):
        uses = read(file)
        last = next(use for use in reversed(uses) if _is(use, candidate.digest, rows))
        if last.verdict != verdict.in_words:
            use = last.model_copy(update={"decided": now(), "verdict": verdict.in_words, "sample": None})
            disk.append(file, use)
    return _said(verdict, uses, candidate.digest, rows, gate, seed)


def share_of(number: int, carried: float) -> float:
    """The share of alpha that use `number`, from 1, may spend: its own, and what the use before it `carried` over."""
    return min(1.0, 1 / (number * (number + 1)) + carried)


def alpha_share(name: str, candidate: Artifact, answers: Answers) -> float:
    """Return what `begin` would, and enter nothing."""
    return _alpha_share(read(up_to_date(file_of(name))), candidate.digest, TestRows.of(answers))


def look_up(name: str, verdict: Verdict, candidate: Artifact, answers: Answers, gate: Gate, *, seed: int) -> Verdict:
    """Return what `end` would, and enter nothing."""
    return _said(verdict, read(up_to_date(file_of(name))), candidate.digest, TestRows.of(answers), gate, seed)


def next_number(uses: Sequence[TestSetUse], seed: int) -> int:
    """Return the number of a new candidate's use of the rows that `seed` drew last; 1 if it drew none."""
    last = next((use for use in reversed(uses) if use.seed == seed), None)
    if last is None:
        return 1
    sample = _samples(uses).get(last.test, ())
    return _number(uses, "", TestRows(last.test, sample, len(sample)))


def file_of(name: str) -> Path:
    """The ledger of a pipeline. Moves the ledgers of a home of an earlier release to their new folder."""
    home = config.home()
    folder, before = home / "test_set_uses", home / "looks"
    if before.is_dir() and not folder.exists():
        with contextlib.suppress(OSError):  # another process was faster, or this home can only be read
            before.rename(folder)
    return (folder if folder.exists() or not before.is_dir() else before) / f"{name}.jsonl"


def _is(use: TestSetUse, candidate: str, rows: TestRows) -> bool:
    return (use.candidate, use.test) == (candidate, rows.test)


def _samples(uses: Sequence[TestSetUse]) -> dict[str, tuple[str, ...]]:
    return {use.test: use.sample for use in uses if use.sample is not None}


def _number(uses: Sequence[TestSetUse], candidate: str, rows: TestRows) -> int:
    """One more than the uses before, each counted by the share of these rows that it had.

    The same candidate on other rows is one too: who adds rows until it wins would let any model win.
    """
    samples = _samples(uses)
    seen = {(use.candidate, use.test): samples.get(use.test, ()) for use in _before(uses, candidate, rows)}
    return 1 + round(sum(map(rows.share, seen.values())))


def _alpha_share(uses: Sequence[TestSetUse], candidate: str, rows: TestRows) -> float:
    """The share of alpha, 0 to 1, that this use may spend; if it was entered, that it spent."""
    entered = next((use for use in uses if _is(use, candidate, rows)), None)
    if entered:
        return 1.0 if entered.alpha_share is None else entered.alpha_share
    return share_of(_number(uses, candidate, rows), _carried(uses, rows))


def _carried(uses: Sequence[TestSetUse], rows: TestRows) -> float:
    """The share that the last use of these rows, or of some of them, spent, if it promoted; 0 if it did not."""
    samples = _samples(uses)
    last_lines = {(use.candidate, use.test): use for use in uses}  # in the order in which the uses began
    for use in reversed(last_lines.values()):
        if share := rows.share(samples.get(use.test, ())):
            return share * (use.alpha_share or 0.0) if use.verdict == "promote" else 0.0
    return 0.0


def _before(uses: Sequence[TestSetUse], candidate: str, rows: TestRows) -> Iterable[TestSetUse]:
    """The uses before this candidate's at these rows."""
    return takewhile(lambda use: not _is(use, candidate, rows), uses)


def _said(
    verdict: Verdict, uses: Sequence[TestSetUse], candidate: str, rows: TestRows, gate: Gate, seed: int
) -> Verdict:
    number, samples = _number(uses, candidate, rows), _samples(uses)
    tests = {use.test for use in _before(uses, candidate, rows) if use.seed not in (None, seed)}
    # Of two samples of one set the share in common is known, so of all together that of their union's smallest.
    before = rows.share(tuple(sorted({row for test in tests for row in samples.get(test, ())})[:SAMPLE]))
    about = "about " if rows.number > SAMPLE else ""
    seen = (
        f"{about}{round(before * rows.number):,} of these {rows.number:,} test rows were used before, as test rows of "
        "another split.seed; do not compare with earlier scores: these are of other rows"
    )
    said = [seen] if before else []
    other = [use for use in uses if _is(use, candidate, rows) and use.verdict not in ("", verdict.in_words)]
    if other and verdict.decision == "promote":
        when = other[-1].decided[:10]
        said.append(
            f"this candidate was decided on before, on these test rows: {shown(other[-1].verdict)} ({when}); "
            "since then the gate, the contenders or the champion changed, and a decision by settings that were chosen "
            "after the answers were known proves less"
        )
    if number > gate.max_test_set_uses:
        advice = (
            "gate.rotate draws other test rows for the next candidate; if this warning returns, nearly all rows were "
            "used: add new ones"
            if gate.rotate
            else "add new rows in a source with use_as: test, or set gate.rotate=true to draw others from the existing "
            "rows, some of which the champion may have trained on"
        )
        said.append(
            f"this is test-set use {number} of these {rows.number:,} test rows "
            f"(gate.max_test_set_uses={gate.max_test_set_uses}), and after so many only larger gains can be shown; "
            f"{advice}"
        )
    return verdict.model_copy(update={"test_set_uses": number, "warnings": (*verdict.warnings, *said)})


def read(file: Path) -> list[TestSetUse]:
    """All uses of a ledger, the oldest first. Raises ConfigError where a line is none."""
    return disk.read(file, TestSetUse, "is no test-set use; fix the line, or delete it")


class Draw(NamedTuple):
    """The parameters that draw the test rows of a run."""

    recipe: str  # the hash of all settings and contents that a candidate is made of
    asked: int  # split.seed as it is set
    seed: int  # as it is used
    most: int  # uses of one test set

    @property
    def said(self) -> str:
        """The reason for a redraw of the test rows, or "" if there was none."""
        if self.seed == self.asked:
            return ""
        last = f" to {self.seed - 1}" if self.seed - 1 > self.asked else ""
        return (
            f"gate.rotate: the test rows of split.seed={self.asked}{last} were used "
            f"gate.max_test_set_uses={self.most} times or more, so split.seed={self.seed} draws other test rows; do "
            "not compare with earlier scores"
        )

    def settings(self, settings: Settings) -> Settings:
        """The settings with the seed that is used."""
        split = settings.split.model_copy(update={"seed": self.seed})
        return settings.model_copy(update={"split": split})


def draw(settings: Settings, recipe: str) -> Draw:
    """Return the parameters of the draw by the ledger. Raises ConfigError for an invalid line of it."""
    asked, gate = settings.split.seed, settings.gate
    seed = asked
    if gate.rotate:
        seed = seed_of(read(up_to_date(file_of(settings.registry.name))), asked, gate.max_test_set_uses, recipe)
    return Draw(recipe, asked, seed, gate.max_test_set_uses)


def seed_of(uses: Sequence[TestSetUse], asked: int, most: int, recipe: str) -> int:
    """The seed that this recipe was last decided on with, or the first from `asked` on with uses left."""
    before = next((use.seed for use in reversed(uses) if use.recipe == recipe and use.seed is not None), None)
    if before is not None:
        return before
    seed = asked
    while next_number(uses, seed) > most:
        seed += 1
    return seed
