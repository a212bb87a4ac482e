"""Progress messages while training runs."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import tunewright.reports.progress
from tunewright.reports.progress import (
    Countdown,
    Progress,
    TotalWork,
    duration,
    layout,
    part_of,
    seconds_left,
    told_while_slow,
)

STATUS = {
    "resumed_from": 20,
    "skipped_checkpoints": ["checkpoint-25 is skipped: optimizer.pt was altered"],
    "evaluate_every": 10,
    "learning_parameters": 1_000,
    "parameters": 100_000,
    "chosen": {"precision": "bfloat16", "packing": True, "because": {"precision": "cpu has it", "packing": "shared"}},
}


def step(number: int, seconds: float = 2.0) -> dict[str, Any]:
    return {"step": number, "planned": 45, "loss": 0.5, "seconds": seconds, "tokens_per_second": 1_234.0}


def look(number: int) -> dict[str, Any]:
    return {"step": number, "planned": 45, "eval_loss": 0.75, "eval_exact_match": 0.25, "seconds": 10.0}


def write(work: Path, *lines: dict[str, Any], tail: str = "") -> None:
    (work / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + tail)


def test_what_was_chosen_is_said_with_its_reason_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    progress = Progress(tmp_path)
    progress.update()
    assert caplog.messages == []
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    progress.update()
    progress.update()
    assert [message.strip() for message in caplog.messages] == [
        "checkpoint-25 is skipped: optimizer.pt was altered",
        "resuming from step 20",
        "1,000 of 100,000 parameters are trainable (1.00 %)",
        "precision bfloat16: cpu has it",
        "packing on: shared",
    ]


def test_a_training_whose_only_checkpoint_is_skipped_says_that_it_begins_anew() -> None:
    assert layout(STATUS | {"resumed_from": 0})[0] == "  no other checkpoint is left, so the training begins at step 1"
    assert "trainable" in layout(STATUS | {"resumed_from": 0, "skipped_checkpoints": []})[0]


def test_what_the_trainer_does_before_its_first_step_is_said_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    progress = Progress(tmp_path)
    for doing in ("", "measuring the reference: 8 of 20 rows", "measuring the reference: 16 of 20 rows"):
        (tmp_path / "alive").write_text(doing)
        progress.update()
    assert [message.strip() for message in caplog.messages] == ["measuring the reference: 8 of 20 rows"]
    monkeypatch.setattr(tunewright.reports.progress, "LOG_SECONDS", 0.0)
    progress.update()
    assert caplog.messages[-1].strip() == "measuring the reference: 16 of 20 rows"


def test_a_line_is_logged_after_the_first_step_and_after_each_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunewright.reports.progress, "EVALUATION_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "tunewright")
    (tmp_path / "status.json").write_text(json.dumps(STATUS | {"resumed_from": 0}))
    progress = Progress(tmp_path)
    progress.update()
    caplog.clear()
    for lines in ([step(21)], [step(21), step(22)], [step(21), step(22), look(22)]):
        write(tmp_path, *lines, tail='{"step": 23, "pl')
        progress.update()
    assert [message.strip() for message in caplog.messages] == [
        "step 21 of 45: loss 0.5000, 1,234 tokens/s, about 48 s left",
        "step 22 of 45: loss 0.5000, validation loss 0.7500, validation exact match 0.2500, 1,234 tokens/s, "
        "about 76 s left",  # 23 steps, and evaluations after steps 30, 40 and 45
    ]


def test_a_fast_training_has_few_lines_and_the_last_evaluation_is_among_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(tunewright.reports.progress.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO, "tunewright.steps")
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    progress, lines = Progress(tmp_path), []
    for number in range(1, 41):  # 20 s, with an evaluation in each half second
        lines += [step(number), look(number)]
        write(tmp_path, *lines)
        progress.update()
        now += 0.5
    write(tmp_path, *lines, step(41))
    progress.update(last=True)
    progress.update(last=True)
    said = [each.strip().partition(", 1,234 tokens/s")[0] for each in caplog.messages if " of 45" in each]
    assert [each.partition(" of 45")[0] for each in said] == ["step 1", "step 11", "step 21", "step 31", "step 41"]
    assert said[-1].endswith("validation loss 0.7500 at step 40, validation exact match 0.2500 at step 40")


def test_an_evaluated_step_is_said_once_with_its_evaluation_and_no_time_left_before_a_tenth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunewright.reports.progress, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(tunewright.reports.progress, "EVALUATION_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "tunewright.steps")
    (tmp_path / "status.json").write_text(json.dumps(STATUS | {"resumed_from": 0}))
    progress = Progress(tmp_path)
    progress.update()
    caplog.clear()
    lines: list[dict[str, Any]] = []
    for each in (step(4), step(5), step(10), look(10), step(45), look(45)):
        lines.append(each)
        write(tmp_path, *lines)
        progress.update()
    progress.update(last=True)
    said = [message.strip() for message in caplog.messages if " of 45" in message]
    assert [each.partition(" of")[0] for each in said] == ["step 4", "step 5", "step 10", "step 45"]
    assert ["left" in each for each in said] == [False, True, True, False]
    assert "validation loss 0.7500" in said[-2]
    assert "validation loss 0.7500" in said[-1]


def test_a_resumed_training_tells_no_speed_and_no_time_left_by_steps_of_the_earlier_process(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    progress, lines = Progress(tmp_path), [*(step(number, 60.0) for number in range(1, 21)), look(20)]
    said: list[str] = []
    for number in range(21, 28):
        write(tmp_path, *lines)
        progress.update()
        said.append(progress.sentence().rpartition(" 0.2500")[2])
        lines.append(step(number) | {"tokens_per_second": 9.0})
    assert said[:2] == ["", " at step 20, 9 tokens/s"]
    assert said[4:6] == [" at step 20, 9 tokens/s", " at step 20, 9 tokens/s, about 40 s left"]


def test_a_server_that_does_not_answer_is_said_once_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(tunewright.reports.progress.TaskRunContext, "get", lambda: "a task run")
    monkeypatch.setattr(tunewright.reports.progress, "create_progress_artifact", fail)
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    progress = Progress(tmp_path)
    progress.update()
    for lines in ([look(22)], [look(22), look(24)], [look(22), look(24), look(26)]):
        write(tmp_path, *lines)
        progress.update()
    said = [record.getMessage().strip() for record in caplog.records if record.levelno == logging.WARNING]
    assert said[1:] == ["the Prefect UI cannot show the progress; the work continues: connection refused"]
    shown: list[float] = []
    monkeypatch.setattr(
        tunewright.reports.progress, "create_progress_artifact", lambda progress, **_: shown.append(progress)
    )
    write(tmp_path, look(22), look(24), look(26), look(45))
    progress.update()
    assert shown == [100.0]


def test_the_time_left_counts_steps_and_evaluations() -> None:
    assert seconds_left([step(30)], [look(30)], 10) == 15 * 2.0 + 2 * 10.0
    assert seconds_left([step(30)], [], 10) == 30.0
    assert seconds_left([step(45)], [look(40)], 10) is None
    assert seconds_left([], [], 10) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (40, "40 s"),
        (92, "92 s"),
        (119.6, "2 min"),
        (150, "2.5 min"),
        (596, "10 min"),
        (600, "10 min"),
        (3 * 3600, "3.0 h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_duration_is_never_off_by_more_than_a_twentieth() -> None:
    for seconds in range(30, 20_000):
        number, unit = duration(seconds).split()
        assert float(number) * {"s": 1, "min": 60, "h": 3600}[unit] == pytest.approx(seconds, rel=0.05)


def test_slow_work_without_steps_says_what_it_is_and_that_the_machine_is_busy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    with told_while_slow("reading 60 general texts"):
        pass
    assert caplog.messages == [], "fast work has no line"
    monkeypatch.setattr(tunewright.reports.progress, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(tunewright.reports.progress, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    with told_while_slow("reading 60 general texts"):
        time.sleep(0.3)
    slowed = f"the machine is busy: 1000.0 processes want its {os.cpu_count()} processors"
    assert len(caplog.messages) > 1, "again and again"
    assert {*caplog.messages} == {f"  reading 60 general texts: 0 s so far; {slowed}"}


def test_counted_work_tells_how_much_is_done_and_how_long_the_rest_takes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(tunewright.reports.progress.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO, "tunewright")
    countdown = Countdown(120, "answers", "evaluation-progress", "base")
    for done in (0, 0, 0, *range(1, 121)):  # one a second
        now += 1
        countdown.tell(done)
    assert [message.strip() for message in caplog.messages] == [
        "2 of 120 answers",
        "32 of 120 answers, about 96 s left",
        "62 of 120 answers, about 61 s left",
        "92 of 120 answers, about 29 s left",
        "120 of 120 answers in 2 min",
    ]
    caplog.clear()
    with part_of(TotalWork(240, 120, started=now - 121)):
        countdown = Countdown(60, "answers", "evaluation-progress", "base")
        for done in range(1, 61):
            now += 1
            countdown.tell(done)
    with part_of(TotalWork(240, 180, started=now - 181)):
        countdown = Countdown(60, "answers", "evaluation-progress", "base")
        for done in (30, 60):
            now += 30
            countdown.tell(done)
    assert [message.strip() for message in caplog.messages] == [
        "125 of 240 answers",
        "155 of 240 answers, about 85 s left",
        "180 of 240 answers",
        "210 of 240 answers, about 30 s left",
        "240 of 240 answers in 4 min",
    ], "a block of the answers of a prompt"
    caplog.clear()
    countdown = Countdown(1, "answers", "evaluation-progress")
    now += 600
    countdown.tell(0)
    assert caplog.messages == [], "nothing is done yet"
    caplog.clear()
    Countdown(1, "answers", "evaluation-progress").tell(1)
    assert caplog.messages == []  # it took no time
