"""Every contender is asked the same, and answers as plain greedy decoding would."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import MakeSplits
from decoded import generated
from waiting import until

from tunewright.artifacts import TOKEN_SCHEMA, Base, Contender, Tokens
from tunewright.config import Evaluation, Model
from tunewright.cost_model import of_run, one_at_a_time
from tunewright.errors import TunewrightError
from tunewright.generation import decoding
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.reports import progress
from tunewright.tasks.evaluate import answers as answering
from tunewright.tasks.evaluate import evaluate, several
from tunewright.tasks.evaluate.several import shares
from tunewright.tasks.render import render

ORDERS = [
    pair
    for number in range(40, 58, 2)
    for pair in (
        (f"Where is order {number}?", '{"intent": "delivery"}'),
        (f"Money back for order {number}!", f'{{"intent": "refund", "order": {number}}}'),
    )
]


@pytest.fixture
def tokens(make_splits: MakeSplits, tiny_base: Base) -> Tokens:
    splits = make_splits(ORDERS[:2], ORDERS[2:4], ORDERS[4:])
    return render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))


@pytest.fixture
def candidate(tokens: Tokens, tiny_base: Base, tmp_path: Path) -> Contender:
    """The tiny base after full training that taught it some of the answers."""
    model: Any = load_model(tiny_base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = pq.read_table(tokens.path("test.parquet")).to_pylist()
    for step in range(100):
        row = rows[step % len(rows)]
        model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "model")
    return Contender(name="candidate", base=tiny_base, model=tmp_path / "model", model_digest="1")


@pytest.fixture
def adapted(tiny_base: Base, tmp_path: Path) -> Contender:
    """The tiny base with an adapter of random weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model: Any = get_peft_model(load_model(tiny_base), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return Contender(name="champion", base=tiny_base, model=tmp_path / "adapter", model_digest="2")


def test_each_row_has_the_answer_of_the_contender_and_its_scores(
    tokens: Tokens, tiny_base: Base, candidate: Contender, adapted: Contender
) -> None:
    settings = Evaluation(precision="float32", max_new_tokens=40, batch=5)
    asked = pq.read_table(tokens.path("test.parquet")).to_pylist()
    stops = json.loads(tokens.path("contract.json").read_text())["stop_token_ids"]
    tokenizer = load_tokenizer(tiny_base)
    seen = {}
    for contender in (candidate, adapted, Contender(name="base", base=tiny_base)):
        model = load_model(tiny_base, contender.model)
        answers = evaluate.fn(contender=contender, tokens=tokens, evaluation=settings)
        rows = pq.read_table(answers.path("answers.parquet")).to_pylist()
        assert [row["row_id"] for row in rows] == [row["row_id"] for row in asked]
        for row, question in zip(rows, asked, strict=True):
            said = generated(model, question["input_ids"][: question["prompt_length"]], stops, 40)
            text = [token for token in said if token not in stops]
            assert tokenizer.encode(row["prompt"]) == question["input_ids"][: question["prompt_length"]]
            assert row["answer"] == tokenizer.decode(text, skip_special_tokens=True)
            assert (row["num_tokens"], row["stopped"]) == (len(text), len(text) < len(said))
            assert row["exact_match"] == (row["answer"].strip() == question["reference"])
            assert row["num_reference_tokens"] == sum(label != -100 for label in question["labels"])
        assert answers.num_rows == len(rows) == len(ORDERS) - 4
        assert answers.num_prompt_tokens == sum(question["prompt_length"] for question in asked)
        assert answers.scores["exact_match"] == sum(row["exact_match"] for row in rows) / len(rows)
        said = {"num_rows": len(rows), "measured": answers.measured}
        assert json.loads(answers.path("scores.json").read_text()) == answers.scores | said
        assert answers.measured.startswith("the references are JSON: measured are json_field_f1, ")
        assert answers.metric == "json_field_f1"
        seen[contender.name] = answers
    assert seen["base"].digest != seen["champion"].digest
    assert seen["base"].scores["exact_match"] == 0
    assert 0.1 < seen["candidate"].scores["exact_match"] < 1  # so that rows of both kinds were seen


def test_a_contender_with_prompts_of_its_own_is_asked_by_these(tokens: Tokens, tiny_base: Base, tmp_path: Path) -> None:
    rows = pq.read_table(tokens.path("test.parquet")).to_pylist()
    for row in rows:
        shot = row["input_ids"]
        row |= {
            "input_ids": [*shot, *row["input_ids"]],
            "labels": [*[-100] * len(shot), *row["labels"]],
            "prompt_length": len(shot) + row["prompt_length"],
        }
    pq.write_table(pa.Table.from_pylist(rows, TOKEN_SCHEMA), tmp_path / "few_shot.parquet")
    few_shot = Contender(name="few_shot", base=tiny_base, prompts=tmp_path / "few_shot.parquet", prompts_digest="1")
    stops = json.loads(tokens.path("contract.json").read_text())["stop_token_ids"]
    answers = evaluate.fn(
        contender=few_shot, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=5)
    )
    model, tokenizer = load_model(tiny_base), load_tokenizer(tiny_base)
    for answer, row in zip(pq.read_table(answers.path("answers.parquet")).to_pylist(), rows, strict=True):
        said = generated(model, row["input_ids"][: row["prompt_length"]], stops, 5)
        text = tokenizer.decode([token for token in said if token not in stops], skip_special_tokens=True)
        assert (answer["row_id"], answer["answer"]) == (row["row_id"], text)
    assert answers.num_prompt_tokens == sum(row["prompt_length"] for row in rows)
    other = few_shot.model_copy(update={"prompts_digest": "2"})
    stage: Any = evaluate.fn
    keys = [stage.key(contender=each, tokens=tokens, evaluation=Evaluation()) for each in (few_shot, other)]
    assert keys[0] != keys[1]


def test_many_rows_are_answered_in_parts(tokens: Tokens, candidate: Contender, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate.fn(
        contender=candidate, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=40)
    )
    monkeypatch.setattr(decoding, "AT_ONCE", 3)
    parts = evaluate.fn(
        contender=candidate, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=40, batch=2)
    )
    one, other = (pq.read_table(answers.path("answers.parquet")) for answers in (whole, parts))
    assert one.column("answer").to_pylist() == other.column("answer").to_pylist()
    assert one.column("row_id").to_pylist() == other.column("row_id").to_pylist()


def test_progress_is_logged_as_rows_are_answered(
    tokens: Tokens, candidate: Contender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tunewright")
    monkeypatch.setattr(decoding, "AT_ONCE", 6)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    evaluate.fn(
        contender=candidate, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=40, batch=2)
    )
    told = [int(found[1]) for text in caplog.messages if (found := re.match(r" *(\d+) of 14 answers", text))]
    assert told == sorted(told)
    assert len({*told}) > 5
    assert told[-1] == 14


def test_the_device_is_waited_for(
    tokens: Tokens, candidate: Contender, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.cost_model.one_at_a_time.gpus_here", dict)
    caplog.set_level("INFO", "tunewright")
    with ThreadPoolExecutor(1) as pool, one_at_a_time.held(["cpu"], '"brave-otter"'):
        evaluating = pool.submit(
            evaluate.fn,
            contender=candidate,
            tokens=tokens,
            evaluation=Evaluation(precision="float32", max_new_tokens=4),
        )
        until(lambda: "waiting for the CPU: in use since " in caplog.text)
        assert not evaluating.done()
    assert evaluating.result().num_rows == tokens.num_test


def test_references_that_have_no_room_are_told_of_before_anything_is_answered(
    tokens: Tokens, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    base = Contender(name="base", base=tiny_base)
    test = pq.read_table(tokens.path("test.parquet"))
    lengths = [len(row["labels"]) - row["prompt_length"] for row in test.to_pylist()]
    evaluate.fn(contender=base, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=1))
    longer = sum(length > 2 for length in lengths)
    assert f"{longer} of {len(test)} references are longer than evaluation.max_new_tokens=1" in caplog.text
    caplog.clear()
    evaluate.fn(contender=base, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=max(lengths)))
    assert "references are longer" not in caplog.text


def test_the_metric_that_decides_is_named_as_the_gate_has_it_and_another_gate_decodes_nothing_again(
    tokens: Tokens, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tunewright")
    asked = {"contender": Contender(name="base", base=tiny_base), "tokens": tokens}
    for decides, metrics, said in (
        ("auto", ("auto",), "; by default json_field_f1 decides (gate.metric); "),
        ("exact_match", ("auto", "exact_match"), "; exact_match decides (gate.metric); "),
    ):
        caplog.clear()
        settings = Evaluation(precision="float32", max_new_tokens=1, metrics=metrics)
        made = evaluate.fn(**asked, evaluation=settings, decides=decides)
        (line,) = (text for text in caplog.messages if "measured are" in text)
        assert said in line
        assert made == evaluate.fn(**asked, evaluation=settings)


def test_an_answer_that_does_not_stop_is_cut_and_says_so(tokens: Tokens, candidate: Contender) -> None:
    answers = evaluate.fn(
        contender=candidate, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=3)
    )
    table = pq.read_table(answers.path("answers.parquet"))
    assert set(table.column("num_tokens").to_pylist()) == {3}
    assert answers.scores["stopped"] == answers.scores["exact_match"] == 0


def test_json_validity_is_left_out_where_a_reference_is_no_json(make_splits: MakeSplits, tiny_base: Base) -> None:
    splits = make_splits(ORDERS[:1], ORDERS[1:2], [*ORDERS[2:4], ("Hello?", "Good day")])
    tokens = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
    settings = Evaluation(precision="float32", metrics=("json_valid", "exact_match"), max_new_tokens=2)
    answers = evaluate.fn(contender=Contender(name="base", base=tiny_base), tokens=tokens, evaluation=settings)
    assert set(answers.scores) == {"exact_match"}
    assert answers.not_measured == {"json_valid": "1 of 3 references are not JSON, such as 'Good day'"}
    assert "json_valid is not measured: 1 of 3 references are not JSON, such as 'Good day'" in answers.measured
    assert "json_valid" not in pq.read_table(answers.path("answers.parquet")).column_names


def test_a_broken_model_is_an_error_and_not_a_low_score(tokens: Tokens, tiny_base: Base, tmp_path: Path) -> None:
    model = load_model(tiny_base)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    broken = Contender(name="candidate", base=tiny_base, model=tmp_path / "broken", model_digest="3")
    with pytest.raises(TunewrightError, match="candidate answered 0 of 14 test rows"):
        evaluate.fn(contender=broken, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=2))


def test_the_same_question_to_the_same_contender_is_not_asked_again(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Contender(name="base", base=tiny_base)
    first = evaluate.fn(contender=base, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=2))
    monkeypatch.delattr(answering, "load_model")
    assert (
        evaluate.fn(contender=base, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=2))
        == first
    )


def answering_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if several.__name__ in child.cmdline()]


def test_several_devices_answer_a_part_of_the_rows_each(
    tokens: Tokens,
    candidate: Contender,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    settings = Evaluation(precision="float32", max_new_tokens=40, batch=5)
    alone = evaluate.fn(contender=candidate, tokens=tokens, evaluation=settings)
    for stage in ("evaluate", "answer_part"):
        (alone.folder.parents[1] / stage).rename(tmp_path / stage)
    caplog.set_level("INFO", "tunewright")
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    with of_run(devices=2):
        together = evaluate.fn(contender=candidate, tokens=tokens, evaluation=settings)
    assert "  14 of 14 answers in " in caplog.text
    one = pq.read_table(tmp_path / "evaluate" / alone.folder.name / "answers.parquet")
    other = pq.read_table(together.path("answers.parquet"))
    assert one.drop_columns("nll") == other.drop_columns("nll")
    assert other["nll"].to_pylist() == pytest.approx(one["nll"].to_pylist(), rel=1e-5)
    assert (together.scores, together.precision) == (pytest.approx(alone.scores, rel=1e-5), alone.precision)
    assert not answering_processes()


def test_a_process_that_ends_before_it_has_answered_is_told_with_what_it_said(
    tokens: Tokens, candidate: Contender
) -> None:
    shutil.copytree(candidate.base.weights, broken := tokens.folder.parent / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    base = candidate.base.model_copy(update={"folder": broken, "location": Path()})
    said = r"process \d of 2 that answer the test rows ended: .*SafetensorError: "
    with of_run(devices=2), pytest.raises(TunewrightError, match=said):
        evaluate.fn(
            contender=Contender(name="base", base=base),
            tokens=tokens,
            evaluation=Evaluation(precision="float32", max_new_tokens=4),
        )
    assert not answering_processes()


def test_rows_whose_prompts_begin_alike_are_answered_by_one_process() -> None:
    rows = [{"input_ids": [first, at, 9], "prompt_length": 2} for at in range(3) for first in (5, 3)]
    parts = shares(pa.Table.from_pylist(rows), 2)
    assert [part.tolist() for part in parts] == [[1, 3, 5], [0, 2, 4]]
    assert [part.tolist() for part in shares(pa.Table.from_pylist(rows[:2]), 4)] == [[1], [0]]
