"""The KL divergence is that of the two models' distributions, whichever way their weights are kept."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import MakeSplits
from registered import QUESTIONS, tune

from tunewright.artifacts import Answers, Base, Contender, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.config import Model
from tunewright.errors import TunewrightError
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.tasks.divergence import divergence
from tunewright.tasks.render import render

SAID = [("yes, of course", True), ("no no no", False), ("", False)]  # answer, and whether it stopped


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    splits = make_splits([("q", "a")], [("r", "b")], [(question, "yes") for question in QUESTIONS])
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


@pytest.fixture
def answers(tokens: Tokens, tmp_path: Path) -> Answers:
    test = pq.read_table(tokens.path("test.parquet"))
    columns = {"answer": [text for text, _ in SAID], "stopped": [stopped for _, stopped in SAID]}
    table = pa.table({"row_id": test["row_id"], "cluster": test["cluster"], **columns})
    pq.write_table(table, tmp_path / "answers.parquet")
    return Answers(stage="evaluate", contender="candidate", folder=tmp_path, num_rows=3, scores={})


def expected(base: Base, candidate: Path, reference: Path | None, tokens: Tokens) -> list[tuple[float, int]]:
    """The divergence and the number of tokens of each answer, by torch's own kl_div on all logits of two models."""
    models = [load_model(base, candidate), load_model(base, reference)]
    tokenizer, stop = load_tokenizer(base), min(Contract.load(tokens).stop_token_ids)
    found = []
    for row, (text, stopped) in zip(pq.read_table(tokens.path("test.parquet")).to_pylist(), SAID, strict=True):
        prompt = row["input_ids"][: row["prompt_length"]]
        answer = tokenizer(text, add_special_tokens=False)["input_ids"] + [stop] * stopped
        with torch.inference_mode():
            own, other = (each(torch.tensor([prompt + answer])).logits[0].log_softmax(-1) for each in models)
        kl = torch.nn.functional.kl_div(other, own, reduction="none", log_target=True).sum(-1)
        found.append((kl[len(prompt) - 1 : len(prompt) + len(answer) - 1].sum().item(), len(answer)))
    return found


@pytest.mark.parametrize("kind", ["from the base", "from another adapter", "of whole weights"])
def test_the_divergence_is_that_of_two_models(
    tiny_base: Base, tokens: Tokens, answers: Answers, tmp_path: Path, home: Path, kind: str
) -> None:
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    own, other = (tune(tiny_base, tmp_path / name, seed) / "model" for seed, name in enumerate(("own", "other")))
    if kind == "of whole weights":
        for place in (own, other):
            load_model(tiny_base, place).merge_and_unload().save_pretrained(str(tmp_path / "whole" / place.parent.name))
        own, other = tmp_path / "whole" / "own", tmp_path / "whole" / "other"
    reference = None if kind == "from the base" else other
    measured = divergence.fn(
        candidate=Contender(name="candidate", base=tiny_base, model=own, model_digest="a"),
        reference=Contender(name="the one before", base=tiny_base, model=reference, model_digest="b"),
        answers=answers,
        tokens=tokens,
    )
    right = [(kl, number) for kl, number in expected(tiny_base, own, reference, tokens) if number]
    rows = pq.read_table(measured.path("kl.parquet")).to_pylist()
    assert [row["num_tokens"] for row in rows] == [number for _, number in right]
    assert [row["kl"] for row in rows] == pytest.approx([kl for kl, _ in right], rel=1e-4)
    assert right[0][0] > 0.01
    assert measured.per_token[1] == pytest.approx(sum(kl for kl, _ in right) / sum(number for _, number in right))
    assert measured.per_answer == pytest.approx(sum(kl for kl, _ in right) / 2)
    assert measured.says().startswith("KL divergence of the candidate from the one before: ")
    assert measured.says().endswith("on its own answers to 2 test rows")
    close = measured.model_copy(update={"per_token": (0.000451, 0.000466, 0.000478)})
    assert ": .00047 [.00045, .00048] nats per token" in close.says()


def test_a_model_is_not_away_from_itself_and_a_broken_one_is_an_error(
    tiny_base: Base, tuned: Path, tokens: Tokens, answers: Answers, tmp_path: Path, home: Path
) -> None:
    contender = Contender(name="candidate", base=tiny_base, model=tuned / "model", model_digest="a")
    measured = divergence.fn(candidate=contender, reference=contender, answers=answers, tokens=tokens)
    assert (measured.per_token[1], measured.per_answer) == (0, 0)
    model = load_model(tiny_base)
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    model.save_pretrained(str(tmp_path / "broken"))
    broken = contender.model_copy(update={"model": tmp_path / "broken", "model_digest": "c"})
    with pytest.raises(TunewrightError, match="KL divergence of the candidate is NaN or infinite"):
        divergence.fn(candidate=broken, reference=contender, answers=answers, tokens=tokens)
