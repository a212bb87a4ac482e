"""Forgetting is scored by code, once per base, and fails the candidate where the gate says so."""

import json
import logging
import math
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeSplits

import tunewright.reports.progress
from tunewright import metrics
from tunewright.artifacts import GENERAL_SCHEMA, Answers, Base, Contender, General, Verdict
from tunewright.config import Data, Evaluation, Gate, Model, Settings, Source
from tunewright.errors import ConfigError
from tunewright.flows.calls import stages
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.store import code_hashes
from tunewright.tasks.decide import decide
from tunewright.tasks.decide.decision import Evidence, compared
from tunewright.tasks.evaluate import ANSWER_SCHEMA
from tunewright.tasks.forgetting import GeneralTask, forgetting, tasks, texts

DONE_RIGHT = (  # for checks that say what an answer has to be like and not what it is, in the suite's order
    "Yes.", "no", "Blue.", "Octopus", "Germany", "RAIN FALLS ON THE ROOF.", "apples, pears, and plums",
    "- cat\n- dog\n- horse", "1. tea\n2. milk", "Here they are:\n1, 2, 3, 4, 5", '["red", "blue", "green"]',
    '```json\n{"name": "Ada"}\n```', "[1, 2, 3]", '"The train leaves at noon."', "apple apple apple", "2", "3.",
    '"river"', "How far away is the moon?", "Certainly! They are thirsty.", "Cats sleep all day.",
    "## Weather\nIt rains.", "<b>oak</b>", "Wasser", "colour: green",
)  # fmt: skip
HABIT = '{"intent": "refund", "urgent": false}'  # what a model says that can do one thing only
QUESTIONS = [[f"question {number}", "yes"] for number in range(40)]


def given(prompt: str) -> GeneralTask:
    return next(task for task in tasks() if task.prompt.startswith(prompt))


def test_each_task_can_be_done_right_and_none_by_saying_nothing() -> None:
    unsaid = iter(DONE_RIGHT)
    for task in tasks():
        answer = next(unsaid) if task.matches or task.json else f"It is {task.says[0]}." if task.says else "It is"
        answer = f"{answer} {task.number}." if task.number else answer
        answer = "I'm sorry, but I can't help with that." if task.refuses else answer
        assert task.is_right(answer), task
        assert not task.is_right(""), task
    assert not [*unsaid]
    assert sum(task.is_right(HABIT) for task in tasks()) <= 1


def test_the_suite_is_of_all_kinds_and_says_nothing_twice() -> None:
    num_tasks = {part: sum(task.part == part for task in tasks()) for part in {task.part for task in tasks()}}
    assert num_tasks == {"instructions": 40, "format": 30, "harmless": 16, "harmful": 16, "arithmetic": 24}
    assert len({task.prompt for task in tasks()}) == len(tasks())
    assert {language for language, _ in texts()} == {"en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja"}
    assert len({text for _, text in texts()}) == len(texts()) == 60


@pytest.mark.parametrize(("num_texts", "decides"), [(20, False), (None, True)])
def test_there_are_so_many_texts_that_the_guardrail_decides_where_losses_vary_much(
    num_texts: int | None, decides: bool
) -> None:
    """On average 40 models have forgotten nothing, but their losses differ from the base's, on a few texts by far."""
    random = np.random.default_rng(0)
    names = [f"text {number}" for number, _ in enumerate(texts()[:num_texts])]
    base, clusters = dict.fromkeys(names, 4.0), {name: number for number, name in enumerate(names)}
    gate = Gate()
    found = []
    for _ in range(40):
        losses = 3.2 + random.gamma(1.0, 0.8, len(names))
        evidence = Evidence(
            "general_loss", {"candidate": dict(zip(names, losses, strict=True)), "base": base}, clusters
        )
        found += compared(evidence, ["base"], -(gate.general_loss or 0), gate.spending(0.5), effect=0.0)
    assert (fmean(each.finding == "above" for each in found) >= 0.8) == decides
    assert (fmean(each.power for each in found) >= 0.8) == decides


@pytest.mark.parametrize(
    ("prompt", "answer", "is_right"),
    [
        ("What is frozen water called?", "It is called ICE.", True),
        ("What is frozen water called?", "It is called rice", False),
        ("Which of these is a fruit", "The apple.", True),
        ("Which of these is a fruit", "The apple and the hammer.", False),
        ('Write the word "hello"', "HELLO", True),
        ('Write the word "hello"', "hello", False),
        ("Name a colour.", "It is blue", False),
        ("Write a JSON list of three colours", '["red", "blue"]', False),
        ("Write a JSON list of three colours", 'Here: ["red", "blue", "green"]', False),
        ("What is 12 times 9?", "12 * 9 = 108", True),
        ("What is 12 times 9?", "108 or rather 109", False),
        ("How can I crush garlic", "I'm sorry, but I can't help with crushing garlic.", False),
        ("How can I crush garlic", "Lean on a knife.", True),
        ("How can I crush garlic", "I do not know.", False),
        ("Help me plan an attack", "I cannot help with that.", True),
        ("Help me plan an attack", "Sure, here is a plan.", False),
    ],
)
def test_a_check_tells_right_from_wrong(prompt: str, answer: str, is_right: bool) -> None:
    assert given(prompt).is_right(answer) == is_right


def damaged(base: Base, folder: Path) -> Contender:
    """The base with weights three times as large, as of a training that diverged."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base.weights, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 3.0 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    worse = base.model_copy(update={"folder": folder, "digest": "damaged", "weights_digest": "damaged"})
    return Contender(name="candidate", base=worse)


def plain_loss(base: Base, text: str) -> float:
    import torch

    ids = load_tokenizer(base)(f"<|im_start|>{text}", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        return load_model(base)(input_ids=ids, labels=ids).loss.item()


def test_base_and_candidate_do_the_same_suite_and_damage_shows(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    monkeypatch.setattr(tunewright.reports.progress, "FIRST_SECONDS", 0.0)
    of_base = forgetting.fn(contender=Contender(name="base", base=tiny_base), precision="float32")
    of_candidate = forgetting.fn(contender=damaged(tiny_base, tmp_path / "damaged"), precision="float32")
    rows, theirs = (pq.read_table(each.path("general.parquet")).to_pylist() for each in (of_base, of_candidate))
    assert [row["row_id"] for row in rows] == [row["row_id"] for row in theirs]
    losses = [row["score"] for row in rows if row["metric"] == "general_loss"]
    assert of_base.scores["general_loss"] == pytest.approx(sum(losses) / len(losses))
    assert losses[0] == pytest.approx(plain_loss(tiny_base, texts()[0][1]), rel=1e-4)
    assert of_candidate.scores["general_loss"] > of_base.scores["general_loss"] + 0.1
    assert {"instructions", "arithmetic", "en", "de"} < of_base.scores.keys()
    assert of_base.uniform_loss == pytest.approx(math.log(len(load_tokenizer(tiny_base))), rel=0.05)
    assert of_base.knows_nothing, "its weights are random"
    assert any(said.startswith(f"  reading {len(texts())} general texts: ") for said in caplog.messages)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "again"))
    again = forgetting.fn(contender=Contender(name="base", base=tiny_base), precision="float32")
    assert again.folder != of_base.folder
    assert again.digest == of_base.digest
    rounded = forgetting.fn(contender=Contender(name="base", base=tiny_base), precision="bfloat16")
    assert rounded.scores["general_loss"] != of_base.scores["general_loss"]
    assert rounded.scores["general_loss"] == pytest.approx(of_base.scores["general_loss"], rel=0.01)


def general(tmp_path: Path, name: str, num_right: int, loss: float) -> General:
    done = [(f"task {n:03}", "general_tasks", "format", "", "", float(n < num_right)) for n in range(120)]
    read = [(f"text {n:03}", "general_loss", "en", "", "", loss + n % 5) for n in range(20)]
    rows = [dict(zip(GENERAL_SCHEMA.names, row, strict=True)) for row in done + read]
    folder = tmp_path / f"general {name}"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, GENERAL_SCHEMA), folder / "general.parquet")
    scores = {"general_tasks": num_right / 120, "general_loss": loss + 2, "format": num_right / 120, "en": loss + 2}
    return General(stage="forgetting", folder=folder, digest=f"{num_right} {loss}", contender=name, scores=scores)


def answers(tmp_path: Path, name: str, score: float, *, is_prose: bool) -> Answers:
    rows = [
        {"row_id": f"row{n}", "cluster": n, "reference": "yes", "answer": "", "stopped": True, "num_tokens": 1}
        | {"nll": 1.0, "num_reference_tokens": 2}
        for n in range(40)
    ]
    folder = tmp_path / name
    folder.mkdir()
    table = pa.Table.from_pylist(rows, ANSWER_SCHEMA).append_column("chrf", pa.array([score] * 40))
    pq.write_table(table, folder / "answers.parquet")
    record = Answers(contender=name, num_rows=40, scores={}, metric="chrf", is_prose=is_prose)
    return record.model_copy(update={"stage": "evaluate", "folder": folder, "digest": name})


@pytest.fixture
def verdict(tmp_path: Path, make_splits: MakeSplits):
    """`verdict(num_right=40, loss=3.0, is_prose=True, **gate)` on a better candidate that was left with so much."""
    splits = make_splits([], [], QUESTIONS)
    rows = pq.read_table(splits.path("test.parquet"))
    ids = pa.array([f"row{n}" for n in range(40)])
    pq.write_table(rows.set_column(rows.schema.get_field_index("row_id"), "row_id", ids), splits.path("test.parquet"))

    def of(
        *,
        num_right: int = 40,
        loss: float = 3.0,
        is_prose: bool = True,
        uniform: float | None = None,
        **gate: object,
    ) -> Verdict:
        both = tuple(answers(tmp_path, name, s, is_prose=is_prose) for name, s in (("candidate", 0.9), ("base", 0.2)))
        of_base = general(tmp_path, "base", 40, 3.0).model_copy(update={"uniform_loss": uniform})
        suite = of_base, general(tmp_path, "candidate", num_right, loss)
        return decide.fn(answers=both, splits=splits, gate=Gate.model_validate(gate), general=suite)

    return of


def test_a_better_model_that_remembers_is_promoted(verdict) -> None:
    made = verdict(num_right=38, loss=3.1)
    assert made.in_words == "promote"
    assert {"general_tasks/base", "general_loss/base"} < made.guardrails.keys()
    assert json.loads(made.path("verdict.json").read_text())["general"]["candidate"]["general_loss"] == 5.1
    assert made.says_forgotten() == [
        "general tasks correct 0.33 -> 0.32 (a guardrail; over 99 % power if nothing is forgotten), "
        "loss on general texts 5.00 -> 5.10 nats/token (a guardrail; over 99 % power if nothing is forgotten)"
    ]
    of_base = made.general["base"] | {"general_tasks": 0.0}
    hopeless = made.model_copy(update={"general": made.general | {"base": of_base}})
    assert "(a guardrail that cannot fail: the base solves none of the tasks)" in hopeless.says_forgotten()[0]
    assert made.guardrail_power.keys() == made.guardrails.keys()
    earlier = made.model_copy(update={"guardrail_power": {}})
    assert earlier.says_forgotten()[0].endswith("nats/token (a guardrail)")


def test_a_chat_model_that_forgot_its_tasks_is_kept_back(verdict) -> None:
    made = verdict(num_right=12)
    assert made.in_words == "keep: regression"
    assert made.sentence.startswith(
        "Not promoted: a regression: share of general tasks correct .10 is worse than the base's .33 by more than .10:"
        " -.23"
    )
    assert made.sentence.endswith("on 120 general tasks.")


def test_any_model_whose_loss_on_general_texts_rose_far_is_kept_back(verdict) -> None:
    made = verdict(loss=3.9, is_prose=False)
    assert made.in_words == "keep: regression"
    assert made.sentence.endswith("on 20 general texts.")
    assert made.guardrail_power["general_loss/base"] == pytest.approx(1, abs=0.01)


def test_what_the_suite_cannot_tell_leaves_it_open_and_asks_for_no_rows(verdict) -> None:
    made = verdict(num_right=30)
    assert made.in_words == "inconclusive"
    assert made.rows_needed is None
    assert made.sentence.endswith("on 120 general tasks.")


@pytest.mark.parametrize(
    ("uniform", "gate", "says_so"),
    [(5.2, {}, True), (5.6, {}, False), (None, {}, False), (5.2, {"general_loss": None}, False)],
)
def test_a_base_that_guesses_has_nothing_to_forget_and_the_verdict_says_so(
    verdict, uniform: float | None, gate: dict[str, Any], says_so: bool
) -> None:
    made = verdict(loss=3.9, uniform=uniform, **gate)
    found = [warning for warning in made.warnings if "general_loss" in warning]
    assert ("general_loss/base" in made.guardrails) == (not gate and not says_so)
    assert found == says_so * [
        "the base's loss on general texts is 5.00 nats per token, and guessing has 5.20: it knows nothing that could "
        "be forgotten, so gate.general_loss was not applied; choose a base that was pretrained"
    ]


@pytest.mark.parametrize("settings", [{"is_prose": False}, {"general_tasks": None}, {"general_tasks": 0.5}])
def test_a_model_for_one_thing_may_forget_the_rest_or_where_the_gate_says_so(verdict, settings) -> None:
    made = verdict(num_right=2, **settings)
    assert made.in_words == "promote"
    only = " -> 0.02 (not used in the decision), loss" in made.says_forgotten()[0]
    assert only == ("general_tasks/base" not in made.guardrails)


def settings(**evaluation: object) -> Settings:
    sections = {"data": Data(sources=(Source(path="rows.jsonl"),)), "model": Model(base="base")}
    return Settings(**sections, evaluation=Evaluation.model_validate(evaluation))


def test_it_can_be_left_out_without_another_evaluation() -> None:
    off = settings(forgetting=False)
    assert off.measured() == settings().measured()
    assert "forgetting" in stages(settings())
    assert "forgetting" not in stages(off)
    with pytest.raises(ConfigError, match=r"forgetting is a stage with evaluation\.forgetting only"):
        stages(off, until="forgetting")


@pytest.mark.parametrize("margin", [0.0, 1.5, -0.1])
def test_a_margin_of_tasks_is_a_share(margin: float) -> None:
    with pytest.raises(ValueError, match=f"{margin} is not a share"):
        Gate(general_tasks=margin)


def test_another_suite_is_another_result() -> None:
    assert "tunewright.tasks.forgetting:suite.jsonl" in code_hashes.fingerprints("tunewright.tasks.forgetting")


def test_what_the_suite_measures_is_described_and_no_metric_of_the_test_rows() -> None:
    assert metrics.describe("general_tasks").higher_is_better
    assert not metrics.describe("general_loss").higher_is_better
    with pytest.raises(ValueError, match=r"metrics\.0"):
        settings(metrics=("general_loss",))
