"""Helpers for tests of register and release: register a candidate as the pipeline does, and read MLflow's state."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from make_payloads import make_comparison, make_verdict_details

from tunewright.artifacts import (
    Adapter,
    Answers,
    Base,
    CheckedRows,
    Judged,
    Prompts,
    Registered,
    Rows,
    RunArtifacts,
    Splits,
    Tokens,
    UniqueRows,
    Verdict,
    VerdictPage,
)
from tunewright.config import Data, Model, Registry, Settings, Source
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.registry.candidate import Candidate
from tunewright.registry.tracking import connected
from tunewright.tasks.register import register

QUESTIONS = ("Where is my order?", "I was charged twice.", "one two three")
METRICS = [
    {"step": 1, "epoch": 0.5, "loss": 2.123456, "learning_rate": 0.000123456, "grad_norm": float("nan")},
    {"step": 2, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.0001, "grad_norm": 3.0, "memory_bytes": 2_000_000_000},
    {"step": 2, "epoch": 1.0, "eval_loss": 1.5, "eval_token_f1": 0.25, "seconds": 1.0},
]


def tune(base: Base, folder: Path, seed: int = 1) -> Path:
    """Write the output of train to `folder`: an adapter that changes the tiny base's answers, contract and curves."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_model(base), config).save_pretrained(str(folder / "model"))
    tokenizer = load_tokenizer(base)
    contract = {
        "chat_template": tokenizer.chat_template,
        "date_in_template": None,
        "stop_token_ids": [tokenizer.eos_token_id],
    }
    (folder / "contract.json").write_text(json.dumps(contract))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in METRICS))
    (folder / "curves.html").write_text("<p>falling</p>")
    return folder


def ask(base: Base, tuned: Path) -> list[str]:
    """The answers that training's own model gives, decoded one token at a time without any cache."""
    import torch

    model, tokenizer = load_model(base, tuned / "model"), load_tokenizer(base)
    answers = []
    for question in QUESTIONS:
        prompt = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        new: list[int] = []
        while len(new) < 6:
            with torch.inference_mode():
                token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        answers.append(tokenizer.decode(new))
    assert len(set(answers)) > 1
    return answers


def register_candidate(
    tmp_path: Path,
    tuned: Path,
    said: list[str],
    splits: Splits,
    *,
    base: Base,
    decision: str = "promote",
    digest: str = "a",
    answers: list[str] | None = None,
    challenged: str = "",
    champions: tuple[str, ...] = ("yes", "no", "no"),
    judged: Judged | None = None,
    prompted: str = "p",
    unanswered: int = 0,
    sentence: str = "",
    precision: str = "float32",
    warnings: tuple[str, ...] = (),
    **sections: Any,
) -> Registered:
    """Registers a candidate; `digest` stands for its weights, `answers` are its own where these are not `said`.

    With `challenged`, the version that it was compared with, `champions` are the answers of that one.

    The few-shot prompt was ended with so many rows `unanswered`.
    """
    scores = {"exact_match": 0.87654321, "perplexity": 1.5}
    own = _answers(tmp_path, splits, "candidate", answers or said, scores, load_tokenizer(base))
    own = own.model_copy(update={"precision": precision, "digest": f"{own.digest} {precision}"})
    others = [
        _answers(tmp_path, splits, "base", ["", "", ""], {"exact_match": 0.05, "perplexity": float("inf")}),
        _answers(tmp_path, splits, "few_shot", ["no", "no", "no"], {"exact_match": 0.05}),
    ]
    others[-1] = others[-1].model_copy(update={"num_unanswered": unanswered})
    if challenged:
        others.append(_answers(tmp_path, splits, "champion", [*champions], {"exact_match": 0.5}))
    prompts = Prompts(stage="prompt", digest=prompted, chosen={"few_shot": "draw 2 of 3"}, num_shortened={})
    report = tmp_path / "render"
    report.mkdir(exist_ok=True)
    (report / "report.html").write_text("<p>all is well</p>")
    settings = Settings(
        data=Data(sources=(Source(path="data.jsonl"),)),
        model=Model(base=base.reference),
        registry=Registry(name="triage"),
    ).model_copy(update=sections)
    of_report = {"stage": "render", "folder": report}
    run = RunArtifacts(
        name="triage",
        rows=_rows(),
        checked=CheckedRows(stage="check", folder=report, num_rows=3, num_quarantined=0, reasons={}, findings={}),
        unique=UniqueRows(stage="dedupe", folder=report, num_rows=3, num_removed=0, reasons={}, boilerplate=()),
        splits=splits,
        tokens=Tokens(
            num_train=1,
            num_validation=1,
            num_test=1,
            num_quarantined=0,
            reasons={},
            num_trained_tokens=9,
            longest=9,
            **of_report,
        ),
        base=base,
        adapter=_adapter(tuned, digest),
        answers=(*others, own),
        verdict=_verdict(tmp_path, decision, challenged, sentence),
        test_set_uses=1,
        warnings=warnings,
        approval=settings.gate.approval,
        prompts=prompts,
        judged=judged,
    )
    candidate = Candidate(
        run=run,
        page=VerdictPage(stage="verdict_page", folder=report, num_rows=3, suggestions=()),
        lineage={"data.jsonl": "0" * 64},
        data_version=3,
        challenged=challenged,
        settings=settings,
    )
    return register.fn(candidate=candidate)


def _answers(
    tmp_path: Path,
    splits: Splits,
    contender: str,
    texts: list[str],
    scores: dict[str, float],
    tokenizer: Any = None,
) -> Answers:
    folder = tmp_path / contender
    folder.mkdir(exist_ok=True)
    rows = pq.read_table(splits.path("test.parquet")).to_pylist()
    prompts = [f"user: {row['messages'][0]['content']}" for row in rows]
    if tokenizer:
        asked = [row["messages"][:-1] for row in rows]
        prompts = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    table = {
        "row_id": [row["row_id"] for row in rows],
        "cluster": [row["cluster"] for row in rows],
        "prompt": prompts,
        "reference": [row["messages"][-1]["content"] for row in rows],
        "answer": texts,
    }
    pq.write_table(pa.table(table), folder / "answers.parquet")
    digest = f"{contender} {texts}"
    return Answers(
        stage="evaluate",
        key="e",
        folder=folder,
        digest=digest,
        contender=contender,
        num_rows=3,
        scores=scores,
        precision="float32",
        max_new_tokens=6,
    )


def _rows() -> Rows:
    return Rows(
        stage="ingest", key="i", digest="r" * 64, num_read=5, num_rows=5, num_quarantined=0, reasons={}, detected={}
    )


def _adapter(tuned: Path, digest: str) -> Adapter:
    return Adapter(
        stage="train",
        key="t",
        folder=tuned,
        digest=digest,
        method="lora",
        steps=2,
        best_step=2,
        best_by="loss",
        best_value=1.5,
        best_validation_loss=1.5,
        stopped_early=False,
        warnings=("overfitting since step 1: seen; try less",),
        train_seconds=3.0,
    )


def _verdict(tmp_path: Path, decision: str, challenged: str, sentence: str) -> Verdict:
    constant = make_comparison(opponent="constant", opponent_mean=0.25)
    make_verdict_details(decision=decision, comparisons=[constant]).save(tmp_path)
    differences = {"base": (0.75, 0.82, 0.88), "constant": (0.5, 0.6, 0.7)} | (
        {"champion": (-0.1, 0.0, 0.1)} if challenged else {}
    )
    return Verdict(
        stage="decide",
        key="d",
        folder=tmp_path,
        digest=f"{decision} {challenged}",
        decision=decision,
        sentence=sentence
        or ("Promoted: better than the base by 0.82." if decision == "promote" else "Not promoted: not better."),
        gain="+.82 [.75, .88] exact match against the base",
        metric="exact_match",
        differences=differences,
        intervals={},
        general={"base": {"general_loss": 3.57301}, "candidate": {"general_loss": 3.92}},
        rows_needed=None,
    )


def aliases() -> dict[str, str]:
    with connected(Registry(name="triage")) as client:
        found = client.search_registered_models("name = 'triage'")
        return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}


def versions() -> list[Any]:
    with connected(Registry(name="triage")) as client:
        return sorted(client.search_model_versions("name = 'triage'"), key=lambda version: int(version.version))


def runs() -> list[Any]:
    """The newest first, each with the models that it was given."""
    with connected(Registry(name="triage")) as client:
        experiment = client.get_experiment_by_name("triage")
        assert experiment
        return [client.get_run(run.info.run_id) for run in client.search_runs([experiment.experiment_id])]
