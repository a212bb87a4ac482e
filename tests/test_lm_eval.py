"""Tasks of lm-eval are done by base and candidate alike, decide as a guardrail, and are refused up front."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeSplits

from tunewright.artifacts import Answers, Base, Contender, General, Verdict
from tunewright.config import Data, Gate, LmEval, Model, Settings, Source
from tunewright.errors import ConfigError
from tunewright.flows.calls import stages
from tunewright.flows.inputs import inputs
from tunewright.metrics.catalogue import general_item, keep_general
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.tasks.decide import decide
from tunewright.tasks.evaluate import ANSWER_SCHEMA
from tunewright.tasks.lm_eval import identity, lm_eval

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/colours.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SAID = """
task: said
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/colours.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
process_results: !function scoring.score
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: {higher}}}]
"""
SCORING = "def score(doc, said):\n    return {{'{metric}': {value}}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the task colours, a closed question with two answers, and its 12 documents."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(CHOICE.format(folder=folder))
    write_documents(folder, 12)
    return folder


def write_documents(folder: Path, number: int) -> None:
    documents = [{"question": f"{n} is", "choices": ["one", "seven eight"], "answer": n % 2} for n in range(number)]
    (folder / "colours.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in documents))


def add_said(folder: Path, *, metric: str = "points", value: object = 0.5, higher: bool = True) -> None:
    (folder / "said.yaml").write_text(SAID.format(folder=folder, metric=metric, higher=str(higher).lower()))
    (folder / "scoring.py").write_text(SCORING.format(metric=metric, value=value))


def settings(folder: Path, *tasks: str, **more: object) -> LmEval:
    return LmEval.model_validate({"tasks": tasks or ("colours",), "include_path": str(folder)} | more)


def made(base: Base, section: LmEval) -> General:
    return lm_eval.fn(
        contender=Contender(name="base", base=base), lm_eval=section, identity=identity(section), precision="float32"
    )


def items(record: General) -> list[dict[str, object]]:
    return pq.read_table(record.path("general.parquet")).to_pylist()


def test_each_document_has_the_score_that_lm_eval_gives_it(tiny_base: Base, folder: Path) -> None:
    import lm_eval as library
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    add_said(folder, value="doc['answer'] / 4")
    record = made(tiny_base, settings(folder, "colours", "said", limit=10))
    model = load_model(tiny_base)
    harness: Any = library
    model_class: Any = HFLM
    theirs = harness.simple_evaluate(
        model_class(pretrained=model, tokenizer=load_tokenizer(tiny_base), batch_size=4),
        tasks=["colours"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        limit=10,
        bootstrap_iters=0,
    )
    assert record.scores["lm_eval/colours"] == pytest.approx(theirs["results"]["colours"]["acc,none"])
    assert record.scores["lm_eval/said"] == pytest.approx(0.125)
    assert record.scores["lm_eval"] == pytest.approx((record.scores["lm_eval/colours"] + 0.125) / 2)
    rows = items(record)
    assert [row["row_id"] for row in rows if row["part"] == "lm_eval/said"] == [
        f"lm_eval said {n:06}" for n in range(10)
    ]
    chosen = [row for row in rows if row["part"] == "lm_eval/colours"]
    right = [" seven eight" if n % 2 else " one" for n in range(10)]
    assert [row["score"] == 1 for row in chosen] == [
        row["answer"] == answer for row, answer in zip(chosen, right, strict=True)
    ]


def test_the_chat_template_is_asked_with_where_it_is_set(tiny_base: Base, folder: Path) -> None:
    plain, chat = (
        items(made(tiny_base, settings(folder, limit=1, chat_template=on)))[0]["prompt"] for on in (False, True)
    )
    assert plain == "0 is"
    assert str(chat).startswith("<|im_start|>system")
    assert str(chat).endswith("0 is<|im_end|>\n<|im_start|>assistant\n")


def test_a_base_does_them_once_until_what_they_ask_changes(tiny_base: Base, folder: Path) -> None:
    add_said(folder)
    section = settings(folder, "colours", "said", limit=20)
    told, record = identity(section), made(tiny_base, section)
    assert identity(section) == told
    assert made(tiny_base, section).folder == record.folder
    write_documents(folder, 13)
    grown = identity(section)
    add_said(folder, value=0.25)
    rescored = identity(section)
    (folder / "colours.yaml").write_text(CHOICE.format(folder=folder).replace("{{question}}", "Q: {{question}}"))
    assert len({told, grown, rescored, identity(section)}) == 4
    assert identity(LmEval()) == ""


def test_documents_behind_the_limit_are_not_asked(folder: Path) -> None:
    before = identity(settings(folder, limit=12))
    write_documents(folder, 13)
    assert identity(settings(folder, limit=12)) == before


def refused(section: LmEval) -> str:
    whole = Settings(data=Data(sources=(Source(path="rows.jsonl"),)), model=Model(base="base"), lm_eval=section)
    with pytest.raises(ConfigError) as caught:
        inputs(whole)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_done_is_said_before_anything_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(settings(folder / "gone")).startswith(f"lm_eval.include_path={folder}/gone: no such folder")
    unknown = refused(settings(folder, "colors"))
    assert unknown.startswith("lm_eval.tasks: there is no task colors; did you mean colours? accepted:")
    add_said(folder, higher=False)
    assert "said has no metric where higher is better, only points; accepted" in refused(settings(folder, "said"))
    (folder / "colours.jsonl").unlink()
    assert "lm_eval.tasks=colours: cannot be loaded: FileNotFoundError: " in refused(settings(folder))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused(settings(folder)) == (
        "lm_eval.tasks=colours: lm-eval is not installed: pip install 'tunewright[lm-eval]'; accepted without it is "
        "lm_eval.tasks=[]"
    )


@pytest.mark.parametrize("value", ["float('nan')", "7.0", "-1"])
def test_a_score_that_is_no_share_is_refused(tiny_base: Base, folder: Path, value: str) -> None:
    add_said(folder, value=value)
    with pytest.raises(ConfigError, match="said has no score from 0 to 1 per document, only points; accepted:"):
        made(tiny_base, settings(folder, "said", limit=2))


def test_a_task_whose_own_code_fails_is_said_in_one_line(tiny_base: Base, folder: Path) -> None:
    add_said(folder, value="doc['none']")
    with pytest.raises(ConfigError, match=r"^lm_eval\.tasks=said: failed: KeyError: 'none'$"):
        made(tiny_base, settings(folder, "said", limit=2))


def test_without_tasks_nothing_is_done_and_nothing_else_may_be_set(folder: Path) -> None:
    whole = Settings(data=Data(sources=(Source(path="rows.jsonl"),)), model=Model(base="base"))
    assert "lm_eval" not in stages(whole)
    assert "lm_eval" in stages(whole.model_copy(update={"lm_eval": settings(folder)}))
    with pytest.raises(ConfigError, match=r"lm_eval is a stage with lm_eval\.tasks only"):
        stages(whole, until="lm_eval")
    with pytest.raises(ValueError, match=r"limit would have no effect; accepted with lm_eval\.tasks"):
        LmEval(limit=5)


@pytest.fixture
def verdict(tmp_path: Path, make_splits: MakeSplits):
    """`verdict(num_right, **gate)` on a better candidate with so many of 200 documents done right, and the base 120."""
    splits = make_splits([], [], [[f"question {number}", "yes"] for number in range(40)])
    rows = pq.read_table(splits.path("test.parquet"))

    def answers(name: str, score: float) -> Answers:
        folder = tmp_path / name
        folder.mkdir()
        table = pa.table(
            {"row_id": rows["row_id"], "cluster": range(40), "prompt": [""] * 40}
            | {"reference": ["yes"] * 40, "tools": [None] * 40, "answer": [""] * 40}
            | {"stopped": [True] * 40, "num_tokens": [1] * 40, "nll": [1.0] * 40, "num_reference_tokens": [2] * 40}
            | {"margin": [None] * 40},
            ANSWER_SCHEMA,
        )
        pq.write_table(table.append_column("chrf", pa.array([score] * 40)), folder / "answers.parquet")
        record = Answers(contender=name, num_rows=40, scores={}, metric="chrf", is_prose=True)
        return record.model_copy(update={"stage": "evaluate", "folder": folder, "digest": name})

    def suite(name: str, metric: str, num_right: int) -> General:
        folder = tmp_path / f"{metric} {name}"
        folder.mkdir()
        done = [general_item(f"{metric} {n}", metric, f"{metric}/a", "", "", float(n < num_right)) for n in range(200)]
        return keep_general(folder, name, done).model_copy(
            update={"stage": metric, "folder": folder, "digest": f"{num_right}"}
        )

    def of(num_right: int, **gate: object) -> Verdict:
        both = (answers("candidate", 0.9), answers("base", 0.2))
        general = [suite("base", "lm_eval", 120), suite("candidate", "lm_eval", num_right)]
        general += [suite(name, "general_tasks", 100) for name in ("base", "candidate")]
        return decide.fn(answers=both, splits=splits, gate=Gate.model_validate(gate), general=tuple(general))

    return of


def test_a_candidate_that_does_them_as_well_is_promoted_and_one_that_does_not_is_kept(verdict) -> None:
    made = verdict(118)
    assert made.in_words == "promote"
    assert {"lm_eval/base", "general_tasks/base"} < made.guardrails.keys()
    assert json.loads(made.path("verdict.json").read_text())["general"]["candidate"]["lm_eval/a"] == 0.59
    power = "(a guardrail; over 99 % power if nothing is forgotten)"
    said = f"general tasks correct 0.50 -> 0.50 {power}, lm-eval score 0.60 -> 0.59 {power}"
    assert made.says_forgotten() == [said]


def test_a_candidate_that_does_fewer_is_kept_back(verdict) -> None:
    made = verdict(70)
    assert made.in_words == "keep: regression"
    assert made.sentence.startswith(
        "Not promoted: a regression: lm-eval score .35 is worse than the base's .60 by more than .10: -.25"
    )
    assert made.sentence.endswith("on 200 lm-eval documents.")


def test_it_decides_nothing_where_the_gate_says_so(verdict) -> None:
    made = verdict(0, lm_eval=None)
    assert made.in_words == "promote"
    assert made.says_forgotten()[0].endswith("lm-eval score 0.60 -> 0.00 (not used in the decision)")
