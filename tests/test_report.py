"""What a run's artifacts in the Prefect UI say: where a setting came from, and how training went."""

import base64
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flows.report import origin, training
from tasks import curves
from tasks.artifacts import Adapter

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


def test_the_page_and_the_artifact_of_training_say_what_is_worth_a_change_and_escape_it(tmp_path: Path) -> None:
    steps = [{"step": n, "planned": 20, "loss": 2.0 / n, "worst": [["<img src=x>", 9.0]]} for n in range(1, 16)]
    looks = [{"step": n, "planned": 20, "eval_loss": 1.0 + abs(n - 10) / 10} for n in (5, 10, 15)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in steps + looks))
    ending = {"best_step": 10, "best_by": "loss", "stopped_early": True}
    (tmp_path / "summary.json").write_text(json.dumps(ending))
    chosen = {"packing": True, "because": {"packing": "<script>"}}
    facts = {"chosen": chosen, "learning_parameters": 5, "parameters": 50}
    (tmp_path / "status.json").write_text(json.dumps(facts))
    found = curves.read(tmp_path)
    curves.write_page(tmp_path / "curves.html", found, curves.warnings(found))
    page = (tmp_path / "curves.html").read_text()
    assert "<img" not in page
    assert "<script" not in page
    assert "&lt;img src=x&gt;" in page
    assert "stopped early at step 15 of 20" in page
    adapter = Adapter(
        folder=tmp_path,
        method="lora",
        steps=15,
        best_step=10,
        best_by="loss",
        best_value=1.0,
        best_validation_loss=1.0,
        stopped_early=True,
        warnings=("overfitting since step 10: <b>; fewer epochs",),
        train_seconds=600.0,
    )
    shown = training(adapter)
    assert shown.startswith("Stopped early after 15 steps in 10 min; the best is step 10 (validation loss 1).")
    assert "overfitting since step 10: &lt;b&gt;" in shown
    picture = base64.b64decode(shown.partition("base64,")[2].partition(")")[0]).decode()
    assert ElementTree.fromstring(picture.strip()).tag.endswith("svg")
