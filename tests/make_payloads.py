"""Payloads of stages with the least in them, for tests that look at a few of their fields."""

from typing import Any

from tunewright.artifacts.payloads import CheckResults, Comparison, Contract, LeakProof, TrainingSummary, VerdictDetails

EXPECTATION = {
    "name": "secrets",
    "severity": "info",
    "arguments": {"kinds": []},
    "of_set": False,
    "fault": "a text holds a secret",
    "expectation": "expect_column_values_to_be_null",
    "column": "secret",
    "evaluated": 3,
    "failed": 1,
    "share": 0.333333,
    "value": None,
}

SINCE = {"version": "k", "before": 9, "added": 2, "removed": 1, "drift": {}}


def make_check_results(**changes: Any) -> CheckResults:
    """Three records: one refused, one quarantined, one kept, and one finding."""
    fields = {
        "stopped": "",
        "read": 3,
        "refused": 1,
        "rows": 2,
        "kept": 1,
        "quarantined": 1,
        "reasons": {"ingest": {"bad_json": 1}, "check": {}},
        "findings": {"secrets": 1},
        "user_provided_splits": [],
        "held_out": [],
        "conflicting_prompts": 1,
        "files": [{"name": "a.jsonl", "kept": 1, "quarantined": 1}],
        "since": None,
        "expectations": [EXPECTATION],
    }
    return CheckResults.model_validate(fields | changes)


def make_proof(**changes: Any) -> LeakProof:
    """A proof of 90 rows without a version before and without held-out files."""
    fields = {
        "threshold": 0.6,
        "pairs_compared": 0,
        "largest_similarity": 0.3,
        "largest_pair": [],
        "floor": 0.3,
        "random_leak_share": 0.1,
        "rows": {"train": 60, "validation": 10, "test": 20},
        "because": {"train": {}, "validation": {}, "test": {}},
        "quarantined": {},
        "cluster_sizes": {"1": 90},
        "test_clusters": 20,
        "smallest_visible_difference": 0.2486,
        "balance": {"by": "none", "num_strata": 1, "largest_deviation": 0.0, "deviates_most": None, "strata": []},
        "user_provided_splits": [],
        "versions": make_earlier_rows(),
        "time": None,
        "decontamination": make_decontamination(),
        "settings": {},
    }
    return LeakProof.model_validate(fields | changes)


def make_earlier_rows(**changes: Any) -> dict[str, Any]:
    """No version before."""
    counts = ("known_rows", "stayed", "given_elsewhere", "freed_by_a_given_split", "gone", "quarantined")
    return {"earlier": None, **dict.fromkeys(counts, 0)} | changes


def make_decontamination(**changes: Any) -> dict[str, Any]:
    """Nothing in common with evaluation rows."""
    fields = {"training_rows": 0, "removed": False, "by_partner": {}, "held_out_records": 0, "in_held_out": {}}
    return fields | changes


def make_contract() -> Contract:
    """Return the contract of a model that stops at token 0, and pads with it."""
    return Contract(
        chat_template="",
        chat_template_sha256="",
        date_in_template=None,
        generation_prompt="",
        add_special_tokens=False,
        stop_token="",
        stop_token_ids=(0,),
        bos_token_id=None,
        pad_token_id=0,
        pad_is_stop_token=True,
        special_tokens={},
        tokenizer_sha256=None,
        transformers="",
    )


def make_training_summary(**changes: Any) -> TrainingSummary:
    """A training of ten steps, the last of which is the best."""
    fields = {
        "steps": 10,
        "planned_steps": 10,
        "best_step": 10,
        "best_by": "loss",
        "best_value": 1.0,
        "best_validation_loss": 1.0,
        "stopped_early": False,
        "chosen": {},
        "learning_parameters": 5,
        "parameters": 50,
        "skipped_checkpoints": [],
    }
    return TrainingSummary.model_validate(fields | changes)


def make_comparison(**changes: Any) -> Comparison:
    """Better than the base on 100 rows."""
    fields = {
        "metric": "exact_match",
        "opponent": "base",
        "threshold": 0.0,
        "finding": "above",
        "difference": (0.1, 0.2, 0.3),
        "bootstrap": (0.1, 0.3),
        "candidate_mean": 0.6,
        "opponent_mean": 0.4,
        "num_rows": 100,
        "wins": 25,
        "losses": 5,
        "ties": 70,
        "p_below": 0.001,
        "mcnemar_p": 0.001,
        "rows_needed": None,
        "smallest_visible": 0.15,
        "power": 0.2,
    }
    return Comparison.model_validate(fields | changes)


def make_verdict_details(**changes: Any) -> VerdictDetails:
    """A promotion without anything that led to it."""
    fields = {
        "decision": "promote",
        "because": "",
        "sentence": "Promoted: it is better",
        "metric": "exact_match",
        "margin": 0.0,
        "tolerance": 0.02,
        "confidence": 0.95,
        "num_rows": 100,
        "num_clusters": 100,
        "own": {},
        "slices": [],
        "general": {},
    }
    return VerdictDetails.model_validate(fields | changes)
