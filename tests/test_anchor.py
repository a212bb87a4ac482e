"""The KL divergence from the base on general rows: its value, its gradient, and trainings that it holds back."""

import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
import torch
from conftest import MakeSplits
from pydantic import ValidationError
from torch.nn.functional import kl_div
from trained import ZERO, by_forks, fork_trainers, in_this_process, kill_trainer_after
from transformers import AutoModelForCausalLM

from tunewright.artifacts import IGNORED, Adapter, Base, Scan, Tokens
from tunewright.config import Compute, Data, Grpo, Method, Model, Preference, Settings, Source, Training
from tunewright.cost_model import estimate
from tunewright.cost_model.case import BudgetCase, ground_of
from tunewright.cost_model.devices import machine
from tunewright.errors import ConfigError, TrainerDied
from tunewright.flows.calls import Plan
from tunewright.modeling import anchor
from tunewright.modeling.anchor import AnchoredCollator, divergence, likeliest
from tunewright.modeling.batches import ATTENTION, scored
from tunewright.modeling.micro_batching import Layout
from tunewright.modeling.objectives import AnchoredObjective
from tunewright.registry.candidate import curves
from tunewright.tasks.render import render
from tunewright.tasks.train import stage as train_stage
from tunewright.tasks.train.stage import train

SMALL = Method(rank=2, alpha=4)
ONE_THREAD = Compute(threads=1, precision="float32")
ANCHORED = Training(learning_rate=0.01, max_steps=12, batch=4, evaluate_every=4, patience=None, kl_to_base=1.0)


def make_rows(lengths: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows with these lengths of prompt and answer, which begin alike; every second one is a general row."""
    draw = torch.Generator().manual_seed(3)
    rows = []
    for at, (prompt, answer) in enumerate(lengths):
        ids = [5, 6, 7, *torch.randint(10, 90, (prompt + answer,), generator=draw).tolist()]
        labels = [IGNORED] * (3 + prompt) + ids[3 + prompt :]
        rows.append({"row_id": str(at), "input_ids": ids, "labels": labels, "replay": at % 2 == 1})
    return rows


@pytest.fixture
def models(tiny_base: Base) -> tuple[Any, Any]:
    """The base, and the same with weights that moved."""
    base, tuned = (AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.float32) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return base.eval(), tuned.eval()


def with_base(base: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what the base says on general ones."""
    found = []
    for row in rows:
        with torch.no_grad():
            tokens, values = likeliest(base, AnchoredCollator("padded", 0, 1).lay([row]))
        columns = dict(zip(anchor.COLUMNS, (tokens.flatten().tolist(), values.flatten().tolist()), strict=True))
        found.append(row | columns if row["replay"] else row)
    return found


def measured(
    model: Any, rows: list[dict[str, Any]], layout: Layout, micro_batch: int
) -> tuple[float, tuple[float, float], torch.Tensor]:
    """The loss of a step, the sum of its divergences with their number, and the gradient."""
    model.set_attn_implementation(ATTENTION if layout in ("shared", "packed") else "sdpa")
    model.zero_grad()
    objective, loss = AnchoredObjective(0.7), 0.0
    batches = AnchoredCollator(layout, 0, micro_batch)(rows)["micro_batches"]
    totals = [sum(sizes) for sizes in zip(*map(objective.sizes, batches), strict=True)]
    for batch in batches:
        own: Any = sum(objective.terms(model, batch, totals))
        own.backward()
        loss += own.item()
    return loss, objective.figures()["kl"], torch.cat([p.grad.flatten().clone() for p in model.parameters()])


@pytest.mark.parametrize("number", [10_000, 5])
def test_the_divergence_is_torchs_own_and_of_fewer_tokens_a_lower_bound(
    models: tuple[Any, Any], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = models
    monkeypatch.setattr(anchor, "LIKELIEST", number)
    monkeypatch.setattr(anchor, "PIECE", 3)
    rows = make_rows([(2, 3), (4, 7)])
    batch = AnchoredCollator("padded", 0, 2).lay(with_base(base, rows))
    with torch.no_grad():
        of_base = torch.log_softmax(scored(base, batch)[0][batch["places"]], dim=-1)
    logits = scored(tuned, batch)[0].detach().requires_grad_()
    whole = torch.log_softmax(logits[batch["places"]], dim=-1)
    tokens = batch["likeliest"]
    parts, of_parts = whole.gather(1, tokens), of_base.gather(1, tokens)
    if number < 100:
        rest = [(1 - each.exp().sum(1, keepdim=True)).log() for each in (parts, of_parts)]
        parts, of_parts = (torch.cat(pair, dim=1) for pair in zip((parts, of_parts), rest, strict=True))
    expected = kl_div(of_parts, parts, log_target=True, reduction="sum")
    (of_expected,) = torch.autograd.grad(expected, logits)
    found = divergence(logits, batch)
    (of_found,) = torch.autograd.grad(found, logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (of_found - of_expected).abs().max() < 1e-5
    exact = kl_div(of_base, whole, log_target=True, reduction="sum").item()
    assert 0.01 < found.item() <= exact * (1 + 1e-4)
    assert divergence(scored(base, batch)[0], batch).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("micro_batch", [6, 4, 1])
def test_the_update_is_the_same_in_each_layout(models: tuple[Any, Any], layout: Layout, micro_batch: int) -> None:
    base, tuned = models
    rows = with_base(base, make_rows([(4, 3), (2, 9), (7, 2), (1, 4), (3, 1), (5, 6)]))
    loss, kl, gradient = measured(tuned, rows, layout, micro_batch)
    expected, of_expected, whole = measured(tuned, rows, "padded", 1)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert kl == pytest.approx(of_expected, rel=1e-4)
    assert kl[1] == 9 + 4 + 6, "the tokens of the answers of general rows"
    assert (gradient - whole).norm() / whole.norm() < 1e-4


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    """Twelve training rows, of which four are general ones."""
    own = [[f"the question number {i}" + " and more" * (i % 4), f"the answer {i % 3}"] for i in range(14)]
    general = [[f"tell me of thing {i}", f"there is much to be said of the thing {i}, and more"] for i in range(4)]
    splits = make_splits([*own[:8], *general], own[8:11], own[11:])
    file = splits.path("train.parquet")
    table = pq.read_table(file)
    is_general = [None] * 8 + ["replay"] * 4
    pq.write_table(table.set_column(table.schema.get_field_index("use_as"), "use_as", [is_general]), file)
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


def lines(adapter: Adapter) -> list[dict[str, Any]]:
    return [json.loads(line) for line in adapter.path("metrics.jsonl").read_text().splitlines()]


def trained(
    tokens: Tokens, base: Base, method: Method = SMALL, compute: Compute = ONE_THREAD, **changed: Any
) -> Adapter:
    scan = Scan(num_modules=1, chosen=("model.layers.0.mlp.down_proj",)) if method.kind == "spectrum" else None
    return train.fn(tokens, base, method, ANCHORED.model_copy(update=changed), compute, scan)


def kls(adapter: Adapter) -> list[float]:
    return [line["kl"] for line in lines(adapter) if "kl" in line]


@pytest.mark.parametrize(
    "method",
    [
        SMALL,
        Method(rank=2, alpha=4, init="pissa"),
        Method(kind="qlora", rank=2, alpha=4),
        Method(kind="full"),
        Method(kind="spectrum"),
        Method(kind="osf"),
    ],
    ids=["lora", "pissa", "qlora", "full", "spectrum", "osf"],
)
def test_a_training_stays_nearer_to_its_base_by_every_method(
    method: Method, tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_trainers(monkeypatch)
    assert tokens.num_replay == 4
    loose = trained(tokens, tiny_base, method, kl_to_base=1e-6)
    held = trained(tokens, tiny_base, method, kl_to_base=20.0)
    assert kls(loose)[0] == pytest.approx(0, abs=1e-3), "the first step begins as the base"
    assert sum(kls(held)) < 0.9 * sum(kls(loose))
    shown = {point.key: point.value for point in curves(held.path("metrics.jsonl"), 1000)}
    assert shown["train/kl_to_base"] == pytest.approx(kls(held)[-1], abs=1e-3)
    assert "KL divergence from the reference" in held.path("curves.html").read_text()
    assert not any("eval_kl" in line for line in lines(held)), "the validation rows have no general ones"


def test_killed_in_the_middle_it_resumes_to_the_same_bytes(
    tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_trainers(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        undisturbed = trained(tokens, tiny_base, max_steps=24)
    killer = kill_trainer_after(home, '"step": 7', signal.SIGKILL)
    with pytest.raises(TrainerDied, match="SIGKILL"):
        trained(tokens, tiny_base, max_steps=24)
    killer.join()
    resumed = trained(tokens, tiny_base, max_steps=24)
    assert 4 <= json.loads(resumed.path("status.json").read_text())["resumed_from"] < 24
    assert resumed.digest == undisturbed.digest


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *ZERO])
def test_two_ranks_have_the_losses_of_one_process(
    strategy: str, tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "_attempt", by_forks)
    two = trained(
        tokens, tiny_base, compute=ONE_THREAD.model_copy(update={"devices": 2, "strategy": strategy}), micro_batch=1
    )
    monkeypatch.setattr(train_stage, "_attempt", in_this_process)
    one = trained(tokens, tiny_base, micro_batch=2)
    for name in ("loss", "kl", "grad_norm", "eval_loss"):
        ones, twos = ([line[name] for line in lines(adapter) if name in line] for adapter in (one, two))
        assert len(ones) >= 3
        assert twos == pytest.approx(ones, rel=2e-3, abs=1e-5), name


def test_the_plan_counts_the_reading_of_general_rows_and_their_logits(
    tokens: Tokens, tiny_base: Base, home: Path
) -> None:
    ground = ground_of(tiny_base, tokens)
    on = BudgetCase(ground, SMALL, ANCHORED, ONE_THREAD, machine())
    off = replace(on, training=ANCHORED.model_copy(update={"kl_to_base": 0.0}))
    assert ground.num_replay == 4
    assert estimate(on).flops > estimate(off).flops
    assert estimate(on).memory.logits > estimate(off).memory.logits
    assert estimate(on).peak > estimate(off).peak


def test_an_anchor_without_rows_is_refused(tokens: Tokens, tiny_base: Base, home: Path) -> None:
    def settings(*sources: Source, **more: Any) -> Settings:
        given = {"data": Data(sources=sources), "model": Model(base="org/name"), "training": ANCHORED}
        return Settings(**(given | more))

    own, general = Source(path="a.jsonl"), Source(path="b.jsonl", use_as="replay")
    with pytest.raises(ValidationError, match=r"training\.kl_to_base=1 needs general rows: no source in data\.sources"):
        settings(own)
    assert settings(own, general).sft.anchor == 1
    orpo = Preference(method="orpo")
    with pytest.raises(ValidationError, match=r"kl_to_base=1 has no effect, as there is no SFT; leave it out"):
        settings(own, general, preference=orpo)
    assert orpo.schedule(ANCHORED).kl_to_base == Grpo(rewards={"exact_match": 1}).schedule(ANCHORED).kl_to_base == 0
    none_left = tokens.model_copy(update={"num_replay": 0})
    with pytest.raises(ConfigError, match=r"kl_to_base=1 has no effect: no general row \(use_as: replay\) is left"):
        Plan(settings(own, general), "train").require_learnable(settings(own, general), none_left)


def test_by_default_the_own_answers_of_the_base_are_anchored_and_rows_of_people_are_not() -> None:
    def weight(*sources: Source, start: Literal["base", "champion"] = "base", **training: Any) -> float:
        model = Model(base="org/name", start=start)
        return Settings(data=Data(sources=sources), model=model, training=Training(**training)).sft.anchor

    own, general = Source(path="a.jsonl"), Source(path="b.jsonl", use_as="replay")
    assert weight(own) == weight(own, general) == weight(own, general, keep_general="auto") == 0
    assert weight(own, keep_general="auto") == 1
    assert weight(own, start="champion", keep_general="auto") == 0
    assert weight(own, keep_general="auto", kl_to_base=0) == 0
    assert weight(own, keep_general="auto", kl_to_base=10) == weight(own, general, kl_to_base=10) == 10


def test_a_base_that_gave_no_general_rows_is_not_anchored(
    tiny_base: Base, make_splits: MakeSplits, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_trainers(monkeypatch)
    own = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(10)]
    tokens = render.fn(make_splits(own[:8], own[8:9], own[9:]), tiny_base, Model(base="tiny", max_length=256))
    assert len(lines(trained(tokens, tiny_base))) > 3
    assert kls(trained(tokens, tiny_base)) == []
