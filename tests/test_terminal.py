"""The summary of a run says all that was done to the rows."""

import time
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from make_payloads import EXPECTATION, make_check_results, make_decontamination, make_proof
from rich.console import Console

from tunewright.artifacts import (
    CheckedRows,
    Prompts,
    Registered,
    Rows,
    Splits,
    Tokens,
    UniqueRows,
    Verdict,
    VerdictPage,
)
from tunewright.cli import terminal
from tunewright.flows.calls import Step
from tunewright.flows.outcome import Outcome, too_few_test_rows, worth_a_look
from tunewright.machine import addresses
from tunewright.machine.addresses import Addresses
from tunewright.reports.account import MOST_BOILERPLATE, leak_sentence


def summary(**rows: Any) -> str:
    """Return the summary printed after a run that ended with ingest."""
    record = Rows(num_read=20, num_rows=19, num_quarantined=1, reasons={"bad_json": 1}, detected={}, **rows)
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, Outcome.of([Step(stage="ingest", state="ran", record=record)]), "x.yaml")
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_repairs_are_counted_where_some_were_made() -> None:
    assert "repaired: mojibake 12, nfc 3" in summary(repaired={"mojibake": 12, "nfc": 3})
    assert "repaired" not in summary()


def test_the_time_of_the_whole_command_is_that_of_the_stages_and_the_rest() -> None:
    record = Rows(num_read=20, num_rows=20, num_quarantined=0, reasons={}, detected={})
    console = Console(file=StringIO(), width=120, highlight=False)
    step = Step(stage="ingest", state="ran", record=record, seconds=0.25)
    terminal.show_outcome(console, Outcome.of([step]), "x.yaml")
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    whole = time.time() - psutil.Process().create_time()
    rest, in_all = (float(shown.split(name)[1].split()[0]) for name in ("\nstart, waiting", "\nin all"))
    assert in_all == pytest.approx(whole, abs=2.0)
    assert rest + 0.25 == pytest.approx(in_all, abs=0.11)


def test_the_reasons_of_rows_that_did_not_stay_are_said_to_be_that() -> None:
    assert "\nquarantined or removed: bad_json 1\n" in summary()


def test_the_file_of_duplicates_is_not_called_quarantined(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=120, highlight=False)
    rows = Rows(folder=tmp_path, num_read=9, num_rows=8, num_quarantined=1, reasons={}, detected={})
    unique = UniqueRows(folder=tmp_path, num_rows=6, num_removed=2, reasons={}, boilerplate=())
    steps = [Step(stage=stage, state="ran", record=made) for stage, made in (("ingest", rows), ("dedupe", unique))]
    terminal.show_outcome(console, Outcome.of(steps), "x.yaml")
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert f"\nquarantined         {tmp_path / 'quarantine.parquet'}\n" in shown
    assert f"\nduplicates          {tmp_path / 'removed.parquet'}\n" in shown


def test_the_verdict_page_is_the_first_link(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=120, highlight=False)
    page = VerdictPage(folder=tmp_path, num_rows=9, suggestions=())
    terminal.show_outcome(console, Outcome.of([Step(stage="verdict_page", state="ran", record=page)]), "x.yaml")
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert f"\n\nverdict page        {tmp_path / 'report.html'}\nnext\n" in shown


def shown_of(alias: str = "", tracking_uri: str | None = None) -> str:
    """The summary of a run that registered version 1 of triage."""
    registered = Registered(
        name="triage",
        version="1",
        alias=alias,
        uri="models:/triage/1",
        run_id="r",
        version_run_id="r",
        experiment_id="7",
        tracking_uri=tracking_uri,
    )
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, Outcome.of([Step(stage="register", state="ran", record=registered)]), "x.yaml")
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_link_that_nothing_serves_stands_behind_the_command_that_serves_it(home: Path) -> None:
    link = "#/experiments/7/runs/r?workflowType=machine_learning"

    serves = f"mlflow ui --backend-store-uri sqlite:///{home / 'mlflow.db'}"
    assert f"\nin MLflow           http://127.0.0.1:5000/{link} (to open it, start: {serves})\n" in shown_of()
    up = Addresses(pid=1, prefect="http://127.0.0.1:4300", mlflow="http://127.0.0.1:5300", pool="local")
    with addresses.held() as file:
        file.write_text(up.model_dump_json())
        assert f"\nin MLflow           http://127.0.0.1:5300/{link}\n" in shown_of()


def test_the_next_commands_say_where_the_model_is() -> None:
    said, where = shown_of("pilot", "http://mlflow:5000"), "--alias pilot --tracking-uri http://mlflow:5000 "
    assert f"\n  tunewright predict triage FILE {where}" in said
    assert f"\n  tunewright serve triage {where}" in said


def test_prompts_with_fewer_examples_than_chosen_are_warned_of_in_the_summary() -> None:
    said = "few_shot: 3 of 9 test prompts have fewer examples than chosen"
    prompts = Prompts(chosen={"few_shot": "8 examples"}, num_shortened={"few_shot": 3}, warned=(said,))
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, Outcome.of([Step(stage="prompt", state="ran", record=prompts)]), "x.yaml")
    assert f"\n{said}\n" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_worth_a_look_says_how_many_of_what(tmp_path: Path) -> None:
    expectations = [
        EXPECTATION | {"name": name, "fault": fault, "of_set": of_set, "failed": failed}
        for name, fault, of_set, failed in (
            ("language", "the prompt seems not to be in en (de 1,150, fr 50)", False, 1_200),
            ("language", "the answer seems not to be in en", False, 0),
            ("secrets", "a text holds a secret", False, 1),
            ("conflicting_answers", "the prompt has more than max_answers=1 different answers", False, 10),
            ("source_drift", "sources are not those of the last accepted version", True, 1),
        )
    ]
    said = {"expectations": expectations, "user_provided_splits": ["3 of the 40 records of the user-provided test set"]}
    make_check_results(**said).save(tmp_path)
    found = {
        "language": 1_200,
        "secrets": 1,
        "conflicting_answers": 10,
        "source_drift": 1,
        "given_test_rows_quarantined": 3,
    }
    checked = CheckedRows(folder=tmp_path, num_rows=9, num_quarantined=0, reasons={}, findings=found)
    splits = Splits(
        num_train=7,
        num_validation=1,
        num_test=1,
        num_clusters=9,
        findings={"too_small": 1},
        largest_similarity=0,
        random_leak_share=0,
    )
    steps = [Step(stage=stage, state="ran", record=made) for stage, made in (("check", checked), ("split", splits))]
    assert worth_a_look(Outcome.of(steps)) == [
        "language: the prompt seems not to be in en (de 1,150, fr 50), 1,200 rows",
        "secrets: a text holds a secret, 1 row",
        "conflicting_answers: 1 prompt has more than one answer, in 10 rows",
        "source_drift: sources are not those of the last accepted version",
    ]
    console = Console(file=StringIO(), width=120, highlight=False)
    rows = Rows(num_read=9, num_rows=9, num_quarantined=0, reasons={}, detected={})
    terminal.show_outcome(console, Outcome.of([Step(stage="ingest", state="ran", record=rows), steps[0]]), "x.yaml")
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "findings (rows in the data report, below):\n  language: the prompt seems not to be in en (de" in shown
    assert shown.index("findings (rows") < shown.index("data report  ")
    of_split = {"contaminated": 1_200, "validation_in_held_out": 1, "test_in_held_out": 2, "train_newer_than_test": 1}
    found_by_split = [Step(stage="split", state="ran", record=splits.model_copy(update={"findings": of_split}))]
    assert worth_a_look(Outcome.of(found_by_split)) == [
        "1,200 training rows share a passage with an evaluation row",
        "1 validation row shares a passage with a record of data.held_out",
        "2 test rows share a passage with a record of data.held_out",
        "1 training row is newer than the oldest test row",
    ]
    make_proof(smallest_visible_difference=0.1576).save(tmp_path)
    few = splits.model_copy(update={"folder": tmp_path, "num_test": 50})
    gain = "smallest detectable gain in a score from 0 to 1 about .16"
    assert too_few_test_rows(few) == f"warning: only 50 test rows in 20 independent clusters, {gain} ({ESTIMATED})"
    said = {"decision": "inconclusive", "because": "", "sentence": "Inconclusive.", "metric": "exact_match"}
    verdict = Verdict.model_validate(
        {
            **said,
            "rows_needed": None,
            "differences": {},
            "intervals": {},
            "smallest_visible": 0.304,
            "visible_against": "base",
        }
    )
    gain = "smallest detectable gain in exact_match over the base: .30 (80 % power, from these answers"
    measured = f"warning: only 50 test rows in 20 independent clusters, {gain}; estimated before: .16)"
    assert too_few_test_rows(few, verdict) == measured, "both figures, as they differ"
    for decided in ("promote", "keep"):
        assert too_few_test_rows(few, verdict.model_copy(update={"decision": decided})) == "", "they were enough"
    make_proof(smallest_visible_difference=0.05, test_clusters=500).save(tmp_path)
    many = splits.model_copy(update={"folder": tmp_path, "num_test": 500, "findings": {}})
    tokens = Tokens.model_construct(num_test=500)
    assert too_few_test_rows(many, tokens=tokens) == ""
    told = too_few_test_rows(many, tokens=Tokens.model_construct(num_test=20, num_test_clusters=20))
    assert told.startswith("warning: only 20 test rows, smallest detectable gain in a score from 0 to 1 about .")
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, Outcome.of([Step(stage="split", state="ran", record=few)]), "x.yaml")
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "too_small" not in shown
    assert "warning: only" not in shown, "the log of split has warned of it, and nothing has measured it since"
    assert too_few_test_rows(few.model_copy(update={"findings": {}})) == ""


def test_few_test_rows_are_those_that_render_left(tmp_path: Path) -> None:
    make_proof(smallest_visible_difference=0.13, test_clusters=110).save(tmp_path)
    splits = Splits(
        folder=tmp_path,
        num_train=433,
        num_validation=10,
        num_test=110,
        num_clusters=553,
        findings={"too_small": 110},
        largest_similarity=0,
        random_leak_share=0,
    )
    rows = Rows(num_read=553, num_rows=553, num_quarantined=0, reasons={}, detected={})
    tokens = Tokens.model_construct(
        folder=tmp_path,
        num_train=300,
        num_validation=8,
        num_test=25,
        num_test_clusters=24,
        num_quarantined=220,
        reasons={"too_long": 220},
    )
    made = (("ingest", rows), ("split", splits), ("render", tokens))
    outcome = Outcome.of([Step(stage=stage, state="ran", record=record) for stage, record in made])
    assert outcome.findings()["too_small"] == 25
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, outcome, "x.yaml")
    assert "warning: only 25 test rows in 24 independent clusters, smallest detectable" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_undesirable_rows_are_no_test_rows_that_render_left_out(tmp_path: Path) -> None:
    make_proof(smallest_visible_difference=0.19, test_clusters=60).save(tmp_path)
    splits = Splits(
        folder=tmp_path,
        num_train=433,
        num_validation=10,
        num_test=100,
        num_clusters=553,
        findings={"too_small": 60},
        undesirable=(0, 0, 40),
        largest_similarity=0,
        random_leak_share=0,
    )
    told = too_few_test_rows(splits, tokens=Tokens.model_construct(num_test=60))
    assert told.startswith("warning: only 60 test rows, smallest detectable gain in a score from 0 to 1 about .19 (")


ESTIMATED = "80 % power, estimated as if one model alone were right on 20 % of the rows"
CHANGE = "          # after a change that the verdict page advises (What to try next)"
NEW = f"{CHANGE}; NEW: another value than in this run"


@pytest.mark.parametrize(
    ("decision", "what", "next_line"),
    [
        ("keep", "x.yaml", f"  tunewright run x.yaml{CHANGE}"),
        ("keep", "x.yaml --set method.rank=8", f"  tunewright run x.yaml --set method.rank=8{CHANGE}"),
        (
            "keep",
            "'a b.yaml' --set training.max_steps=20",
            f"  tunewright run 'a b.yaml' --set training.max_steps=NEW{NEW}",
        ),
        (
            "keep",
            "x.yaml --set training.max_steps=20 --set method.rank=8",
            f"  tunewright run x.yaml --set training.max_steps=NEW --set method.rank=8{NEW}",
        ),
        ("promote", "x.yaml --set training.max_steps=20", "  tunewright plan x.yaml --set training.max_steps=20"),
    ],
)
def test_after_a_verdict_that_promotes_nothing_a_change_comes_before_the_next_run(
    tmp_path: Path, decision: str, what: str, next_line: str
) -> None:
    said = {
        "decision": decision,
        "sentence": "Not promoted: it is worse.",
        "metric": "exact_match",
        "rows_needed": None,
    }
    verdict = Verdict.model_validate(said | {"differences": {}, "intervals": {}})
    page = VerdictPage(folder=tmp_path, num_rows=9, suggestions=("Train longer: more training.max_steps: 10 steps",))
    steps = [
        Step(stage=stage, state="ran", record=made) for stage, made in (("decide", verdict), ("verdict_page", page))
    ]
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, Outcome.of(steps), what)
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert shown.partition("\nnext\n")[2].splitlines()[0] == next_line


def test_the_leak_sentence_counts_the_sentences_that_were_not_compared() -> None:
    some = UniqueRows(num_rows=9, num_removed=0, reasons={}, boilerplate=("please", "thank you"))
    assert "(threshold 0.60)." in leak_sentence(make_proof(), some.model_copy(update={"boilerplate": ()}))
    said = "(threshold 0.60; 2 sentences that many rows share are left out: dedupe.boilerplate_share)."
    assert said in leak_sentence(make_proof(), some)
    most = some.model_copy(update={"boilerplate": ("please",) * MOST_BOILERPLATE})
    assert "; at least 20 sentences that many rows share are left out: " in leak_sentence(make_proof(), most)


def test_the_leak_sentence_shows_that_a_similarity_is_below_the_threshold() -> None:
    proof = make_proof().model_copy(
        update={"largest_similarity": 11 / 13, "threshold": 0.85, "largest_pair": ("a", "b")}
    )
    assert "rows of different splits have a similarity of 0.846 (threshold 0.85)" in leak_sentence(proof)
    far = proof.model_copy(update={"largest_similarity": 0.5})
    assert "a similarity of 0.50 (threshold 0.85)" in leak_sentence(far)


def test_the_leak_sentence_counts_held_out_records_where_there_are_some() -> None:
    some = make_decontamination(held_out_records=1_200, by_partner={"test": 2, "held_out": 5}, removed=True)
    assert "held-out" not in leak_sentence(make_proof())
    assert leak_sentence(make_proof(decontamination=some)).endswith(
        "Training rows that share a passage or a prompt with the 1,200 held-out records: 5, removed."
    )
