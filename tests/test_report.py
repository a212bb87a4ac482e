"""What a run's artifacts in the Prefect UI say of where a setting came from."""

from typing import Any

import pytest

from flows.report import origin

DEPLOYED = {"training.max_steps": 80, "data.sources[0].path": "a.jsonl", "data.max_line_bytes": 20_000}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.max_steps", 80, "deployment"),
        ("training.max_steps", 6, "this run; the deployment has 80"),
        ("training.max_steps", None, "default; the deployment has 80"),
        ("data.max_line_bytes", 1_000_000, "default; the deployment has 20000"),
        ("data.sources[0].path", "a.jsonl", "deployment"),
        ("data.sources[0].layout", "auto", "default"),
        ("data.sources[1].path", "b.jsonl", "this run"),
        ("evaluation.metrics", "exact_match, token_f1, chrf, json_valid, perplexity", "default"),
        ("evaluation.metrics", "exact_match", "this run"),
        ("gate.margin", 0.01, "this run"),
    ],
)
def test_a_setting_of_a_deployed_run_says_who_set_it(key: str, value: Any, said: str) -> None:
    assert origin(key, value, DEPLOYED) == said
