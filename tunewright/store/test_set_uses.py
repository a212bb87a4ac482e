"""How often the test rows were looked at: whoever tries enough candidates on the same rows finds one that wins by luck.

Each candidate that is decided on is a look, and a line in `<home>/looks/<name>.jsonl`; the same candidate on the same
rows again is none. A look at a test set counts for another as far as they have rows in common, so that a test set that
grows from version to version is not taken for a new one. The rows of a test set are kept once, as the smallest of their
row_ids: these are hashes, so that the smallest are a fair sample, and the share in common is known from them (bottom-k
sketches, Cohen & Kaplan 2007), exactly up to 1,000 rows.

The number of a look never changes afterwards, so that a run of unchanged settings says the same again. It is counted
after decide and is no part of the stage, whose verdict depends on the scores alone.

With gate.rotate other test rows are drawn once these were looked at gate.looks times. The seeds follow each other from
split.seed on, each with sides and a history of its own (data_versions.py), so that a number that was set by hand gives
the same rows. It is known before the first stage, from the ledger and from what makes a candidate alone: what was
looked at once keeps the seed of then. So a run of unchanged settings draws as before, and nothing runs anew, until
there is something new to look at.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from prefect.runtime import flow_run
from pydantic import BaseModel

from tunewright import config
from tunewright.artifacts import Adapter, Answers, Verdict
from tunewright.config import Gate, Settings
from tunewright.store import disk
from tunewright.store.caching import lock

SAMPLE = 1_000  # row_ids of a test set
DIGITS = 12  # of a row_id: of a million rows, no two begin alike in all likelihood


class TestSetUse(BaseModel, frozen=True):
    """One line: one candidate was decided on some test rows."""

    candidate: str  # digest of its weights
    test: str  # digest of all its rows
    decided: str  # UTC
    run: str  # the name of the flow run; empty for a call outside a flow
    verdict: str
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


def enter(
    name: str, verdict: Verdict, candidate: Adapter, answers: Answers, gate: Gate, *, seed: int, recipe: str
) -> Verdict:
    """The verdict with the number of its look, which is entered unless it was before.

    With a warning where that is over gate.looks, and where rows that another seed drew are among these. `seed` drew
    these, and `recipe` is what the candidate was made of.
    """
    rows, file = TestRows.of(answers), file_of(name)
    with lock(file):
        looks = read(file)
        if not any(_is(look, candidate.digest, rows) for look in looks):
            is_known = any(look.test == rows.test for look in looks)
            look = TestSetUse(
                candidate=candidate.digest,
                test=rows.test,
                decided=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                run=flow_run.name or "",
                verdict=verdict.in_words,
                seed=seed,
                recipe=recipe,
                sample=None if is_known else rows.sample,
            )
            disk.append(file, look)
    return _said(verdict, looks, candidate.digest, rows, gate, seed)


def look_up(name: str, verdict: Verdict, candidate: Adapter, answers: Answers, gate: Gate, *, seed: int) -> Verdict:
    """Return `enter`'s result without entering a use."""
    return _said(verdict, read(file_of(name)), candidate.digest, TestRows.of(answers), gate, seed)


def next_number(looks: Sequence[TestSetUse], seed: int) -> int:
    """Which look a new candidate's would be at the rows that `seed` drew last; 1 where none is known to have."""
    last = next((look for look in reversed(looks) if look.seed == seed), None)
    if last is None:
        return 1
    sample = _samples(looks).get(last.test, ())
    return _number(looks, "", TestRows(last.test, sample, len(sample)))


def file_of(name: str) -> Path:
    """The ledger of a pipeline."""
    return config.home() / "looks" / f"{name}.jsonl"


def _is(look: TestSetUse, candidate: str, rows: TestRows) -> bool:
    return (look.candidate, look.test) == (candidate, rows.test)


def _samples(looks: Sequence[TestSetUse]) -> dict[str, tuple[str, ...]]:
    return {look.test: look.sample for look in looks if look.sample is not None}


def _number(looks: Sequence[TestSetUse], candidate: str, rows: TestRows) -> int:
    """One more than other candidates were looked at before, each counted as far as it was on these rows."""
    samples = _samples(looks)
    seen: dict[str, float] = {}
    for look in _before(looks, candidate, rows):
        if look.candidate != candidate:
            share = rows.share(samples.get(look.test, ()))
            seen[look.candidate] = max(share, seen.get(look.candidate, 0.0))
    return 1 + round(sum(seen.values()))


def _before(looks: Sequence[TestSetUse], candidate: str, rows: TestRows) -> Iterable[TestSetUse]:
    """The looks before this candidate's at these rows."""
    return takewhile(lambda look: not _is(look, candidate, rows), looks)


def _said(
    verdict: Verdict, looks: Sequence[TestSetUse], candidate: str, rows: TestRows, gate: Gate, seed: int
) -> Verdict:
    number, samples = _number(looks, candidate, rows), _samples(looks)
    tests = {look.test for look in _before(looks, candidate, rows) if look.seed not in (None, seed)}
    # Of two samples of one set the share in common is known, so of all together that of their union's smallest.
    before = rows.share(tuple(sorted({row for test in tests for row in samples.get(test, ())})[:SAMPLE]))
    about = "about " if rows.number > SAMPLE else ""
    seen = (
        f"{about}{round(before * rows.number):,} of these {rows.number:,} test rows were used before, as test rows of "
        "another split.seed; do not compare with earlier scores: these are of other rows"
    )
    said = [seen] if before else []
    if number > gate.looks:
        advice = (
            "gate.rotate draws other test rows for the next candidate; if this warning returns, nearly all rows were "
            "used: add new ones"
            if gate.rotate
            else "add new rows in a source with side: test, or set gate.rotate=true to draw others from the existing "
            "rows, some of which the champion may have trained on"
        )
        said.append(
            f"this is test-set use {number} of these {rows.number:,} test rows (gate.looks={gate.looks}), and one of "
            f"so many candidates can win by chance; {advice}"
        )
    return verdict.model_copy(update={"looks": number, "warnings": (*verdict.warnings, *said)})


def read(file: Path) -> list[TestSetUse]:
    """All looks of a ledger, the oldest first. Raises ConfigError where a line is none."""
    return disk.read(file, TestSetUse, "is no test-set use; fix the line, or delete it")


class Draw(NamedTuple):
    """The parameters that draw the test rows of a run."""

    recipe: str  # the hash of all settings and contents that a candidate is made of
    asked: int  # split.seed as it is set
    seed: int  # as it is used
    most: int  # looks at one test set

    @property
    def said(self) -> str:
        """The reason for a redraw of the test rows, or "" if there was none."""
        if self.seed == self.asked:
            return ""
        last = f" to {self.seed - 1}" if self.seed - 1 > self.asked else ""
        return (
            f"gate.rotate: the test rows of split.seed={self.asked}{last} were used gate.looks={self.most} times or "
            f"more, so split.seed={self.seed} draws other test rows; do not compare with earlier scores"
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
        seed = seed_of(read(file_of(settings.registry.name)), asked, gate.looks, recipe)
    return Draw(recipe, asked, seed, gate.looks)


def seed_of(looks: Sequence[TestSetUse], asked: int, most: int, recipe: str) -> int:
    """The seed that this recipe was last looked at with, or the first from `asked` on with looks left."""
    before = next((look.seed for look in reversed(looks) if look.recipe == recipe and look.seed is not None), None)
    if before is not None:
        return before
    seed = asked
    while next_number(looks, seed) > most:
        seed += 1
    return seed
