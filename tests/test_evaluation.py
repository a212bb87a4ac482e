"""Every contender is asked the same, and answers as plain greedy decoding would."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import MakeSplits
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tasks import evaluation, greedy
from tasks.artifacts import Base, Contender, Tokens
from tasks.config import Evaluation, Model
from tasks.errors import TunewrightError
from tasks.evaluation import evaluate
from tasks.greedy import Answer, Greedy
from tasks.models import load_model, load_tokenizer
from tasks.render import render

STOPS = [2, 3]
ORDERS = [
    pair
    for number in range(40, 58, 2)
    for pair in (
        (f"Where is order {number}?", '{"intent": "delivery"}'),
        (f"Money back for order {number}!", f'{{"intent": "refund", "order": {number}}}'),
    )
]


def generated(model: Any, prompt: list[int], stops: list[int], max_new_tokens: int) -> list[int]:
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=0, use_cache=True
    )
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return whole[0, len(prompt) :].tolist()


def likelihood(model: Any, prompt: list[int], reference: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + reference])).logits[0, len(prompt) - 1 : -1].double()
    return -logits.log_softmax(-1).gather(1, torch.tensor(reference)[:, None]).sum().item()


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_those_of_plain_greedy_decoding(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # far from a tie
    )
    model = LlamaForCausalLM(config).eval()
    max_new_tokens, batch = draw.choice([1, 3, 15]), draw.choice([1, 3, 20])
    monkeypatch.setattr(greedy, "SCORED", draw.choice([1, 700, 2**26]))
    prefix = [draw.randrange(4, 50) for _ in range(draw.choice([0, 1, 9]))]
    rows, expected = [], []
    for number in range(11):
        prompt = prefix + [draw.randrange(4, 50) for _ in range(draw.randrange(1, 15))]
        said = generated(model, prompt, STOPS, max_new_tokens)
        text = [token for token in said if token not in STOPS]
        agreed = (len(text), draw.randrange(len(text) + 1), 0)[number % 3]
        other = [draw.randrange(4, 50) for _ in range(0 if number % 3 == 0 else draw.randrange(12))]
        rows.append(Answer(prompt, [*text[:agreed], *other, said[-1] if said[-1] in STOPS else 2]))
        expected.append((text, said[-1] in STOPS))
    Greedy(model, stops=STOPS, max_new_tokens=max_new_tokens, batch=batch).answer(rows)
    assert [(row.tokens, row.stopped) for row in rows] == expected
    assert [row.nll for row in rows] == pytest.approx(
        [likelihood(model, r.prompt, r.reference) for r in rows], abs=1e-3
    )
    assert not any(row.states for row in rows)


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
    settings = Evaluation(max_new_tokens=40, batch=5)
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
            assert row["answer"] == tokenizer.decode(text, skip_special_tokens=True)
            assert (row["num_tokens"], row["stopped"]) == (len(text), len(text) < len(said))
            assert row["exact_match"] == (row["answer"].strip() == question["reference"])
            assert row["num_reference_tokens"] == sum(label != -100 for label in question["labels"])
        assert answers.num_rows == len(rows) == len(ORDERS) - 4
        assert answers.scores["exact_match"] == sum(row["exact_match"] for row in rows) / len(rows)
        assert json.loads(answers.path("scores.json").read_text()) == answers.scores | {"num_rows": len(rows)}
        assert set(answers.scores) == {*settings.metrics, "stopped"}
        seen[contender.name] = answers
    assert seen["base"].digest != seen["champion"].digest
    assert seen["base"].scores["exact_match"] == 0
    assert 0.1 < seen["candidate"].scores["exact_match"] < 1  # so that rows of both kinds were seen


def test_an_answer_that_does_not_stop_is_cut_and_says_so(tokens: Tokens, candidate: Contender) -> None:
    answers = evaluate.fn(contender=candidate, tokens=tokens, evaluation=Evaluation(max_new_tokens=3))
    table = pq.read_table(answers.path("answers.parquet"))
    assert set(table.column("num_tokens").to_pylist()) == {3}
    assert answers.scores["stopped"] == answers.scores["exact_match"] == 0


def test_json_validity_is_left_out_where_a_reference_is_no_json(make_splits: MakeSplits, tiny_base: Base) -> None:
    splits = make_splits(ORDERS[:1], ORDERS[1:2], [*ORDERS[2:4], ("Hello?", "Good day")])
    tokens = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
    settings = Evaluation(metrics=("json_valid", "exact_match"), max_new_tokens=2)
    answers = evaluate.fn(contender=Contender(name="base", base=tiny_base), tokens=tokens, evaluation=settings)
    assert set(answers.scores) == {"exact_match", "stopped"}
    assert "json_valid" not in pq.read_table(answers.path("answers.parquet")).column_names


def test_a_broken_model_is_an_error_and_not_a_low_score(tokens: Tokens, tiny_base: Base, tmp_path: Path) -> None:
    model = load_model(tiny_base)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    broken = Contender(name="candidate", base=tiny_base, model=tmp_path / "broken", model_digest="3")
    with pytest.raises(TunewrightError, match="candidate answered 0 of 14 test rows"):
        evaluate.fn(contender=broken, tokens=tokens, evaluation=Evaluation(max_new_tokens=2))


def test_out_of_memory_halves_the_batch(
    tokens: Tokens, candidate: Contender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate.fn(contender=candidate, tokens=tokens, evaluation=Evaluation(max_new_tokens=40, batch=3))
    verify = Greedy._verify

    def cramped(self: Greedy, rows: list[Answer], shared: greedy.States) -> list[Answer]:
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        return verify(self, rows, shared)

    monkeypatch.setattr(Greedy, "_verify", cramped)
    answers = evaluate.fn(contender=candidate, tokens=tokens, evaluation=Evaluation(max_new_tokens=40, batch=12))
    assert answers.scores == pytest.approx(expected.scores)
    assert "going on with 3 rows at once" in caplog.text


def test_the_same_question_to_the_same_contender_is_not_asked_again(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Contender(name="base", base=tiny_base)
    first = evaluate.fn(contender=base, tokens=tokens, evaluation=Evaluation(max_new_tokens=2))
    monkeypatch.setattr(evaluation, "load_model", None)
    assert evaluate.fn(contender=base, tokens=tokens, evaluation=Evaluation(max_new_tokens=2)) == first
