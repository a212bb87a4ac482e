"""A metric of the gate that the test rows cannot be measured by is refused before anything is trained."""

from collections.abc import Callable
from typing import Any

import pytest

from tunewright.artifacts import Splits
from tunewright.config import Settings
from tunewright.errors import ConfigError
from tunewright.metrics.shape import require_metrics

NEEDED: dict[str, Any] = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "org/name"}}
LABELS = ("avería", "devolución")


@pytest.fixture
def splits(make_splits: Callable[..., Splits]) -> Splits:
    """Splits whose answers are labels."""
    splits = [[(f"{split} {n}", LABELS[n % 2]) for n in range(size)] for split, size in enumerate((20, 4, 6))]
    return make_splits(*splits)


def require(splits: Splits, **sections: Any) -> None:
    require_metrics(Settings.model_validate(NEEDED | sections), splits, "")


@pytest.mark.parametrize(
    ("gate", "key", "cure"),
    [
        ({"metric": "json_field_f1"}, r"gate\.metric=json_field_f1", "set auto or one of these"),
        (
            {"guardrails": [{"metric": "stopped"}, {"metric": "json_valid"}]},
            r"gate\.guardrails\[1\]\.metric=json_valid",
            "set one of these, or leave it out",
        ),
    ],
)
def test_it_is_refused_with_its_key_why_and_what_fits(
    splits: Splits, gate: dict[str, Any], key: str, cure: str
) -> None:
    why = "6 of 6 references are not JSON, such as 'avería'"
    fits = "exact_match, unparseable, perplexity, stopped"
    said = f"^{key} cannot be measured on the test rows: {why}; {cure}: {fits}; or correct the answers$"
    with pytest.raises(ConfigError, match=said):
        require(splits, gate=gate)


def test_metrics_that_fit_are_accepted(splits: Splits) -> None:
    require(splits)
    require(splits, gate={"metric": "accuracy", "guardrails": [{"metric": "unparseable"}]})


def test_a_gate_that_nothing_measured_can_decide_is_refused(splits: Splits) -> None:
    said = r"^evaluation\.metrics has no metric that can decide on the test rows \(numeric: 6 of 6 references have no"
    with pytest.raises(ConfigError, match=said):
        require(splits, evaluation={"metrics": ["numeric", "macro_f1"]})
    with pytest.raises(ConfigError, match=r"^evaluation\.metrics=numeric is not meaningful: 6 of 6"):
        require(splits, evaluation={"metrics": ["numeric"]})


def test_training_answers_that_do_not_satisfy_the_schema_are_warned_of(
    make_splits: Callable[..., Splits], caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = '{"team": "returns"}', '{"team": 5}'
    splits = make_splits([("a", right), ("b", wrong), ("c", wrong)], [("d", right)], [("e", right)])
    schema = '{"properties": {"team": {"type": "string"}}}'
    settings = Settings.model_validate(NEEDED)
    require_metrics(settings, splits, schema)
    (said,) = caplog.messages
    assert said.startswith("2 of 3 training answers do not satisfy evaluation.json_schema, first data.jsonl line 2: ")
    caplog.clear()
    require_metrics(settings, make_splits([("a", right)], [("d", right)], [("e", right)]), schema)
    assert caplog.messages == []
