"""Warnings say what synthetic curves were made to show, and nothing of healthy ones, however noisy."""

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tunewright.reports.curves import Curves, is_cut_short, is_falling, warnings
from tunewright.reports.curves.advice import windows

Shape = Callable[[float], float]  # of the share of training that is done


def make(
    train: Shape,
    validation: Shape,
    *,
    noise: float = 0.1,
    steps: int = 300,
    evaluations: int = 6,
    seed: int = 0,
    norms: Sequence[float] = (),
    **ending: Any,
) -> Curves:
    """Curves of these shapes; the training loss has gamma noise of this relative deviation, as single rows' losses."""
    draw = random.Random(seed)
    shape = 1 / noise**2
    every = steps // evaluations
    lines = [
        {
            "step": step,
            "planned": steps,
            "loss": train(step / steps) * draw.gammavariate(shape, 1 / shape),
            "grad_norm": norms[step - 1] if norms else draw.lognormvariate(0, 0.8),
        }
        for step in range(1, steps + 1)
    ]
    seen = [
        {"step": step, "eval_loss": validation(step / steps) * (1 + 0.001 * draw.gauss(0, 1))}
        for step in range(every, steps + 1, every)
    ]
    best = min(seen, key=lambda line: line["eval_loss"])["step"]
    return Curves(steps=lines, evaluations=seen, best_step=best, **ending)


def kinds(curves: Curves) -> list[str]:
    return [warning.kind for warning in warnings(curves)]


def falling(done: float) -> float:
    return 0.4 + 1.6 * math.exp(-5 * done)


def settling(done: float) -> float:
    return 0.6 + 1.4 * math.exp(-4 * done)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("noise", "steps"), [(0.1, 60), (0.3, 300), (1.0, 300), (1.0, 3_000)])
def test_a_healthy_run_has_no_warning_however_noisy_its_steps(seed: int, noise: float, steps: int) -> None:
    assert kinds(make(falling, settling, noise=noise, steps=steps, seed=seed)) == []


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_validation_that_rises_while_training_falls_is_overfitting_since_the_lowest(noise: float) -> None:
    curves = make(
        falling, lambda done: settling(done) + 2 * max(0, done - 0.5) ** 2, noise=noise, steps=600, evaluations=12
    )
    (warning,) = warnings(curves)
    assert warning.short == "overfitting since step 350" or warning.short == "overfitting since step 300"
    assert "epochs" in warning.advice
    assert f"{min(line['eval_loss'] for line in curves.evaluations):.4g}" in warning.seen


def test_a_metric_that_is_still_rising_is_no_overfitting() -> None:
    curves = make(falling, lambda done: settling(done) + 2 * max(0, done - 0.5) ** 2, evaluations=12)
    best = curves.evaluations[-1]["step"]
    assert kinds(Curves(curves.steps, curves.evaluations, best_step=best, best_by="exact_match")) == []


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_a_loss_that_does_not_fall_is_no_learning(noise: float) -> None:
    assert kinds(make(lambda _: 1.5, lambda _: 1.5, noise=noise)) == ["no learning"]


@pytest.mark.parametrize("noise", [0.05, 0.3, 0.6])
def test_a_training_loss_that_climbs_again_is_divergence(noise: float) -> None:
    curves = make(lambda done: falling(done) + 4 * max(0, done - 0.4), lambda done: 1 + done, noise=noise)
    assert kinds(curves) == ["divergence"]


def test_a_training_that_blew_up_is_divergence_although_its_loss_falls_again() -> None:
    blown_up = [6.3, 40.0, 90.0, *(max(5.0, 133 - 8 * step) for step in range(1, 73))]
    steps = [{"step": step, "planned": 75, "loss": loss} for step, loss in enumerate(blown_up, 1)]
    evaluations = [{"step": step, "eval_loss": loss} for step, loss in ((25, 47.3), (50, 17.9), (75, 4.97))]
    (warning,) = warnings(Curves(steps, evaluations, best_step=75))
    assert warning.short == "divergence since step 1"
    assert warning.seen.startswith("the training loss rose from 6.3 at step 1 to ")
    assert "third of training.learning_rate" in warning.advice
    calm = [{**line, "loss": 0.001 + line["step"] / 1_000} for line in steps]
    assert "divergence" not in kinds(Curves(calm[:10], [], best_step=10)), "a first loss of 0 is no measure"


def test_a_validation_loss_that_stays_is_a_plateau() -> None:
    (warning,) = warnings(make(falling, lambda done: 0.6 + 1.4 * math.exp(-20 * done), evaluations=10))
    assert warning.kind == "plateau"
    assert warning.step == 180


def test_a_validation_loss_that_is_still_falling_at_the_planned_end_asks_for_more() -> None:
    curves = make(lambda done: 2 - done, lambda done: 2 - done)
    assert kinds(curves) == ["still falling at the end"]
    assert kinds(Curves(curves.steps, curves.evaluations, curves.best_step, stopped_early=True)) == []


@pytest.mark.parametrize(
    ("losses", "best", "is_short"),
    [
        ({13: 0.68, 26: 0.46, 39: 0.42, 40: 0.423}, 39, True),
        ({13: 0.68, 26: 0.46, 39: 0.461, 40: 0.46}, 26, False),
        ({39: 0.7, 40: 0.69}, 40, True),
        ({20: 0.7, 40: 0.699}, 40, False),
        ({}, 40, True),
    ],
)
def test_an_evaluation_just_before_the_end_does_not_hide_how_the_loss_went(
    losses: dict[int, float], best: int, is_short: bool
) -> None:
    steps = [{"step": at, "planned": 40, "epoch": at / 25, "loss": 1.0} for at in range(1, 41)]
    seen = [{"step": at, "eval_loss": loss} for at, loss in losses.items()]
    curves = Curves(steps, seen, best, status={"max_steps": 40})
    assert is_cut_short(curves) == is_short
    assert is_falling(curves) == (len(losses) == 4 and is_short)
    assert [at for at, _ in curves.course("eval_loss")] == [at for at in losses if at != 39]


@pytest.mark.parametrize(("max_steps", "setting"), [(300, "training.max_steps"), (None, "training.epochs")])
def test_advice_names_the_setting_that_says_how_long_to_train(max_steps: int | None, setting: str) -> None:
    shapes: list[tuple[Shape, Shape, str]] = [
        (falling, lambda done: settling(done) + 2 * max(0, done - 0.5) ** 2, f"try fewer {setting}, a lower"),
        (falling, lambda done: 0.6 + 1.4 * math.exp(-20 * done), f"fewer {setting} give nearly the same loss"),
        (lambda done: 2 - done, lambda done: 2 - done, f"try more {setting} or a higher"),
    ]
    for train, validation, said in shapes:
        (warning,) = warnings(make(train, validation, evaluations=12, status={"max_steps": max_steps}))
        assert warning.advice.startswith(said), warning


@pytest.mark.parametrize(
    ("method", "lower", "higher"),
    [
        ("lora", " or method.rank", "a higher method.rank or "),
        ("spectrum", " or method.share", "a higher method.share or "),
        ("full", "", ""),
    ],
)
def test_advice_names_no_setting_that_does_not_act_with_the_method(method: str, lower: str, higher: str) -> None:
    rising = lambda done: settling(done) + 2 * max(0, done - 0.5) ** 2  # noqa: E731
    flat = lambda done: 0.6 + 1.4 * math.exp(-20 * done)  # noqa: E731
    (over,) = warnings(make(falling, rising, evaluations=12, status={"method": method}))
    assert over.advice == f"try fewer training.epochs, a lower training.learning_rate{lower}, or more rows"
    (level,) = warnings(make(falling, flat, evaluations=12, status={"method": method}))
    assert level.advice.endswith(f"for a lower one try {higher}more rows")


def test_what_stopped_early_would_have_gone_on_with_more_patience() -> None:
    curves = make(falling, settling, stopped_early=True, status={"max_steps": 900})
    assert (curves.planned_by, curves.ended_by) == ("training.max_steps", "training.patience")


def test_gradient_spikes_are_counted_with_the_largest() -> None:
    norms = [random.Random(step).lognormvariate(0, 0.3) for step in range(300)]
    norms[120], norms[200] = 80.0, 300.0
    (warning,) = warnings(make(falling, settling, norms=norms))
    assert warning.short == "gradient spikes since step 121"
    assert re.match(r"2, the largest 300 at step 201 \(median of the steps around it: (0\.9|1\.0)", warning.seen)


def test_gradients_that_fall_by_orders_of_magnitude_are_no_spikes() -> None:
    norms = [max(math.exp(1.5 - step / 10), 0.01) * random.Random(step).lognormvariate(0, 0.5) for step in range(336)]
    assert kinds(make(falling, settling, steps=336, norms=norms)) == []
    norms[90] = 9.8
    (warning,) = warnings(make(falling, settling, steps=336, norms=norms))
    assert warning.sentence.startswith("gradient spikes: 9.8 at step 91 (median")


def test_of_a_few_steps_or_none_nothing_is_said_that_noise_could_have_done() -> None:
    assert kinds(make(lambda _: 1.5, lambda _: 1.5, steps=8, evaluations=4, noise=0.05)) == []
    assert kinds(Curves(steps=[], evaluations=[], best_step=0)) == []


def test_windows_cover_the_series_in_order() -> None:
    found = windows([(step, float(step)) for step in range(1, 121)], most=12)
    assert [(window.first, window.last) for window in found] == [(10 * at + 1, 10 * at + 10) for at in range(12)]
    assert found[0].mean == 5.5


def preferred(method: str, **rewards: float) -> str:
    """The first warning about a training on preferences whose best evaluation has these figures."""
    line: dict[str, Any] = {"step": 4, "planned": 4, "loss": 0.5, "grad_norm": 1.0, "reward_accuracy": 0.5}
    seen = {
        "step": 4,
        "planned": 4,
        "eval_loss": 0.5,
        **{f"eval_reward_{name}": each for name, each in rewards.items()},
    }
    found = warnings(Curves([line], [seen], best_step=4, status={"preference": method}))
    return found[0].sentence if found else ""


def test_labelled_answers_have_a_margin_and_no_rank() -> None:
    assert "ranked right, which chance does too" in preferred("dpo", accuracy=0.34, margin=0.3, chosen=0.1)
    assert preferred("kto", accuracy=0.34, margin=0.3, chosen=0.1) == ""
    said = preferred("kto", accuracy=0.34, margin=0.33, chosen=-0.54)
    assert said.startswith("desirable answers became less likely")
    assert "raise preference.desirable_weight" in said and "sft_weight" not in said
    assert preferred("kto", accuracy=0.6, margin=-0.1, chosen=0.1).startswith("no preference learnt")
    assert "add preference.sft_weight=1" in preferred("dpo", accuracy=0.9, margin=0.33, chosen=-0.54)
