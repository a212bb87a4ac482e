"""The outcome of a run, from its steps: row account, scores, verdict and model, as plain data."""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from tunewright import artifacts
from tunewright.artifacts.payloads import CheckResults, ExpectationResult, LeakProof, VerdictDetails
from tunewright.config import Settings
from tunewright.cost_model.money import Price, devices_of, money
from tunewright.flows.budget import price_here
from tunewright.flows.calls import TRAININGS, Step, as_json
from tunewright.metrics.catalogue import CONSTANT
from tunewright.registry.address import tracking_uri
from tunewright.reports import account, curves
from tunewright.reports.account import Account
from tunewright.reports.pages import counted, number, percent
from tunewright.reports.progress import duration
from tunewright.tasks.decide.sentences import who
from tunewright.tasks.split.proof import DISCORDANT, LEAST_VISIBLE, TOO_SMALL, counted_in_words, visible_difference

VERDICTS = {"promote": "Promoted", "keep": "Not promoted", "inconclusive": "Inconclusive", "invalid": "Invalid"}
STANDS = {  # of a candidate that was promoted, where a person decides or decided
    "waiting": "Waiting",
    "approved": "Promoted",
    "rejected": "Rejected",
    "superseded": "Superseded",
    "rolled back": "Rolled back",
    "withdrawn": "Withdrawn",
}

LABEL_ERROR_FILES = {"page": "report.html", "rows": "label_errors.parquet"}
UNCHANGED = "Unchanged"  # the state of a run that decided nothing new, so that automations on a verdict fire once
GIVEN = "given_"  # begins the codes of findings on user-provided splits (data_checks/given.py)


class Outcome(BaseModel, frozen=True):
    """The artifacts of a run by what they are, of rows the last before check; None where the run ended before."""

    steps: tuple[Step, ...]
    rows: artifacts.Rows | None
    checked: artifacts.CheckedRows | None
    unique: artifacts.UniqueRows | None
    splits: artifacts.Splits | None
    tokens: artifacts.Tokens | None
    scan: artifacts.Scan | None = None
    suspected: artifacts.LabelErrors | None = None
    trainings: tuple[artifacts.Adapter, ...] = ()  # on answers, on preference pairs and on rewards
    examples: artifacts.PromptExamples | None = None  # of a candidate that is the base with a prompt
    prompts: artifacts.Prompts | None = None
    answers: dict[str, artifacts.Answers]
    verdict: artifacts.Verdict | None
    judged: artifacts.Judged | None = None
    divergence: artifacts.Divergence | None = None
    page: artifacts.VerdictPage | None = None
    registered: artifacts.Registered | None
    price: Price = Price(0.0, "")  # of an hour of this machine's device, where operation.prices has one
    num_devices: int = 1  # that trained and answered

    @classmethod
    def of(cls, steps: Sequence[Step], settings: Settings | None = None) -> "Outcome":
        """The outcome of these steps, with an account that adds up; with the settings also what it cost."""
        found = (step.record for step in steps if isinstance(step.record, artifacts.Answers))
        answers = sorted(found, key=lambda each: each.contender == "candidate")  # last, as in all tables
        kinds = {name: get_args(field.annotation) for name, field in cls.model_fields.items()}
        records: dict[str, Any] = {
            name: next((step.record for step in reversed(steps) if isinstance(step.record, kind[0])), None)
            for name, kind in kinds.items()
            if kind[-1:] == (NoneType,)
        }
        if settings and (price := price_here(settings.operation)):
            records |= {"price": price, "num_devices": settings.compute.num_ranks}
        records["trainings"] = tuple(step.record for step in steps if isinstance(step.record, artifacts.Adapter))
        outcome = cls(steps=tuple(steps), answers={answer.contender: answer for answer in answers}, **records)
        if account := outcome.account():
            account.add_up()
        return outcome

    @property
    def adapter(self) -> artifacts.Adapter | None:
        """The last training; None where the run ended before."""
        return self.trainings[-1] if self.trainings else None

    @property
    def failed(self) -> list[str]:
        """Say which stages failed that the verdict does not depend on, and why."""
        return [f"{step.name}: {step.note}" for step in self.steps if step.state == "failed"]

    def account(self) -> Account | None:
        """The account of the rows, as far as the run came."""
        if self.rows is None:
            return None
        return Account.of(self.rows, self.checked, self.unique, self.splits, self.tokens)

    def reasons(self) -> dict[str, int]:
        """Reason code -> rows that did not stay, over all stages, the most frequent first."""
        return account.reasons(self.rows, self.checked, self.unique, self.splits, self.tokens)

    def findings(self) -> dict[str, int]:
        """Return the findings worth a review that quarantine no row: code -> number of rows."""
        found = {
            code: count for record in (self.checked, self.splits) if record for code, count in record.findings.items()
        }
        if self.splits and self.tokens and too_few_test_rows(self.splits, tokens=self.tokens):
            found[TOO_SMALL] = self.tokens.num_test  # of the rows that render left
        return found

    @property
    def constant_score(self) -> float | None:
        """The score of the best constant answer in the metric that decides; None where nothing was compared with it."""
        return VerdictDetails.score_of(CONSTANT, self.verdict) if self.verdict else None

    def _scores(self) -> dict[str, dict[str, float]]:
        found = {name: answer.scores for name, answer in self.answers.items()}
        if self.verdict and (constant := self.constant_score) is not None:
            found[CONSTANT] = {self.verdict.metric: constant}
        return found

    def _answered_in_part(self) -> dict[str, dict[str, int]]:
        counts = {"num_rows", "num_unanswered"}
        return {name: each.model_dump(include=counts) for name, each in self.answers.items() if each.in_part}

    @property
    def rotation(self) -> str:
        """Which test rows were drawn anew, and why; empty where none were."""
        return next((step.note for step in self.steps if step.stage == "split"), "")

    @property
    def saved(self) -> str:
        """Count the cached tasks and the time that they saved; empty where none was."""
        cached = [step for step in self.steps if step.state == "cached"]
        if not cached:
            return ""
        seconds = sum(step.saved for step in cached)
        time = f", about {duration(seconds)} saved" if seconds >= 1 else ""
        return f"{len(cached)} of {len(self.steps)} tasks cached{time}"

    @property
    def cost(self) -> dict[str, Any]:
        """The cost of this run, what the cache saved, of training and 1,000 answers of each model; {} without a price.

        All at the price of this machine, also what another one made.
        """
        if not self.price.hour:
            return {}

        def of(step: Step, seconds: float) -> float:
            return self.price.of(seconds, devices_of(step.record, step.stage, self.num_devices))

        costs = {step.name: of(step, step.seconds if step.state == "ran" else step.saved) for step in self.steps}
        answers = {
            name: 1000 / answers.num_rows * costs[f"evaluate {name}"] if answers.api is None else answers.api.price
            for name, answers in self.answers.items()
            if answers.num_rows
        }
        return {
            "device": self.price.device,
            "hour": self.price.hour,
            "run": sum(of(step, step.seconds) for step in self.steps),
            "saved": sum(of(step, step.saved) for step in self.steps),
            "training": sum(trained) if (trained := [costs[stage] for stage in TRAININGS if stage in costs]) else None,
            "thousand_answers": {name: price for name, price in answers.items() if price is not None},
        }

    @property
    def says_cost(self) -> str:
        """The cost of this run and its candidate in a sentence; empty without a price."""
        if not (cost := self.cost):
            return ""
        seconds = sum(step.seconds for step in self.steps)
        said = f"this run cost {money(cost['run'])} ({duration(seconds)} at {self.price.said}"
        said += f"; about {money(cost['saved'])} saved by the cache)" if cost["saved"] else ")"
        said += f"; the training {money(cost['training'])}" if cost["training"] is not None else ""
        answers = dict(cost["thousand_answers"])
        if (own := answers.pop("candidate", None)) is not None:
            said += f"; 1,000 answers of the candidate about {money(own)}"
            theirs = {name: answers[name] for name, each in self.answers.items() if each.api and answers.get(name)}
            said += "".join(f", {percent(own / price)} of those of {name}" for name, price in theirs.items())
        return said

    @property
    def is_new(self) -> bool:
        """Whether anything was decided or registered since this run began: an earlier one came to the same if not.

        Also by a run beside it, which may send no message. What was only made again, since its artifacts were deleted,
        is nothing new.
        """
        if self.registered and self.registered.is_known:
            return False
        decided = [step for step in self.steps if step.stage in ("decide", "register")]
        return any(step.state == "ran" or step.is_news for step in decided)

    @property
    def state(self) -> str:
        """The name of the run's final state: that of the verdict, or Unchanged; empty without a verdict."""
        return self.name if self.is_new or self.verdict is None else UNCHANGED

    @property
    def name(self) -> str:
        """The name of the verdict, or of what a person made of it; empty without a verdict."""
        if self.verdict is None:
            return ""
        return STANDS[self._stands.approval] if self._stands else VERDICTS[self.verdict.decision]

    @property
    def said(self) -> str:
        """The verdict in a sentence, with what a person made of it; empty where there is none."""
        return self._stands.stands if self._stands else self.verdict.sentence if self.verdict else ""

    @property
    def _stands(self) -> artifacts.Registered | None:
        """The version, if it was promoted and a person decides or decided on it."""
        is_promoted = self.verdict is not None and self.verdict.decision == "promote"
        return self.registered if is_promoted and self.registered and self.registered.approval else None

    @property
    def alias(self) -> str:
        """Return where the alias is now: "@champion" on this or another version; empty where there is none."""
        if self.registered is None:
            return ""
        if self.registered.alias:
            return f"@{self.registered.alias}"
        current = self.registered.current_version
        return f"the alias points to version {current}" if current else "no alias"

    def quarantines(self) -> list[Path]:
        """The files with the rows that were quarantined, each as its own stage wrote it: rehearse copies ingest's."""
        rows = next((step.record for step in self.steps if isinstance(step.record, artifacts.Rows)), self.rows)
        quarantined = [r for r in (rows, self.checked, self.splits, self.tokens) if r and r.num_quarantined]
        return [record.path("quarantine.parquet") for record in quarantined]

    @property
    def duplicates(self) -> Path | None:
        """The file with the rows that repeat another; None where there are none."""
        return self.unique.path("removed.parquet") if self.unique and self.unique.num_removed else None

    def as_json(self) -> dict[str, Any]:
        """Return the output of `tunewright run --json`, without parts that were not reached or not asked for."""
        account, page, asks = self.account(), self.page, self._stands
        judged = {"model", "num_rows", "preferred", "agreement", "unreadable"}
        divergence = {"reference", "num_rows", "per_token", "per_answer"}
        parts = {
            "state": self.state,
            "stages": [as_json(step) for step in self.steps],
            "saved_seconds": round(sum(step.saved for step in self.steps), 3),
            "cost": self.cost or None,
            "rows": account.counts() if account else None,
            "reasons": self.reasons() if account else None,
            "findings": self.findings() if self.checked else None,
            "rotation": self.rotation or None,
            "label_errors": self.suspected and _label_errors(self.suspected),
            **{each.section: _training(each) for each in self.trainings},
            "examples": self.examples and _examples(self.examples),
            "scores": self._scores() or None,
            "answered_in_part": self._answered_in_part() or None,
            "verdict": _verdict(self.verdict) if self.verdict else None,
            "judged": self.judged.model_dump(include=judged) if self.judged else None,
            "divergence": self.divergence.model_dump(include=divergence) if self.divergence else None,
            "page": page and {"report": str(page.path("report.html")), "suggestions": list(page.suggestions)},
            "model": _model(self.registered) if self.registered else None,
            "approval": asks and {"state": asks.approval, "said": asks.stands, "asked": asks.asked or None},
        }
        return {name: part for name, part in parts.items() if part not in (None, "")}


def worth_a_look(outcome: Outcome) -> list[str]:
    """The findings, such as "refusal: an answer is a refusal, 3 rows".

    Those that have a sentence of their own (user_provided_splits, too_few_test_rows) are not among them.
    """
    checked, splits = outcome.checked, outcome.splits
    results = CheckResults.load(checked) if checked and checked.findings else None
    said = [
        f"{each.name}: {_found(each, results)}"
        for each in (results.expectations if results else ())
        if results and each.is_finding
    ]
    of_split = splits.findings if splits else {}
    return said + [counted_in_words(code, count) for code, count in of_split.items() if code != TOO_SMALL]


def _found(failed: ExpectationResult, results: CheckResults) -> str:
    """Say what failed and in how many rows, as the data report does."""
    rows = counted(failed.failed, "row")
    if failed.name == "conflicting_answers":
        prompts = results.conflicting_prompts
        return f"{counted(prompts, 'prompt')} {'has' if prompts == 1 else 'have'} more than one answer, in {rows}"
    return failed.fault if failed.of_set else f"{failed.fault}, {rows}"


def too_few_test_rows(
    splits: artifacts.Splits, verdict: artifacts.Verdict | None = None, tokens: artifacts.Tokens | None = None
) -> str:
    """Which gain so few test rows show at least: what the verdict measured, before it an estimate; or "" if enough.

    With `tokens`, of the rows that render left.
    """
    asked = splits.num_test - splits.undesirable[-1]
    left, clusters = tokens.num_test if tokens else asked, LeakProof.load(splits).test_clusters
    least = 0.0  # where none was left out, split has found whether they are enough
    if tokens and left < asked:
        clusters = tokens.num_test_clusters
        least = visible_difference(clusters)
    is_enough = TOO_SMALL not in splits.findings and least <= LEAST_VISIBLE
    if is_enough or (verdict and verdict.decision != "inconclusive"):  # so few did decide
        return ""
    rows, estimate = counted(left, "test row"), least or LeakProof.load(splits).smallest_visible_difference
    if clusters < left:
        rows += f" in {counted(clusters, 'independent cluster')}"
    if verdict and verdict.smallest_visible is not None:
        over = f" over {who(verdict.visible_against, verdict.metric)}" if verdict.visible_against else ""
        gain = f"smallest detectable gain in {verdict.metric}{over}: {number(verdict.smallest_visible)}"
        return f"warning: only {rows}, {gain} (80 % power, from these answers; estimated before: {number(estimate)})"
    return few_test_rows(rows, estimate)


def few_test_rows(rows: str, least: float, assumes: str = "") -> str:
    """The estimate of which gain so few test rows show at least, before a verdict has measured it."""
    gain = f"smallest detectable gain in a score from 0 to 1 about {number(least)}"
    if_differing = f"as if one model alone were right on {percent(DISCORDANT)} of the rows"
    return f"warning: only {rows}, {gain} (80 % power, estimated {if_differing}{assumes})"


def user_provided_splits(checked: artifacts.CheckedRows) -> Sequence[str]:
    """Describe the rows of an assigned validation or test split that are quarantined or repeated."""
    is_found = any(code.startswith(GIVEN) for code in checked.findings)
    return CheckResults.load(checked).user_provided_splits if is_found else ()


def _training(adapter: artifacts.Adapter) -> dict[str, Any]:
    names = ("method", "steps", "best_step", "best_by", "best_value", "best_validation_loss", "stopped_early")
    found = curves.read(adapter.folder)
    return {name: getattr(adapter, name) for name in names} | {
        "method": "grpo" if adapter.rewards else adapter.preference or adapter.method,
        "epochs": found.epochs,
        "began_as": adapter.began_as or None,
        "ended_by": found.ended_by,
        "seconds": adapter.train_seconds,
        "warnings": list(adapter.warnings),
        "note": found.too_few or None,
        "curves": str(adapter.path("curves.html")),
    }


def _examples(examples: artifacts.PromptExamples) -> dict[str, Any]:
    file = str(examples.file)
    return {"number": examples.num_examples, "chosen": examples.chosen, "file": file}


def _label_errors(found: artifacts.LabelErrors) -> dict[str, Any]:
    counts = found.model_dump(include={"num_folds", "num_rows", "num_same", "num_likely"})
    return counts | {name: str(found.path(file)) for name, file in LABEL_ERROR_FILES.items()}


def _verdict(verdict: artifacts.Verdict) -> dict[str, Any]:
    measured = ("metric", "differences", "intervals", "guardrails", "guardrail_power", "general", "beside")
    names = (*measured, "confidence", "rows_needed", "smallest_visible", "visible_against", "test_set_uses")
    said = {"decision": verdict.decision, "because": verdict.because or None, "reason": verdict.sentence}
    return said | {name: getattr(verdict, name) for name in names} | {"warnings": list(verdict.warnings)}


def _model(registered: artifacts.Registered) -> dict[str, Any]:
    names = ("name", "version", "alias", "current_version", "uri", "run_id")
    return {name: getattr(registered, name) or None for name in names} | {"tracking_uri": tracking_uri(registered)}
