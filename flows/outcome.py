"""What a run came to, from its steps: the row account, the scores, the verdict and the model, as plain data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from flows.calls import Step, as_json
from tasks.artifacts import (
    Adapter,
    Answers,
    Artifact,
    CheckedRows,
    Registered,
    Rows,
    Scan,
    Splits,
    Tokens,
    UniqueRows,
    Verdict,
)

A = TypeVar("A", bound=Artifact)


class Account(BaseModel):
    """Where every record went: read = kept + quarantined + duplicates, and kept = train + validation + test.

    A run that ended before the split has no sides yet, and they are 0.
    """

    model_config = ConfigDict(frozen=True)

    read: int
    kept: int
    quarantined: int
    duplicates: int
    train: int
    validation: int
    test: int

    def add_up(self) -> None:
        """Raises AssertionError where a row is lost: that would be a bug, and must never be shown as a result."""
        if self.read != self.kept + self.quarantined + self.duplicates:
            raise AssertionError(f"rows do not add up: {self}")
        sides = self.train + self.validation + self.test
        if sides and self.kept != sides:
            raise AssertionError(f"sides do not add up: {self}")


class Outcome(BaseModel):
    """The artifacts of a run by what they are; None where the run ended before."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[Step, ...]
    rows: Rows | None
    checked: CheckedRows | None
    unique: UniqueRows | None
    splits: Splits | None
    tokens: Tokens | None
    scan: Scan | None = None
    adapter: Adapter | None
    answers: dict[str, Answers]
    verdict: Verdict | None
    registered: Registered | None

    @classmethod
    def of(cls, steps: Sequence[Step]) -> "Outcome":
        """The outcome of these steps, with an account that adds up."""
        answers = (step.record for step in steps if isinstance(step.record, Answers))
        outcome = cls(
            steps=tuple(steps),
            rows=_one(steps, Rows),
            checked=_one(steps, CheckedRows),
            unique=_one(steps, UniqueRows),
            splits=_one(steps, Splits),
            tokens=_one(steps, Tokens),
            scan=_one(steps, Scan),
            adapter=_one(steps, Adapter),
            answers={answer.contender: answer for answer in answers},
            verdict=_one(steps, Verdict),
            registered=_one(steps, Registered),
        )
        if account := outcome.account():
            account.add_up()
        return outcome

    def account(self) -> Account | None:
        """Where the rows went, as far as the run came."""
        if self.rows is None:
            return None
        behind = [a for a in (self.rows, self.checked, self.splits, self.tokens) if a]
        last = next(a for a in (self.tokens, self.splits, self.unique, self.checked, self.rows) if a)
        sides = (last.num_train, last.num_validation, last.num_test) if isinstance(last, Tokens | Splits) else (0, 0, 0)
        return Account(
            read=self.rows.num_read,
            kept=sum(sides) if isinstance(last, Tokens | Splits) else last.num_rows,
            quarantined=sum(a.num_quarantined for a in behind),
            duplicates=self.unique.num_removed if self.unique else 0,
            train=sides[0],
            validation=sides[1],
            test=sides[2],
        )

    def reasons(self) -> dict[str, int]:
        """Reason code -> rows that did not stay, over all stages, the most frequent first."""
        counts: dict[str, int] = {}
        for record in (self.rows, self.checked, self.unique, self.splits, self.tokens):
            for reason, count in (record.reasons if record else {}).items():
                counts[reason] = counts.get(reason, 0) + count
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def findings(self) -> dict[str, int]:
        """What is worth a look without being a reason to set a row aside: code -> rows."""
        return {
            code: count for record in (self.checked, self.splits) if record for code, count in record.findings.items()
        }

    def quarantines(self) -> list[Path]:
        """The files with the rows that were set aside, and with those that repeat another."""
        quarantined = [r for r in (self.rows, self.checked, self.splits, self.tokens) if r and r.num_quarantined]
        removed = [self.unique.path("removed.parquet")] if self.unique and self.unique.num_removed else []
        return [record.path("quarantine.parquet") for record in quarantined] + removed

    def as_json(self) -> dict[str, Any]:
        """What `tunewright run --json` prints."""
        account = self.account()
        return {
            "stages": [as_json(step) for step in self.steps],
            "rows": account.model_dump() if account else None,
            "reasons": self.reasons(),
            "findings": self.findings(),
            "training": _training(self.adapter) if self.adapter else None,
            "scores": {name: answer.scores for name, answer in self.answers.items()},
            "verdict": _verdict(self.verdict) if self.verdict else None,
            "model": _model(self.registered) if self.registered else None,
        }


def given_sides(checked: CheckedRows) -> list[str]:
    """What check set aside of a validation or test side that its source gives, in words."""
    if not any(code.startswith("given_") for code in checked.findings):
        return []
    return json.loads(checked.path("results.json").read_text(encoding="utf-8"))["given_sides"]


def _one(steps: Sequence[Step], kind: type[A]) -> A | None:
    return next((step.record for step in steps if isinstance(step.record, kind)), None)


def _training(adapter: Adapter) -> dict[str, Any]:
    names = ("method", "steps", "best_step", "best_by", "best_value", "best_validation_loss", "stopped_early")
    return {name: getattr(adapter, name) for name in names} | {
        "seconds": adapter.train_seconds,
        "warnings": list(adapter.warnings),
        "curves": str(adapter.path("curves.html")),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "decision": verdict.decision,
        "reason": verdict.sentence,
        "metric": verdict.metric,
        "differences": verdict.differences,
        "intervals": verdict.intervals,
        "rows_needed": verdict.rows_needed,
    }


def _model(registered: Registered) -> dict[str, Any]:
    return {
        "name": registered.name,
        "version": registered.version,
        "alias": registered.alias or None,
        "uri": registered.uri,
        "run_id": registered.run_id,
        "tracking_uri": registered.tracking_uri,
    }
