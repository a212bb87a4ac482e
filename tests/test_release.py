"""A person decides which version carries the alias, and every move of it is kept with who, when and why."""

import asyncio
import json
import os
import re
import shutil
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch
from uuid import UUID

import pytest
from conftest import Harness
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists, Pause
from prefect.flow_engine import run_flow
from prefect.flows import load_flow_from_flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Completed
from registered import aliases, versions
from rich.console import Console
from servers import free_port
from typer.testing import CliRunner

from tunewright.artifacts import Base, Registered
from tunewright.cli import main
from tunewright.cli.release.view import show_history
from tunewright.config import Data, Gate, Model, Registry, Settings, Source
from tunewright.errors import ConfigError, TunewrightError
from tunewright.flows import release as asking
from tunewright.flows.calls import Run, Step
from tunewright.registry import rehearsal, release
from tunewright.registry.alias_history import Event, past_champions
from tunewright.registry.alias_state import deciding_run, verdict_of
from tunewright.registry.release import History, as_now
from tunewright.registry.tracking import connected
from tunewright.store import pipelines

REGISTRY = Registry(name="triage")
ASKS = {"gate": Gate(approval=True)}
Make = Callable[..., Registered]


@pytest.fixture
def make(register_candidate: Make) -> Make:
    return register_candidate


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions that were loaded again before the alias moved to them; what that does is tested once."""
    asked: list[str] = []

    def again(_: Any, version: Any) -> rehearsal.AnsweredAgain:
        asked.append(str(version.version))
        return rehearsal.AnsweredAgain(3, 0)

    monkeypatch.setattr("tunewright.registry.rehearsal.again", again)
    return asked


def happened() -> list[tuple[str, str, str, str]]:
    """Return each event's kind, its version, and the alias' version before and after; oldest first."""
    events = release.look_up(REGISTRY).events[::-1]
    return [(event.what, event.version, event.before, event.after) for event in events]


def tags(number: int) -> dict[str, str]:
    return versions()[number - 1].tags


def headline(number: int) -> str:
    return versions()[number - 1].description.splitlines()[0]


def told(number: int) -> str:
    """The verdict of the run that decided last, in MLflow's list of runs."""
    with connected(REGISTRY) as client:
        return client.get_run(deciding_run(versions()[number - 1])).data.tags["verdict"]


def test_a_version_that_waits_gets_the_alias_once_a_person_says_yes(make: Make) -> None:
    registered = make(**ASKS)
    assert (registered.alias, registered.current_version, registered.approval) == ("", "", "waiting")
    assert aliases() == {}
    assert tags(1)["approval"] == "waiting"
    waits = "Waiting for approval: better than the base by 0.82. To approve: tunewright release approve triage 1"
    assert headline(1).startswith(waits)
    assert registered.stands.startswith(waits)
    assert told(1) == "promote; waiting"
    (waiting,) = release.look_up(REGISTRY).waiting
    assert (waiting.version, waiting.sentence) == ("1", "Waiting for approval: better than the base by 0.82.")
    assert waiting.page.endswith(f"/{registered.run_id}/artifacts/reports/verdict_page/report.html")
    assert Path(waiting.page.removeprefix("file://")).is_file(), "as no server of MLflow is up"

    done = release.decide(REGISTRY, None, "approve", by="ann", why="looked at\n 20 answers")
    assert (done.event.by, done.event.why, done.rehearsed) == ("ann", "looked at 20 answers", 3)
    assert aliases() == {"champion": "1"}
    assert happened() == [("approved", "1", "", "1")]
    assert headline(1).startswith("Promoted: better than the base by 0.82. Approved by ann on 20")
    assert told(1) == "promote; approved"
    with pytest.raises(TunewrightError, match=r"version 1 of triage does not wait for approval: Promoted: better"):
        release.decide(REGISTRY, "1", "approve", by="bob", why="again")
    now = as_now(REGISTRY, registered)
    assert (now.alias, now.current_version, now.approval) == ("champion", "1", "approved")


def test_who_decides_on_a_version_reads_the_warnings_of_its_verdict(make: Make) -> None:
    registered = make(warnings=("the test set is small", "not promoted before"), **ASKS)
    _, shown, said = tunewright("history", "triage")
    assert "  warning: the test set is small\n  warning: not promoted before\n" in shown
    assert said["waiting"][0]["warnings"] == ["the test set is small", "not promoted before"]
    for text in (versions()[0].description, note(registered.run_id)):
        assert "- Warning: the test set is small\n- Warning: not promoted before\n" in text


def note(run_id: str) -> str:
    """Return the description of a run in MLflow."""
    with connected(REGISTRY) as client:
        return client.get_run(run_id).data.tags["mlflow.note.content"]


@pytest.mark.parametrize("decision", ["approve", "reject"])
@pytest.mark.usefixtures("rehearsed")
def test_nothing_in_mlflow_says_that_a_version_waits_on_which_a_person_decided(
    decision: Literal["approve", "reject"], make: Make
) -> None:
    make(decision="keep")
    waiting = make(sentence="Waiting for approval: exact match .95.", **ASKS)  # by a later run, whose card it now has
    assert waiting.version == "1" and waiting.run_id != waiting.version_run_id
    assert release.waits(REGISTRY).page.endswith(f"/{waiting.run_id}/artifacts/reports/verdict_page/report.html")
    for text in (versions()[0].description, note(waiting.run_id)):
        assert text.startswith("Waiting for approval: exact match .95. To approve: tunewright release approve triage 1")
        assert "\nPromotion needs approval: tunewright release history triage\n" in text
    card = versions()[0].description.partition("[The verdict page]")[2]
    release.decide(REGISTRY, "1", decision, by="ann", why="looked <at> it")
    first = "Passed the gate: exact match .95. Approved by ann" if decision == "approve" else "Rejected by ann on 20"
    for text in (versions()[0].description, note(waiting.run_id)):
        assert text.startswith(first)
        assert "looked &lt;at&gt; it" in text.splitlines()[0]
        assert "aiting for approval" not in text and "needs approval" not in text
        assert text.partition("[The verdict page]")[2].startswith(card), "the rest of the card stays"
    assert tags(1)["sentence"] == "Passed the gate: exact match .95."
    found = note(waiting.version_run_id).splitlines()
    assert found[0].startswith("Decided again by [a later run]") and found[2].startswith("Not promoted: not better.")


def test_a_rejected_version_gets_no_alias_from_a_pipeline_again(make: Make, rehearsed: list[str]) -> None:
    make(**ASKS)
    release.decide(REGISTRY, "1", "reject", by="Ann <a@b>", why="rude")
    assert aliases() == {}
    assert headline(1).startswith("Rejected by Ann &lt;a@b&gt; on 20")  # it is Markdown
    assert told(1) == "promote; rejected"
    again = make(gate=Gate(approval=False, max_test_set_uses=21))
    assert (again.version, again.alias, again.approval) == ("1", "", "rejected")
    assert again.stands.endswith(": rude. Verdict: Promoted: better than the base by 0.82.")
    assert happened() == [("rejected", "1", "", "")]
    release.promote(REGISTRY, "1", by="bob", why="not so rude")
    assert aliases() == {"champion": "1"}
    assert rehearsed == ["1"]
    assert happened()[1:] == [("promoted by hand", "1", "", "1")]
    assert headline(1).startswith("Promoted: better than the base by 0.82. Promoted by hand by bob on 20")


def test_a_later_candidate_supersedes_one_that_waits_and_says_so(make: Make) -> None:
    first = make(**ASKS)
    second = make(digest="b", **ASKS)
    assert second.superseded == ("1",)
    assert [waiting.version for waiting in release.look_up(REGISTRY).waiting] == ["2"]
    assert happened() == [("superseded", "1", "", "")]
    assert as_now(REGISTRY, first).stands.startswith("Superseded by version 2 on 20")
    assert make(digest="c").superseded == ("2",)
    assert aliases() == {"champion": "3"}
    with pytest.raises(TunewrightError, match="no version of triage waits for approval"):
        release.decide(REGISTRY, None, "approve", by="ann", why="good")


def test_a_candidate_that_is_kept_supersedes_nobody_and_no_longer_waits_itself(make: Make) -> None:
    make(**ASKS)
    make(digest="b", decision="keep", **ASKS)
    assert [waiting.version for waiting in release.look_up(REGISTRY).waiting] == ["1"]
    make(decision="keep", gate=Gate(approval=True, margin=0.9))
    assert release.look_up(REGISTRY).waiting == []
    assert release.look_up(REGISTRY).events[0].why == "Not promoted: not better."


def test_a_version_that_was_not_compared_with_the_champion_is_not_approved(make: Make, rehearsed: list[str]) -> None:
    make()
    make(digest="b", decision="keep")
    make(digest="c", challenged="1", **ASKS)
    release.promote(REGISTRY, "2", by="ann", why="the first answers too slowly")
    with pytest.raises(TunewrightError, match=r"version 3 .* was compared with version 1, but version 2 has"):
        release.decide(REGISTRY, None, "approve", by="ann", why="good")
    assert aliases() == {"champion": "2"}


def test_every_move_is_kept_also_of_a_version_that_comes_back(make: Make, rehearsed: list[str]) -> None:
    make()
    make(digest="b", challenged="1")
    release.rollback(REGISTRY, by="ann", why="complaints")
    release.promote(REGISTRY, "2", by="bob", why="they were about something else")
    assert happened() == [
        ("promoted", "1", "", "1"),
        ("promoted", "2", "1", "2"),
        ("rolled back", "1", "2", "1"),
        ("promoted by hand", "2", "1", "2"),
    ]
    event = release.look_up(REGISTRY).events[2]
    assert (event.by, event.why, event.verdict) == ("pipeline", "Promoted: better than the base by 0.82.", "promote")
    assert event.gain == "+.82 [.75, .88] exact match against the base"
    assert rehearsed == ["1", "2"]


def test_of_two_commands_at_once_the_second_moves_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for digest in ("one", "two", "three"):
        make(digest=digest, decision="keep")
    release.promote(REGISTRY, "1", by="ann", why="first")

    def meanwhile(client: Any, version: Any) -> rehearsal.AnsweredAgain:
        none = rehearsal.AnsweredAgain(0, 0)
        monkeypatch.setattr("tunewright.registry.rehearsal.again", lambda *_: none)
        release.promote(REGISTRY, "2", by="bob", why="faster")
        return none

    monkeypatch.setattr("tunewright.registry.rehearsal.again", meanwhile)
    said = "version 2 became champion while this command checked version 3; nothing was moved: look at tunewright"
    with pytest.raises(TunewrightError, match=said):
        release.promote(REGISTRY, "3", by="ann", why="second")
    assert aliases() == {"champion": "2"}
    assert happened()[-1] == ("promoted by hand", "2", "1", "2")


def test_what_a_person_rolled_back_no_pipeline_promotes_again(make: Make, rehearsed: list[str]) -> None:
    make()
    make(digest="b", challenged="1")
    release.rollback(REGISTRY, by="ann", why="complaints")
    again = make(digest="b", challenged="1", gate=Gate(max_test_set_uses=21))
    assert (again.version, again.alias, again.current_version, again.approval) == ("2", "", "1", "rolled back")
    assert aliases() == {"champion": "1"}
    assert headline(2).startswith("Rolled back by ann on 20")
    assert (told(1), told(2)) == ("promote", "promote; rolled back")


def test_a_rollback_to_a_version_that_waits_again_ends_its_wait(make: Make, rehearsed: list[str]) -> None:
    make()
    make(digest="b", challenged="1")
    assert make(gate=Gate(approval=True, max_test_set_uses=21), challenged="2").approval == "waiting"
    release.rollback(REGISTRY, by="ann", why="complaints")
    assert aliases() == {"champion": "1"}
    assert release.look_up(REGISTRY).waiting == []
    assert headline(1).startswith("Promoted: better than the base by 0.82. Rolled back to by ann on 20")
    assert told(1) == "promote; rolled back to"


def test_a_rollback_to_a_version_that_never_had_the_alias_is_told_what_moves_it_there(make: Make) -> None:
    make()
    worse = make(digest="b", challenged="1", gate=Gate(approval=True))
    assert (worse.version, aliases()) == ("2", {"champion": "1"})
    said = r"^--to 2: version 2 was never champion; tunewright release promote triage 2 .*moves it there all the same$"
    with pytest.raises(ConfigError, match=said):
        release.rollback(REGISTRY, "2", by="ann", why="complaints")
    assert aliases() == {"champion": "1"}


def test_one_rollback_after_another_goes_further_back(make: Make, rehearsed: list[str]) -> None:
    make()
    with pytest.raises(
        TunewrightError,
        match=r"^triage: version 1 is the first champion; there is no earlier one; tunewright release withdraw triage "
        r'--reason "\.\.\." takes champion off it$',
    ):
        release.rollback(REGISTRY, by="ann", why="complaints")
    make(digest="b", challenged="1")
    make(digest="c", challenged="2")
    release.rollback(REGISTRY, by="ann", why="complaints")
    assert aliases() == {"champion": "2"}
    with pytest.raises(ConfigError, match=r'--to "3": accepted: versions that were champion before: 1; '):
        release.rollback(REGISTRY, "3", by="ann", why="complaints")
    release.rollback(REGISTRY, by="ann", why="complaints")
    assert aliases() == {"champion": "1"}
    with pytest.raises(TunewrightError, match="nothing to roll"):
        release.rollback(REGISTRY, by="ann", why="complaints")


def test_a_bad_first_version_is_withdrawn_and_no_pipeline_promotes_it_again(make: Make, rehearsed: list[str]) -> None:
    make()
    done = release.withdraw(REGISTRY, by="ann", why="it insults people")
    assert (done.event.version, done.event.before, done.event.after, done.rehearsed) == ("1", "1", "", 0)
    assert aliases() == {}
    assert not release.look_up(REGISTRY).is_elsewhere
    assert headline(1).startswith("Withdrawn by ann on 20")
    assert told(1) == "promote; withdrawn"
    again = make(gate=Gate(max_test_set_uses=21))
    assert (again.version, again.alias, again.current_version, again.approval) == ("1", "", "", "withdrawn")
    with pytest.raises(TunewrightError, match="no version of triage is champion: there is nothing to withdraw"):
        release.withdraw(REGISTRY, by="ann", why="it insults people")
    said = (
        "triage has nothing to roll champion back to: version 1 was withdrawn, and no other version was champion "
        'before; tunewright release promote triage VERSION --reason "..." moves it to any'
    )
    with pytest.raises(TunewrightError, match=f"^{re.escape(said)}$"):
        release.rollback(REGISTRY, by="ann", why="complaints")
    make(digest="b")
    assert aliases() == {"champion": "2"}
    said = "nothing to roll champion back to: version 2 has it, version 1 was withdrawn, and no other version was"
    with pytest.raises(TunewrightError, match=said):
        release.rollback(REGISTRY, by="ann", why="complaints")
    release.promote(REGISTRY, "1", by="bob", why="it was a quotation")
    assert happened() == [
        ("promoted", "1", "", "1"),
        ("withdrawn", "1", "1", ""),
        ("promoted", "2", "", "2"),
        ("promoted by hand", "1", "2", "1"),
    ]
    assert rehearsed == ["1"]


def test_each_run_of_a_version_says_what_became_of_it(make: Make) -> None:
    make(decision="keep")
    again = make(decision="keep", gate=Gate(max_test_set_uses=21))
    assert again.run_id != again.version_run_id

    def told_by_each() -> set[str]:
        with connected(REGISTRY) as client:
            return {client.get_run(run).data.tags["verdict"] for run in (again.version_run_id, again.run_id)}

    release.promote(REGISTRY, "1", by="ann", why="good enough")
    assert told_by_each() == {"not promoted; promoted by hand"}
    release.withdraw(REGISTRY, by="ann", why="it is not")
    assert told_by_each() == {"not promoted; withdrawn"}


def test_after_a_withdrawal_a_rollback_goes_to_the_version_before_and_a_waiting_one_can_be_approved(
    make: Make, rehearsed: list[str]
) -> None:
    make()
    make(digest="b", challenged="1")
    make(digest="c", challenged="2", **ASKS)
    release.withdraw(REGISTRY, by="ann", why="complaints")
    assert release.rollback(REGISTRY, by="ann", why="back to the first").event.after == "1"
    release.withdraw(REGISTRY, by="ann", why="complaints about that too")
    with pytest.raises(TunewrightError, match=r"version 2 was withdrawn, version 1 was withdrawn, and no"):
        release.rollback(REGISTRY, by="ann", why="complaints about both")
    assert release.decide(REGISTRY, None, "approve", by="ann", why="good").event.after == "3"
    assert aliases() == {"champion": "3"}


def test_a_version_that_was_rolled_back_or_deleted_is_nothing_to_roll_back_to(make: Make, rehearsed: list[str]) -> None:
    make()
    make(digest="b", challenged="1")
    release.rollback(REGISTRY, by="ann", why="complaints")
    release.withdraw(REGISTRY, by="ann", why="complaints")
    with pytest.raises(TunewrightError, match=r"version 2 was rolled back, version 1 was withdrawn, and no"):
        release.rollback(REGISTRY, by="ann", why="complaints")
    make(digest="c")
    make(digest="d", challenged="3")
    with connected(REGISTRY) as client:
        client.delete_model_version("triage", "3")
    with pytest.raises(TunewrightError, match=r"version 4 has it, .*version 3 was deleted, and no"):
        release.rollback(REGISTRY, by="ann", why="complaints")


def moves(*each: tuple[str, str, str]) -> list[Event]:
    common = {"when": "", "alias": "champion", "by": "", "why": "", "verdict": "", "gain": ""}
    made = ({"what": what, "version": after, "before": before, "after": after} for what, before, after in each)
    return [Event.model_validate(common | move) for move in made]


@pytest.mark.parametrize(
    ("events", "held", "expected"),
    [
        ([], "", []),
        ([], "4", ["4"]),
        ([("promoted", "", "1"), ("promoted", "1", "2")], "2", ["1", "2"]),
        ([("promoted", "", "1"), ("promoted", "1", "2"), ("rolled back", "2", "1")], "1", ["1"]),
        ([("promoted", "", "1"), ("promoted", "5", "2")], "2", ["1", "5", "2"]),  # somebody put it on 5
        ([("promoted", "", "1"), ("promoted", "1", "2")], "7", ["1", "2", "7"]),
        ([("promoted", "", "1"), ("promoted", "1", "2"), ("promoted by hand", "2", "1")], "1", ["1", "2", "1"]),
        ([("promoted", "", "1"), ("withdrawn", "1", "")], "", []),
        ([("promoted", "", "1"), ("promoted", "1", "2"), ("withdrawn", "2", "")], "", ["1"]),
        ([("promoted", "", "1"), ("withdrawn", "1", ""), ("promoted", "", "2")], "2", ["2"]),
    ],
)
def test_what_a_rollback_goes_back_through(events: list[tuple[str, str, str]], held: str, expected: list[str]) -> None:
    assert past_champions(moves(*events), held) == expected


def test_the_alias_moves_to_no_version_that_answers_otherwise_than_it_was_measured(make: Make, home: Path) -> None:
    make()
    make(digest="b", challenged="1")
    with connected(REGISTRY) as client:
        version = client.get_model_version("triage", "1")
        kept = rehearsal.kept(client, version)
        others = [row.model_copy(update={"answer": f"not {row.answer}"}) for row in kept.rows]
        rehearsal._keep(client, version, kept.model_copy(update={"rows": tuple(others)}))
    with pytest.raises(TunewrightError, match=r"models:/triage/1 is not the model that was measured"):
        release.rollback(REGISTRY, by="ann", why="complaints")
    assert aliases() == {"champion": "2"}
    assert happened()[-1][0] == "promoted"
    (file,) = (home / "mlartifacts").glob(f"{versions()[0].run_id}/artifacts/answers/rehearsal.json")
    file.unlink()
    with pytest.raises(TunewrightError, match="run its pipeline again with --refresh register, which stores them"):
        release.rollback(REGISTRY, by="ann", why="complaints")


def test_a_version_whose_base_is_not_here_cannot_be_approved_here(make: Make, tiny_base: Base, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base.weights, copy)
    make(base=tiny_base.model_copy(update={"reference": str(copy), "folder": copy}), **ASKS)
    shutil.rmtree(copy)
    with pytest.raises(TunewrightError, match=rf"models:/triage/1 cannot be loaded here, .*{copy}"):
        release.decide(REGISTRY, None, "approve", by="ann", why="good")
    assert aliases() == {}
    assert tags(1)["approval"] == "waiting"


def tunewright(*arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what is shown and what a program reads."""
    done = CliRunner().invoke(main.app, ["release", *arguments, "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stderr, json.loads(done.stdout.splitlines()[-1])


def test_what_is_decided_at_the_command_line(make: Make, rehearsed: list[str]) -> None:
    make()
    make(digest="b", challenged="1", **ASKS)
    code, shown, said = tunewright("history", "triage")
    assert code == 0
    assert "version 1 of triage is @champion" in shown
    assert "version 2 waits for approval since" in shown
    assert said["current_version"] == "1"
    assert [waiting["version"] for waiting in said["waiting"]] == ["2"]

    code, shown, said = tunewright("approve", "triage", "--reason", "good", "--by", "ann")
    assert (code, said["what"], said["version"], said["before"], said["by"]) == (0, "approved", "2", "1", "ann")
    assert "@champion: version 1 -> version 2" in shown
    with patch("getpass.getuser", lambda: "carol"):
        code, shown, said = tunewright("rollback", "triage", "--reason", "complaints")
    assert shown.startswith("Rolled back to version 1 of triage")
    assert (code, said["after"], said["by"]) == (0, "1", "carol")
    assert aliases() == {"champion": "1"}
    code, shown, said = tunewright("history", "triage")
    assert [event["what"] for event in said["events"]] == ["rolled back", "approved", "promoted"]
    (head,) = [line for line in shown.splitlines() if line.startswith("when (UTC)")]
    assert head.split()[2:6] == ["what", "version", "replaced", "by"]
    moves = [re.split("  +", line)[1:4] for line in shown.splitlines() if line.startswith("20")]
    assert moves == [
        ["rolled back to", "1", "2"],
        ["approved", "2", "1"],
        ["promoted", "1", "none"],
    ]
    assert not said["moved_elsewhere"]
    code, shown, said = tunewright("withdraw", "triage", "--reason", "worse still", "--by", "ann")
    assert shown.startswith("Withdrawn: version 1 of triage")
    assert "@champion: version 1 -> no version; the next run has no champion to beat" in shown
    assert (code, said["what"], said["version"], said["before"], said["after"]) == (0, "withdrawn", "1", "1", "")
    code, shown, said = tunewright("history", "triage")
    assert "no version of triage is @champion" in shown
    assert (said["current_version"], said["moved_elsewhere"], said["events"][0]["what"]) == (None, False, "withdrawn")


@pytest.mark.parametrize(
    ("near_ties", "line"),
    [
        (0, "it answers 8 test rows as it did when measured\n"),
        (1, "it answers 7 of 8 test rows as it did when measured, and 1 other differently from a near tie on\n"),
        (2, "it answers 6 of 8 test rows as it did when measured, and 2 others differently from a near tie on\n"),
    ],
)
def test_answers_from_a_near_tie_are_not_counted_among_those_as_measured(
    make: Make, monkeypatch: pytest.MonkeyPatch, near_ties: int, line: str
) -> None:
    make(decision="keep")
    monkeypatch.setattr(rehearsal, "again", lambda *_: rehearsal.AnsweredAgain(8, near_ties))
    code, shown, read = tunewright("promote", "triage", "1", "--reason", "x")
    assert (code, read["rehearsed"], read["near_ties"]) == (0, 8, near_ties)
    assert f"reloaded, {line}" in shown
    assert (rehearsal.SAME_ANSWERS in shown) == (near_ties > 1)


def test_a_new_alias_is_said_to_be_new(make: Make, rehearsed: list[str]) -> None:
    make()
    promote = ("promote", "triage", "1", "--reason", "x", "--alias", "champoin")
    _, shown, _ = tunewright(*promote)
    assert "@champoin is a new alias: no version had it before; triage has: champion. To remove it: tun" in shown
    tunewright("withdraw", "triage", "--reason", "typo", "--alias", "champoin")
    _, shown, _ = tunewright(*promote)
    assert "new alias" not in shown
    assert aliases() == {"champion": "1", "champoin": "1"}


def test_an_event_keeps_the_verdict_of_its_time_beside_the_latest(make: Make) -> None:
    make()
    make(decision="keep", sentence="Not promoted: it is no better.")
    shown = [line for line in tunewright("history", "triage")[1].splitlines() if line]
    _, said_of_version, _, event = [re.split("  +", line) for line in shown[1:5]]
    assert shown[1].split("  ")[0] == "version" and "latest verdict" in shown[1]
    assert (said_of_version[2], event[6]) == ("not promoted; @champion", "promote")


def test_a_history_names_verdicts_of_an_earlier_tunewright_as_of_today(make: Make) -> None:
    make(sentence="Waiting for approval: it is better.", **ASKS)
    make(decision="keep", sentence="Kept: a regression: it stops less.", gate=Gate(approval=True, margin=0.9))
    with connected(REGISTRY) as client:
        client.set_model_version_tag("triage", "1", "verdict", "keep: regression")
    _, shown, said = tunewright("history", "triage")
    assert said["versions"][0]["verdict"] == "keep: regression"
    assert "not promoted: regression" in shown and "Not promoted: a" in shown, "folded"
    assert "Kept" not in shown and "keep" not in shown


def test_a_driver_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    code, shown, _ = tunewright("history", "triage", "--tracking-uri", "mysql://h/d")
    assert (code, shown.count("\n")) == (2, 1)
    assert shown.startswith("error: --tracking-uri mysql://h/d: its driver MySQLdb is not installed; install it, or")


def test_an_address_in_the_environment_is_used_and_said(
    make: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(registry=Registry(name="triage", tracking_uri=(other := f"sqlite:///{tmp_path}/other.db")))
    assert tunewright("history", "triage")[1].startswith("error: ")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    note, first = tunewright("history", "triage")[1].splitlines()[:2]
    assert note == f"note: MLFLOW_TRACKING_URI={other} names the MLflow; --tracking-uri overrides it"
    assert first.startswith("version 1 of triage is @champion")
    assert os.environ["MLFLOW_TRACKING_URI"] == other
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@mlflow.example")
    code, shown, _ = tunewright("history", "triage")
    assert (code, shown.count("\n"), "secret" in shown) == (2, 1, False)
    assert shown.startswith("error: MLFLOW_TRACKING_URI: ") and "MLFLOW_TRACKING_USERNAME" in shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    assert "note: " not in tunewright("history", "triage")[1]


def test_a_rejection_of_the_first_version_says_that_none_is_champion(make: Make) -> None:
    make(**ASKS)
    _, shown, _ = tunewright("approve", "triage", "--reject", "--reason", "rude")
    assert "no version of triage is @champion\n" in shown and "stays" not in shown


def test_a_history_without_a_move_says_so_in_a_line(make: Make) -> None:
    make(**ASKS)
    _, shown, _ = tunewright("history", "triage")
    assert shown.startswith("no version of triage is @champion yet\n\nversion 1 waits")
    _, shown, _ = tunewright("history", "triage", "--alias", "other")
    assert shown.startswith("no version of triage is @other yet\n\nversion ")
    assert len(shown.splitlines()) == 4


def test_versions_are_listed_with_their_verdicts_before_there_is_a_champion(make: Make) -> None:
    make(decision="keep")
    make(digest="b", decision="inconclusive")
    code, shown, said = tunewright("history", "triage")
    assert code == 0 and said["current_version"] is None
    listed = [re.split("  +", line.strip()) for line in shown.splitlines()[2:]]
    gain = "+.82 [.75, .88] exact match against the base"
    assert [(line[0], *line[2:]) for line in listed] == [
        ("version", "latest verdict", "comparison"),
        ("2", "inconclusive", gain),
        ("1", "not promoted", gain),
    ]
    assert [(each["version"], each["verdict"]) for each in said["versions"]] == [("2", "inconclusive"), ("1", "keep")]
    make(digest="c")
    _, shown, _ = tunewright("history", "triage")
    assert "  promote; @champion  " in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("history", "triaje"), 2, '"triaje": no such model in sqlite:///.*; did you mean triage'),
        (("promote", "triage", "9", "--reason", "x"), 2, 'version "9" of triage: no such version; accepted: 1'),
        (("promote", "triage", "1", "--reason", "x"), 1, "version 1 of triage is champion already"),
        (("promote", "triage", "1", "--reason", " "), 2, "--reason: missing; accepted: why"),
        (("promote", "triage", "1", "--reason", "x" * 1001), 2, "--reason: has 1,001 characters"),
        (("approve", "triage", "--reason", "x", "--by", " "), 2, "--by: missing"),
        (("approve", "triage", "--reason", "x"), 1, "no version of triage waits for approval"),
        (
            ("rollback", "triage", "--reason", "x"),
            1,
            "triage: version 1 is the first champion; there is no earlier one",
        ),
        (("withdraw", "triage", "--reason", " "), 2, "--reason: missing; accepted: why"),
        (("withdraw", "triaje", "--reason", "x"), 2, '"triaje": no such model in sqlite:///.*; did you mean triage'),
        (("withdraw", "triage", "--reason", "x", "--alias", "other"), 1, "no version of triage is other"),
        (("history", "triage", "--alias", "v1"), 2, "--alias v1: refused; accepted: lower-case letters"),
        (("history", "triage", "--tracking-uri", "http://127.0.0.1:9"), 1, "MLflow does not answer"),
        (
            ("history", "triage", "--tracking-uri", "http://127.0.0.1:9"),
            1,
            "^error: --tracking-uri http://127.0.0.1:9: ",
        ),
        (
            ("history", "triage", "--tracking-uri", "foo://x"),
            2,
            "^error: --tracking-uri: 'foo://x' is not .*postgresql",
        ),
        (("history", "triage", "--tracking-uri", "mssql+none://h/d"), 1, "^error: --tracking-uri mssql.none://h/d: "),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(make: Make, arguments: tuple[str, ...], code: int, message: str) -> None:
    make()
    found, shown, said = tunewright(*arguments)
    assert found == code == said["exit_code"]
    assert len(shown.splitlines()) == 1
    assert re.search(message, shown), shown


def test_a_home_without_models_is_said_and_left_as_it_is(home: Path) -> None:
    code, shown, _ = tunewright("history", "triage")
    assert code == 2
    assert f"error: no model is registered in this home yet ({home}); if it is in another home, set" in shown
    assert not home.exists()


def test_a_home_without_models_names_the_runs_that_were_not_finished(home: Path) -> None:
    pipelines.note("triage", "train", "a" * 64)
    code, shown, _ = tunewright("history", "triage")
    assert code == 2
    why = "no run of triage has reached register yet; if none is under way, run it again"
    assert f"error: no model is registered in this home yet ({home}): {why}; if it is in another home, set" in shown


def test_a_database_that_is_not_there_is_said_and_not_made(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.db"
    code, shown, _ = tunewright("history", "triage", "--tracking-uri", f"sqlite:///{file}")
    assert code == 2
    assert f"error: --tracking-uri sqlite:///{file}: no such file; no model is registered there" in shown
    assert not file.exists()


@pytest.mark.parametrize("command", ["history", "approve", "promote", "rollback", "withdraw"])
def test_a_database_without_models_is_said_as_a_home_without_one(
    home: Path, mlflow_database: Path, command: str
) -> None:
    home.mkdir()
    shutil.copy(mlflow_database, home)
    with connected(Registry(name="triage")) as client:
        assert not client.search_registered_models()
    more = {"history": [], "promote": ["1", "--reason", "x"]}.get(command, ["--reason", "x"])
    code, shown, _ = tunewright(command, "triage", *more)
    assert code == 2
    assert shown.startswith(f"error: no model is registered in this home yet ({home}); if it is in another home, set")


def test_a_home_with_a_database_but_no_model_is_backed_up_and_restored_into_a_new_one_only(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(Registry(name="triage")):
        pass
    file = str(tmp_path / "home.tar")
    assert CliRunner().invoke(main.app, ["home", "backup", file]).exit_code == 0
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "new"))
    assert "restored mlflow.db from " in " ".join(
        CliRunner().invoke(main.app, ["home", "restore", file]).stdout.split()
    )
    again = CliRunner().invoke(main.app, ["home", "restore", file])
    assert again.exit_code == 2
    assert again.stderr.startswith(f"error: this home is not empty ({tmp_path / 'new' / 'mlflow.db'} exists)")
    told = " ".join(CliRunner().invoke(main.app, ["home", "restore", "--help"]).stdout.split())
    assert "must have no MLflow database and no histories yet" in told


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@flow(name="finetune_of_release")
def deployed_pipeline(registered: Registered) -> State[Registered]:
    return Completed(data=asking.ask(REGISTRY, registered))


@pytest.fixture
def asked(server: None, make: Make) -> Callable[[], FlowRun]:
    """Return a function that starts the approval flow of a deployed pipeline and returns its scheduled run."""
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
        pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}}]
        flow_id = client.create_flow(deployed_pipeline)
        pipeline = client.create_deployment(flow_id, "triage", work_pool_name="pool", pull_steps=pull)
        deployed = client.read_deployment(pipeline)
    deployment = asking.deploy("triage", deployed)
    assert asking.deploy("triage", deployed) == deployment
    registered = make(**ASKS)

    def ask() -> FlowRun:
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(pipeline, parameters={"registered": registered.model_dump()})
            state: Any = run_flow(deployed_pipeline, flow_run=run, return_type="state")
            link = state.result().asked
            assert "/v2/runs/flow-run/" in link
            return client.read_flow_run(UUID(link.rpartition("/")[2]))

    return ask


def state_of(run: FlowRun) -> State[Any]:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
        assert state
        return state


def as_a_worker(run: FlowRun) -> State[Any]:
    """Runs what is due, as the process that a worker starts does; the state that it leaves on the server."""
    with get_client(sync_client=True) as client, suppress(Pause):
        now = client.read_flow_run(run.id)
        run_flow(asyncio.run(load_flow_from_flow_run(now)), flow_run=now, return_type="state")
    return state_of(run)


def answer(run: FlowRun, **said: str) -> str:
    """Resumes a run as the form in the UI does; what the server makes of that."""
    with get_client(sync_client=True) as client:
        return client.resume_flow_run(run.id, run_input=said).status.value


def test_a_person_is_asked_in_prefect_and_no_process_waits(asked: Callable[[], FlowRun], rehearsed: list[str]) -> None:
    run = asked()
    assert run.parameters["version"] == "1"
    state = as_a_worker(run)
    said = "version 1 of triage waits for approval: choose Resume in this page's menu"
    assert (state.name, state.message) == ("Suspended", said)
    again = asked()
    assert again.id == run.id, "asked once"
    with get_client(sync_client=True) as client:
        description = client.read_flow_run_input(run.id, "suspended-1-description")
        schema = json.loads(client.read_flow_run_input(run.id, "suspended-1-schema"))
    assert "Make version 1 of triage the champion? There is no champion now." in description
    assert "Waiting for approval: better than the base by 0.82." in description
    assert "/artifacts/reports/verdict_page/report.html)" in description
    assert "If the page says *Failed to resume flow run*, submit this form again." in description
    assert schema["properties"]["decision"]["enum"] == ["approve", "reject"]
    assert all(field["description"] for field in schema["properties"].values())
    assert aliases() == {}

    assert answer(run, decision="maybe", reason="x", by="ann") == "REJECT"
    assert answer(run, decision="approve", reason=" ", by="ann") == "REJECT"
    assert answer(run, decision="approve", reason="looked at 20 answers", by="ann") == "ACCEPT"
    state = as_a_worker(run)
    assert (state.name, state.message) == ("Approved", "version 1 of triage, by ann: looked at 20 answers")
    assert aliases() == {"champion": "1"}
    assert happened() == [("approved", "1", "", "1")]
    assert rehearsed == ["1"]


def test_a_no_in_prefect_leaves_the_alias(asked: Callable[[], FlowRun]) -> None:
    run = asked()
    as_a_worker(run)
    answer(run, decision="reject", reason="rude", by="ann")
    assert as_a_worker(run).name == "Rejected"
    assert aliases() == {}
    assert tags(1)["approval.reason"] == "rude"


def test_what_is_decided_at_the_command_line_ends_the_run_that_asks(
    asked: Callable[[], FlowRun], rehearsed: list[str]
) -> None:
    run = asked()
    as_a_worker(run)
    other = REGISTRY.model_copy(update={"alias": "staging"})
    asking.end(other, ("1",), "Approved", "of another alias")
    assert state_of(run).is_paused()
    code, *_ = tunewright("approve", "triage", "--reason", "good", "--by", "ann")
    assert code == 0
    state = state_of(run)
    assert (state.name, state.message) == ("Approved", "by ann, at the command line: good")


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (("approve",), "Approved"),
        (("approve", "--reject"), "Rejected"),
        (("reject",), "Rejected"),
        (("promote",), "Approved"),
    ],
)
def test_what_is_decided_while_prefect_is_down_ends_the_run_that_asks_at_the_next_run(
    asked: Callable[[], FlowRun], make: Make, rehearsed: list[str], command: tuple[str, ...], state: str
) -> None:
    run = asked()
    as_a_worker(run)
    asking.end_decided(REGISTRY)
    assert state_of(run).is_paused(), "nobody has decided"
    with temporary_settings(restore_defaults=(PREFECT_API_URL,)):
        number = ("1",) if command == ("promote",) else ()
        code, *_ = tunewright(command[0], "triage", *number, *command[1:], "--reason", "good", "--by", "ann")
    assert code == 0
    assert state_of(run).is_paused()
    with temporary_settings(restore_defaults=(PREFECT_API_URL,)):
        asking.end_decided(REGISTRY)
    assert state_of(run).is_paused()
    registered = make(**ASKS)
    call = Run(Settings(data=Data(sources=(Source(path="a"),)), model=Model(base="b")), "register")
    call.steps = [Step(stage="register", state="cached", record=registered)]
    call.request_approval(registered, REGISTRY)
    ended = state_of(run)
    assert (ended.name, ended.message) == (state, "by ann, at the command line: good")


def test_a_printed_command_has_the_version_behind_the_name() -> None:
    registry = Registry(name="own-bot", alias="staging", tracking_uri="http://a:5000")
    said = 'tunewright release approve own-bot 1 --alias staging --tracking-uri http://a:5000 --reason "..."'
    assert release.command("approve", registry, "1") == said


def test_of_a_prefect_that_is_down_nothing_is_said_that_may_not_be(
    make: Make, rehearsed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    make()
    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        caplog.at_level("WARNING"),
    ):
        code, *_ = tunewright("withdraw", "triage", "--reason", "bad", "--by", "ann")  # and no version waited
    assert code == 0
    said = "Prefect does not answer; if an approval run is open, it stays open until the next run of the pipeline ("
    assert said in caplog.text


def test_a_run_that_ended_without_an_answer_is_followed_by_another(asked: Callable[[], FlowRun]) -> None:
    first = asked()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(first.id, Cancelled(), force=True)
    second = asked()
    assert second.id != first.id
    assert asked().id == second.id


def test_the_sentence_of_a_version_that_no_longer_waits_does_not_say_that_it_waits() -> None:
    tags = {"sentence": "Waiting for approval: exact match .95."}
    assert verdict_of(ModelVersion("triage", "1", 0, tags=[ModelVersionTag(*each) for each in tags.items()])) == (
        "Passed the gate: exact match .95."
    )


@pytest.mark.parametrize(("width", "shown"), [(60, "version     2\nreplaced    1\n"), (140, " version  replaced  ")])
def test_a_history_is_a_table_only_where_the_terminal_has_room_for_it(width: int, shown: str) -> None:
    event = Event(
        when="2026-11-27T22:10:00+00:00",
        alias="champion",
        what="promoted",
        version="2",
        before="1",
        after="2",
        by="ann",
        why="good",
        verdict="exact match .95 is above the champion's .46",
        gain="+.49",
    )
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    history = History(name="triage", alias="champion", current_version="2", versions=[], waiting=[], events=[event])
    show_history(console, Registry(name="triage"), history)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert shown in said
    assert re.search(r"\bcomparison\b", said) and not re.search(r"\bgain\b", said)
    assert "exact match .95" in said  # in no column are words folded into pieces


def test_the_form_in_prefect_asks_who_decided() -> None:
    assert asking.ApprovalForm.model_json_schema()["properties"]["by"]["title"] == "Decided by"


class HasAccounts(BaseHTTPRequestHandler):
    """An MLflow server with passwords, which tells who is let in."""

    def do_GET(self) -> None:
        is_ana = self.headers.get("Authorization") == f"Basic {b64encode(b'ana:right').decode()}"
        self.send_response(200 if is_ana else 401)
        self.end_headers()
        if is_ana and self.path == "/api/2.0/mlflow/users/current":
            self.wfile.write(b'{"user": {"id": 3, "username": "ana", "is_admin": false}, "is_basic_auth": true}')

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        """Says nothing."""


@pytest.mark.parametrize(
    ("password", "by", "kept"),
    [
        ("right", None, "ana"),
        ("right", "ana", "ana"),
        ("right", "the  boss", "the boss (MLflow account: ana)"),
        ("wrong", "the boss", "the boss"),
        ("wrong", None, "carol"),
    ],
)
def test_who_decided_is_who_the_server_let_in(
    password: str, by: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "carol")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    with HTTPServer(("127.0.0.1", 0), HasAccounts) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        registry = Registry(name="triage", tracking_uri=f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        assert release._who_and_why(registry, by, " it is\n good ") == (kept, "it is good")
        monkeypatch.delenv("MLFLOW_TRACKING_URI")  # another's server is sent no credentials, and lets nobody in
        assert release._who_and_why(registry, by, "good") == (" ".join((by or "carol").split()), "good")
        server.shutdown()


def test_who_decided_has_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--by: missing; accepted: your name"):
        release._who_and_why(REGISTRY, " ", "good")

    def no_user() -> str:
        raise OSError("no name")

    monkeypatch.setattr("getpass.getuser", no_user)
    with pytest.raises(ConfigError, match="this system has no name for its user"):
        release._who_and_why(REGISTRY, None, "good")
