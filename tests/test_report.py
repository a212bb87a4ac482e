"""A run's artifacts in the Prefect UI: the origin of each setting, and the results of training."""

import base64
import json
import platform
import re
from io import StringIO
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from make_payloads import make_comparison, make_training_summary, make_verdict_details
from rich.console import Console

from tunewright.artifacts import Adapter, Answers, ApiUse, Rows, Verdict, VerdictPage
from tunewright.cli import terminal
from tunewright.config import Settings
from tunewright.flows.calls import Step
from tunewright.flows.outcome import VERDICTS, Outcome
from tunewright.flows.report import decided, score_rows, training
from tunewright.flows.run_name import origin
from tunewright.reports import curves
from tunewright.reports.pages import located, number
from tunewright.tasks.decide.decision import Decision

CONTENDERS = ("base", "few_shot", "retrieval", "champion", "candidate")
DEPLOYED = {"training.max_steps": 80, "data.sources[0].path": "a.jsonl", "data.max_line_bytes": 20_000}


def promoted(folder: Path, **different: Any) -> Verdict:
    said: dict[str, Any] = {"decision": "promote", "sentence": "Promoted: it is better.", "metric": "exact_match"}
    said |= {"differences": {}, "intervals": {}, "guardrails": {}, "rows_needed": None}
    return Verdict(folder=folder, **said | different)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.max_steps", 80, "deployment"),
        ("training.max_steps", 6, "this run; the deployment has 80"),
        ("training.max_steps", None, "default; the deployment has 80"),
        ("data.max_line_bytes", 1_000_000, "default; the deployment has 20000"),
        ("data.sources[0].path", "a.jsonl", "deployment"),
        ("data.sources[0].layout", "auto", "default"),
        ("data.sources[1].path", "b.jsonl", "this run"),
        ("evaluation.metrics", "auto", "default"),
        ("evaluation.metrics", "exact_match", "this run"),
        ("gate.margin", 0.01, "this run"),
    ],
)
def test_a_setting_of_a_deployed_run_says_who_set_it(key: str, value: Any, said: str) -> None:
    assert origin(key, value, DEPLOYED) == said


def test_the_page_and_the_artifact_of_training_say_what_is_worth_a_change_and_escape_it(tmp_path: Path) -> None:
    steps = [{"step": n, "planned": 20, "loss": 2.0 / n, "worst": [["<img src=x>", 9.0]]} for n in range(1, 16)]
    looks = [{"step": n, "planned": 20, "eval_loss": 1.0 + abs(n - 10) / 10} for n in (5, 10, 15)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in steps + looks))
    make_training_summary(best_step=10, stopped_early=True).save(tmp_path)
    chosen = {"packing": True, "because": {"packing": "<script>"}}
    facts = {"chosen": chosen, "learning_parameters": 5, "parameters": 50}
    (tmp_path / "status.json").write_text(json.dumps(facts))
    found = curves.read(tmp_path)
    curves.write_page(tmp_path / "curves.html", found, curves.warnings(found))
    page = (tmp_path / "curves.html").read_text()
    assert "<img" not in page
    assert "<script" not in page
    assert "&lt;img src=x&gt;" in page
    assert "stopped early at step 15 of 20" in page
    assert "training</span>" in page, "its line has the losses themselves"
    adapter = Adapter(
        folder=tmp_path,
        method="lora",
        steps=15,
        best_step=10,
        best_by="loss",
        best_value=1.0,
        best_validation_loss=1.0,
        stopped_early=True,
        warnings=("overfitting since step 10: <b>; fewer epochs",),
        train_seconds=600.0,
    )
    shown = training(adapter, found)
    assert shown.startswith("Stopped early after 15 steps in 10 min, ended by training.patience; the best step is 10")
    assert "overfitting since step 10: &lt;b&gt;" in shown
    picture = base64.b64decode(shown.partition("base64,")[2].partition(")")[0]).decode()
    assert ElementTree.fromstring(picture.strip()).tag.endswith("svg")


def test_a_share_below_1_is_not_shown_as_1() -> None:
    shares = (0.99, 0.994, 0.9952, 0.99996, 1.0, -0.997)
    assert [number(each) for each in shares] == [".99", ".99", ".995", ".99996", "1.00", "-.997"]


def test_the_verdict_is_shown_with_what_it_stands_on_and_the_names_in_it_escaped(tmp_path: Path) -> None:
    part = {"by": "label", "num_rows": 9, "candidate": 0.5, "base": 0.75, "is_small": True}
    parts = [{**part, "name": "<b>|a|", "difference": [-0.5, -0.25, 0.1]}]
    make_verdict_details(slices=parts).save(tmp_path)
    verdict = Verdict(
        folder=tmp_path,
        decision="keep",
        because="regression",
        sentence="Not promoted: a regression: it stops less.",
        metric="exact_match",
        differences={"base": (0.1, 0.2, 0.3), "constant": (0.0, 0.1, 0.2)},
        intervals={},
        guardrails={"stopped/base": (-0.3, -0.2, -0.1)},
        general={name: {"harmful": 1.0, "harmless": 0.5, "piqa": 0.5} for name in ("base", "candidate")},
        rows_needed=None,
        smallest_visible=0.08,
        visible_against="constant",
        test_set_uses=21,
        warnings=("this is look 21 at <these> rows",),
    )
    page = VerdictPage(folder=tmp_path / "page", num_rows=9, suggestions=("Try it: .5",))
    steps = [
        Step(stage=stage, state="ran", record=made) for stage, made in (("decide", verdict), ("verdict_page", page))
    ]
    shown = decided(Outcome.of(steps))
    assert f"`{tmp_path / 'page' / 'report.html'}` on {platform.node()}" in shown
    assert Outcome.of(steps).as_json()["page"]["suggestions"] == ["Try it: .5"]
    assert shown.startswith(
        "# Not promoted\n\nA regression: it stops less.\n\n**This is look 21 at &lt;these&gt; rows.**"
    )
    assert "| base | +.10 | +.20 | +.30 |" in shown
    assert "| majority-class baseline | +.00 | +.10 | +.20 |" in shown
    assert "constant" not in shown
    assert (
        "\n\nharmful: harmful requests refused; harmless: harmless requests that sound harmful, answered and not "
        "refused.\n"
    ) in shown
    assert "| stopped/base | -.30 | -.20 | -.10 |" in shown
    assert "Smallest detectable gain over the majority-class baseline: .08 (80 % power)." in shown
    assert r"| label: &lt;b&gt;\|a\| | 9 (few) | .50 | .75 | -.50 | -.25 | +.10 |" in shown


def test_of_a_loss_the_verdict_says_that_a_positive_difference_is_an_improvement(tmp_path: Path) -> None:
    make_verdict_details().save(tmp_path)
    verdict = promoted(
        tmp_path, sentence="Promoted: loss is lower.", metric="perplexity", differences={"base": (0.1, 0.27, 0.3)}
    )
    shown = decided(Outcome.of([Step(stage="decide", state="ran", record=verdict)]))
    assert "| loss in nats per token: improvement over | low | mean | high |" in shown
    assert "| base | +.10 | +.27 | +.30 |" in shown


def test_bounds_near_zero_keep_their_sign_in_prefects_tables(tmp_path: Path) -> None:
    make_verdict_details().save(tmp_path)
    verdict = promoted(tmp_path, differences={"base": (0.0004, 0.2, 0.3), "few_shot": (-0.004, 0.004, 0.3)})
    shown = decided(Outcome.of([Step(stage="decide", state="ran", record=verdict)]))
    assert "| base | +.0004 | +.2000 | +.3000 |" in shown
    assert "| few-shot prompt | -.004 | +.004 | +.300 |" in shown


def test_the_baseline_stands_beside_the_other_contenders_in_prefect_and_in_the_terminal(tmp_path: Path) -> None:
    constant = make_comparison(opponent="constant", opponent_mean=0.048)
    make_verdict_details(comparisons=[constant]).save(tmp_path)
    differences, intervals = {"constant": (0.1, 0.2, 0.3)}, dict.fromkeys(CONTENDERS, (0.2, 0.5, 0.7))
    verdict = promoted(tmp_path, differences=differences, intervals=intervals, test_set_uses=2, confidence=0.97)
    steps = [
        Step(
            stage="evaluate",
            state="ran",
            record=Answers(
                folder=tmp_path,
                contender=name,
                num_rows=9,
                scores={"exact_match": 0.5, "stopped": 1.0},
                precision="float32",
            ),
        )
        for name in CONTENDERS
    ]
    outcome = Outcome.of([*steps, Step(stage="decide", state="ran", record=verdict)])
    *_, own, baseline = score_rows(outcome)
    assert own == {"contender": "candidate", "exact_match": ".500 [.200, .700]", "stopped": "1.000"}
    assert baseline == {"contender": "majority-class baseline", "exact_match": ".048", "stopped": ""}
    console = Console(file=StringIO(), width=80, highlight=False)
    terminal.show_outcome(console, outcome, "x.yaml")
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "\nmajority-class baseline: exact_match 0.048\n" in printed
    assert "\nThese test rows were used for 2 decisions so far; each comparison" in printed
    assert "…" not in printed, "an interval that does not fit is folded, not cut"
    assert outcome.as_json()["scores"]["constant"] == {"exact_match": 0.048}


def test_scores_of_a_part_of_the_rows_say_so_in_prefect_in_the_terminal_and_in_json(tmp_path: Path) -> None:
    make_verdict_details().save(tmp_path)
    bounds = (0.2, 0.5, 0.7)
    verdict = promoted(tmp_path, differences={"retrieval": bounds}, intervals=dict.fromkeys(CONTENDERS, bounds))
    steps = []
    for name in CONTENDERS:
        answers = Answers(folder=tmp_path, contender=name, num_rows=300, scores={"exact_match": 0.5})
        if name == "retrieval":
            answers = answers.model_copy(update={"num_rows": 75, "num_unanswered": 225})
        steps.append(Step(stage="evaluate", of=name, state="ran", record=answers))
    outcome = Outcome.of([*steps, Step(stage="decide", state="ran", record=verdict)])
    assert [row["contender"] for row in score_rows(outcome) if "rows" in row["contender"]] == [
        "retrieval (75 of 300 rows)"
    ]
    assert "| retrieval prompt (75 of 300 rows) | +.20 | +.50 | +.70 |" in decided(outcome)
    console = Console(file=StringIO(), width=80, highlight=False)
    terminal.show_outcome(console, outcome, "x.yaml")
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert re.search(r"\ntest rows +300 +300 +75 of +300 +300\s+300\n", printed)
    assert "…" not in printed
    assert outcome.as_json()["answered_in_part"] == {"retrieval": {"num_rows": 75, "num_unanswered": 225}}


def test_every_decision_has_a_state() -> None:
    assert {*VERDICTS} == {*get_args(Decision.model_fields["decision"].annotation)}


def test_what_a_run_did_not_reach_is_not_in_its_json() -> None:
    rows = Rows(num_read=9, num_rows=8, num_quarantined=1, reasons={"bad_json": 1}, detected={})
    told = Outcome.of([Step(stage="ingest", state="ran", record=rows)]).as_json()
    assert told.keys() == {"stages", "saved_seconds", "rows", "reasons"}
    assert told["rows"] == {"read": 9, "general": 0, "kept": 8, "quarantined": 1, "duplicates": 0}


def test_tasks_are_counted_as_they_are_listed() -> None:
    def steps(saved: float) -> list[Step]:
        cached = [Step(stage="evaluate", of=of, state="cached", saved=saved) for of in ("base", "few_shot")]
        return [*cached, Step(stage="evaluate", of="candidate", state="ran")]

    assert Outcome.of(steps(30)).saved == "2 of 3 tasks cached, about 60 s saved"
    assert Outcome.of(steps(0.1)).saved == "2 of 3 tasks cached"
    assert Outcome.of(steps(0.1)[2:]).saved == ""


def test_a_run_says_what_it_and_its_candidate_cost(tmp_path: Path) -> None:
    def answers(contender: str, **changed: Any) -> Answers:
        return Answers(contender=contender, num_rows=200, scores={}, **changed)

    use = ApiUse(model="big", url="https://a.example", input_tokens=1, output_tokens=1, seconds=2.0, price=0.5)
    steps = [
        Step(stage="train", state="cached", saved=900.0),
        Step(stage="evaluate", of="base", state="ran", seconds=60.0, record=answers("base")),
        Step(stage="evaluate", of="big", state="ran", seconds=300.0, record=answers("big", api=use)),
        Step(stage="evaluate", of="candidate", state="cached", saved=36.0, record=answers("candidate")),
    ]
    settings = Settings.model_validate(
        {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "b"}}
        | {"operation": {"prices": {"cpu": 0.4}}, "compute": {"devices": 2}}
    )
    outcome = Outcome.of(steps, settings)
    cost = outcome.cost
    assert cost["thousand_answers"] == pytest.approx({"base": 0.4 / 60 * 10, "big": 0.5, "candidate": 0.04})
    assert (cost["device"], cost["hour"]) == ("cpu", 0.4)
    assert (cost["run"], cost["saved"], cost["training"]) == pytest.approx((0.4 * 7 / 60, 0.208, 0.2))
    assert outcome.says_cost == (
        "this run cost 0.047 (6 min at 0.40 an hour of cpu; about 0.21 saved by the cache); the training 0.20; "
        "1,000 answers of the candidate about 0.04, 8 % of those of big"
    )
    assert outcome.as_json()["cost"] == cost
    make_verdict_details().save(tmp_path)
    decided_on = Step(stage="decide", state="ran", record=promoted(tmp_path))
    assert f"\n{outcome.says_cost}.\n" in decided(Outcome.of([*steps, decided_on], settings))
    assert Outcome.of(steps).cost == {}
    assert Outcome.of(steps).says_cost == ""


def test_a_run_that_waits_says_so_in_its_state_and_in_the_artifact(tmp_path: Path) -> None:
    make_verdict_details().save(tmp_path)
    said = "Waiting for approval: exact match .95 is +.95 [.84, .98] above the base on 40 test rows."
    verdict = promoted(tmp_path, sentence=said)
    outcome = Outcome.of([Step(stage="decide", state="ran", record=verdict)])
    assert outcome.said == said
    assert decided(outcome).startswith("# Waiting for approval\n\nExact match .95 is ")


def test_two_evaluations_are_said_to_be_too_few_and_what_to_lower() -> None:
    found = curves.Curves(
        steps=[], evaluations=[{"step": 1, "eval_loss": 1.0}, {"step": 2, "eval_loss": 0.9}], best_step=2
    )
    assert found.nothing == (
        "Only 2 evaluations: too few to tell whether the loss had converged. Evaluate more often: set a smaller "
        "training.evaluate_every."
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("a.jsonl", "a.jsonl line 3"),
        ("a.csv.gz", "a.csv.gz line 3"),
        ("data.json/a.txt", "data.json/a.txt line 3"),
        ("a.json", "a.json record 3"),
        ("a.json.zst", "a.json.zst record 3"),
        ("s3://b/part-0.parquet", "s3://b/part-0.parquet record 3"),
        ("saved/data-00000.arrow", "saved/data-00000.arrow record 3"),
    ],
)
def test_a_record_has_a_line_only_where_its_file_has_lines(file: str, said: str) -> None:
    assert located(file, 3) == said
