"""Prices of devices, and runs that would cost more than their budget."""

import re
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import MakeSplits

from tunewright.artifacts import Base, Tokens
from tunewright.config import Model, Operation, Settings
from tunewright.cost_model import devices
from tunewright.cost_model.money import Price, money, price_of, rounded_up, span
from tunewright.cost_model.timing import Rate
from tunewright.errors import ConfigError
from tunewright.flows import budget
from tunewright.flows.budget import BudgetForm
from tunewright.flows.calls import Run, training_inputs
from tunewright.flows.inputs import Inputs
from tunewright.modeling.compute import Device
from tunewright.store import caching, shared
from tunewright.tasks.render import render
from tunewright.tasks.train import calibration, shared_checkpoints

H100 = Device(kind="cuda", name="NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("device", "prices", "found"),
    [
        (Device(), {"cpu": 0.4, "h100": 2.5}, Price(0.4, "cpu")),
        (H100, {"cpu": 0.4, "h100": 2.5}, Price(2.5, "h100")),
        (H100, {"NVIDIA H100": 2.5, "h100": 9.0}, Price(2.5, "NVIDIA H100")),  # the longest
        (H100, {"cpu": 0.4, "a100": 2.5}, None),
        (Device(), {}, None),
    ],
)
def test_the_price_of_a_device_is_that_of_the_longest_key_in_its_name(
    device: Device, prices: dict[str, float], found: Price | None
) -> None:
    assert price_of(device, prices) == found


def test_amounts_of_all_sizes_can_be_read() -> None:
    shown = [money(amount) for amount in (0, 0.0000421, 0.0989, 0.1, 31.204, 1250)]
    assert shown == ["0.00", "0.000042", "0.099", "0.10", "31.20", "1,250.00"]
    assert span(2.001, 2.002) == "2.00"
    assert [rounded_up(amount) for amount in (0.00154, 0.0989, 1.1 * 1.0, 2.231)] == [0.0016, 0.099, 1.1, 2.24]
    assert span(0.5, 2) == "0.50 to 2.00"
    assert Price(3.6, "cpu").of(10, 2) == pytest.approx(0.02)


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    rows = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(19)]
    splits = make_splits(train=rows[:13], validation=rows[13:16], test=rows[16:])
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


NOTHING_READ = Inputs((), "", "", "", (), "", "", (), (), "", "")


def inputs_of(settings: Settings, tokens: Tokens, base: Base) -> dict[str, dict[str, Any]]:
    return training_inputs(settings, NOTHING_READ, tokens, base, None, None)


def settings_of(base: Base, **operation: Any) -> Settings:
    given = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": base.reference}, "registry": {"name": "n"}}
    return Settings.model_validate(given | {"training": {"max_steps": 4, "batch": 4}, "operation": operation})


def test_a_run_over_its_budget_ends_before_it_trains_and_says_what_approves_it(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measured", lambda *_: Rate(1e3, 1e3, "a stopwatch"))
    wanted = (
        r"operation\.budget=0\.5: the run would cost up to ([\d,.]+) by the end of its training: 0\.00 so far, and "
        r"up to ([\d,.]+) for [\d.]+ h of training at 0\.40 an hour of cpu, by a stopwatch; nothing has trained; to "
        r"approve it, add --set operation\.budget=([\d.]+)"
    )

    def ask(**operation: Any) -> None:
        settings = settings_of(tiny_base, prices={"cpu": 0.4}, **operation)
        Run(settings, "register").approve_cost(settings, inputs_of(settings, tokens, tiny_base))

    with pytest.raises(ConfigError, match=wanted) as refused:
        ask(budget=0.5)
    said = re.fullmatch(wanted, str(refused.value))
    assert said
    assert said[1] == said[2]
    ask(budget=float(said[3]))  # what it says is enough
    ask()
    with pytest.raises(ConfigError, match="would cost"):
        ask(budget=float(said[3]) / 1.2)


def test_what_the_run_has_spent_counts_and_an_approval_is_kept_with_the_training(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measured", lambda *_: Rate(1e15, 1e15, "a stopwatch"))
    settings = settings_of(tiny_base, prices={"cpu": 1}, budget=2)
    work = caching.work_folder(caching.folder_of("train", "0" * 20))
    budget.require_approval(settings, tiny_base, tokens, work, 7100.0)
    with pytest.raises(ConfigError, match=r"up to 2\.03 by the end of its training: 2\.03 so far, and up to "):
        budget.require_approval(settings, tiny_base, tokens, work, 7300.0)
    shared_checkpoints.keep_approval(work, '{"by": "Ann"}')
    budget.require_approval(settings, tiny_base, tokens, work, 7300.0)


def test_the_costs_that_are_shown_sum_to_the_total(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = caching.work_folder(caching.folder_of("train", "0" * 20))
    shown = re.compile(r"up to ([\d,.]+) by .*: ([\d,.]+) so far, and up to ([\d,.]+) for ")
    settings = settings_of(tiny_base, prices={"cpu": 3600}, budget=1)  # 1 a second
    monkeypatch.setattr(calibration, "measured", lambda *_: Rate(1e8, 1e8, "a stopwatch"))
    for seconds in range(10):
        with pytest.raises(ConfigError) as refused:
            budget.require_approval(settings, tiny_base, tokens, work, 1000 + seconds / 1000)
        said = shown.search(str(refused.value))
        assert said
        total, spent, cost = (Decimal(each.replace(",", "")) for each in said.groups())
        assert total == spent + cost


def test_the_form_says_that_its_cancel_ends_no_run(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    states: list[str] = []

    def suspending_as(message: str) -> AbstractContextManager[None]:
        states.append(message)
        return nullcontext()

    def ask(question: str) -> BudgetForm:
        asked.append(question)
        return BudgetForm(by="Ann")

    monkeypatch.setattr(calibration, "measured", lambda *_: Rate(1e15, 1e15, "a stopwatch"))
    monkeypatch.setattr(budget, "deployment", SimpleNamespace(id="one"))
    monkeypatch.setattr(budget, "suspending_as", suspending_as)
    monkeypatch.setattr(budget, "_ask", ask)
    settings = settings_of(tiny_base, prices={"cpu": 1}, budget=2)
    work = caching.work_folder(caching.folder_of("train", "0" * 20))
    budget.require_approval(settings, tiny_base, tokens, work, 7300.0)
    (question,) = asked
    assert question.startswith("operation.budget=2: the run would cost up to 2.03 ")
    assert "Its own *Cancel* only closes it: to end the run, close the form and choose *Cancel* in the menu" in question
    (state,) = states
    over = question.partition(".\n")[0]
    assert state == f"{over}; to approve it, choose Resume in this page's menu"
    assert question.endswith("If the page says *Failed to resume flow run*, submit this form again.")


def test_an_approval_is_known_to_another_machine_until_the_training_has_ended(
    tokens: Tokens, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measured", lambda *_: Rate(1e15, 1e15, "a stopwatch"))
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "store"))
    shared._opened.cache_clear()
    settings = settings_of(tiny_base, prices={"cpu": 1}, budget=2)

    def work_at(machine: str) -> Path:
        monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / machine))
        return caching.work_folder(caching.folder_of("train", "0" * 20))

    def require(work: Path) -> None:
        budget.require_approval(settings, tiny_base, tokens, work, 7300.0)

    shared_checkpoints.keep_approval(work_at("a"), '{"by": "Ann"}')
    require(work_at("b"))
    with pytest.raises(ConfigError, match="would cost"):
        require(work_at("b").with_name("1" * 20))
    with pytest.raises(KeyboardInterrupt), shared_checkpoints.kept(work_at("b")):
        raise KeyboardInterrupt
    require(work_at("c"))
    work_at("c").mkdir(parents=True)
    with shared_checkpoints.kept(work_at("c")):
        pass
    with pytest.raises(ConfigError, match="would cost"):
        require(work_at("d"))


def test_where_nothing_has_measured_the_speed_a_few_steps_are_timed(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Base] = []

    def calibrate(base: Base, *_: object) -> Rate:
        timed.append(base)
        return Rate(1e15, 1e15, "a calibration")

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    settings = settings_of(tiny_base, prices={"cpu": 1}, budget=2)
    Run(settings, "split").approve_cost(settings, inputs_of(settings, tokens, tiny_base))  # it will not train
    assert timed == []
    Run(settings, "train").approve_cost(settings, inputs_of(settings, tokens, tiny_base))
    assert timed == [tiny_base]


def test_a_budget_without_a_price_of_this_device_is_refused_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = Operation(prices={"h100": 2.5}, budget=3)
    with pytest.raises(ConfigError, match=r"operation\.budget=3: .* no price of cpu.*; accepted as its key: cpu"):
        budget.require_price(operation)
    here = devices.machine()._replace(device=H100.model_copy(update={"name": "NVIDIA GeForce RTX 4090"}))
    monkeypatch.setattr(devices, "machine", lambda: here)
    with pytest.raises(ConfigError, match=r"accepted as its key: a part of its name, such as 4090"):
        budget.require_price(operation)
    budget.require_price(Operation(prices={"4090": 2.5}, budget=3))
    budget.require_price(Operation(prices={"h100": 2.5}))  # nothing is held against it
    with pytest.raises(ValueError, match="budget has no effect without prices"):
        Operation(budget=3)
    refused: list[dict[str, float]] = [{"cpu": 0}, {"cpu": -1}, {" ": 1}, {"cpu": float("inf")}]
    for prices in refused:
        with pytest.raises(ValueError, match="prices"):
            Operation(prices=prices)
