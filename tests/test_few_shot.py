"""A few-shot prompt is a candidate: it is measured, registered, served as measured and compared like any other."""

import json
import re
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pyarrow.parquet as pq
import pytest
from conftest import Harness, Once
from prefect import State
from rich.console import Console
from test_json import documented, faults
from test_semantic import SYNONYMS, save_model
from trained import done_once, first_home

from tunewright import serving
from tunewright.artifacts import Base, Prepended
from tunewright.cli import deployment_file
from tunewright.cli import plan as planning
from tunewright.cli.compare import variants
from tunewright.cli.predict.model import Answerer, fetch
from tunewright.cli.serve.answering import ServedVersion
from tunewright.cli.serve.asking import RequestError
from tunewright.cli.terminal import show_outcome
from tunewright.config import (
    Compute,
    Data,
    Evaluation,
    Gate,
    Method,
    Model,
    Registry,
    Settings,
    Source,
    Split,
    Training,
)
from tunewright.errors import ConfigError
from tunewright.export import ExportRequest, export
from tunewright.flows.calls import stages
from tunewright.flows.finetune import finetune, plan
from tunewright.flows.outcome import Outcome
from tunewright.modeling.chat import Chat
from tunewright.modeling.models import load_tokenizer
from tunewright.registry import rehearsal, release
from tunewright.registry.tracking import connected
from tunewright.registry.versions import verified
from tunewright.tasks.prepend import KeptExamples
from tunewright.tasks.prompt import Asking, PromptScore, shots

ORDER = "You are asked by a customer. Say what it is about, in one word.\n\n"
SUBJECTS = ("my parcel", "the red shoes", "a broken lamp", "one late letter", "your green chair", "an old phone")
PLACES = ("in Berlin", "at the harbour", "from Lisbon", "near our school", "on the train", "by the lake")
ROWS = [
    {"instruction": f"{ORDER}{subject} {place} {what}", "output": ("refund", "delivery", "repair")[i % 3]}
    for i, subject in enumerate(SUBJECTS)
    for place in PLACES
    for what in ("is missing", "came late")
]
FEW_SHOT = Method(kind="few_shot")


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@pytest.fixture(scope="module")
def settings(tiny_base: Base) -> Settings:
    return Settings(
        data=Data(sources=(Source(path="rows.jsonl"),)),
        model=Model(base=tiny_base.reference, max_length=256),
        split=Split(test=0.3),
        method=FEW_SHOT,
        compute=Compute(threads=1),
        evaluation=Evaluation(max_new_tokens=4, shots=4, contenders=("few_shot",)),
        gate=Gate(metric="perplexity", confidence=0.6, guardrails=()),
        registry=Registry(name="tiny"),
    )


def run(settings: Settings) -> State[Any]:
    sections = {name: getattr(settings, name) for name in Settings.model_fields}
    return finetune(**sections, until="register", refresh=(), return_state=True)


@pytest.fixture(scope="module")
def done(
    server: None, settings: Settings, once: Once, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, State[Any]]:
    """The folder of a first run and its final state: the one that tests here start from."""
    folder = tmp_path_factory.mktemp("done")
    with first_home(folder, once, mlflow_database):
        Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
        return folder, run(settings)


@pytest.fixture(autouse=True)
def _copy(done: tuple[Path, State[Any]], home: Path, once: Once, monkeypatch: pytest.MonkeyPatch) -> None:
    done_once(once, monkeypatch)
    shutil.copytree(done[0], home.parent, dirs_exist_ok=True)
    monkeypatch.chdir(home.parent)


def kept(settings: Settings, number: str) -> Path:
    """A verified copy of the files of a version."""
    with connected(settings.registry) as client:
        return verified(client, client.get_model_version(settings.registry.name, number))


def prompts_in(table: Path) -> dict[str, list[int]]:
    rows = pq.read_table(table).to_pylist()
    return {row["row_id"]: row["input_ids"][: row["prompt_length"]] for row in rows}


def test_a_candidate_whose_examples_no_prompt_has_room_for_is_refused(settings: Settings) -> None:
    evaluation = settings.evaluation.model_copy(update={"max_new_tokens": 2_040})
    model = settings.model.model_copy(update={"max_length": 2_048})
    narrow = settings.model_copy(update={"evaluation": evaluation, "model": model})
    with pytest.raises(ConfigError) as refused:
        run(narrow).result()
    assert str(refused.value) == (
        "method.kind=few_shot: no test prompt has room for an example: the base's context of 2,048 tokens keeps 2,040 "
        "for the answer; lower evaluation.max_new_tokens, or choose a base with a longer context"
    )


def test_a_version_is_asked_and_answers_as_it_was_measured(done: tuple[Path, State[Any]], settings: Settings) -> None:
    made = Outcome.of(done[1].result())
    assert made.registered and made.splits and made.examples
    assert [step.name for step in made.steps][-8:] == [
        *("render", "examples", "prepend candidate", "evaluate base", "evaluate candidate", "decide", "verdict_page"),
        "register",
    ]
    assert not made.trainings
    copy = kept(settings, made.registered.version)
    assert "artifacts/model/examples.json" in json.loads((copy / serving.DIGESTS).read_text())
    assert not list((copy / "artifacts" / "model").glob("*.safetensors"))
    told = json.loads((copy / "artifacts" / "model" / "examples.json").read_text())
    train = {row["row_id"]: row["messages"] for row in pq.read_table(made.splits.path("train.parquet")).to_pylist()}
    assert told["examples"] == [train[row_id] for row_id in told["row_ids"]]
    assert len(told["examples"]) == made.examples.num_examples in (2, 4)
    tried = json.loads(made.examples.path("prompts.json").read_text())["few_shot"]["tried"]
    assert max(tried, key=lambda each: (each["exact_match"], each["log_likelihood"]))["shots"] == told["row_ids"]

    test = pq.read_table(made.splits.path("test.parquet")).to_pylist()
    measured = {
        row["row_id"]: row for row in pq.read_table(made.answers["candidate"].path("answers.parquet")).to_pylist()
    }
    (prepended,) = [step.record for step in made.steps if isinstance(step.record, Prepended)]
    evaluated = prompts_in(prepended.path("test.parquet"))
    questions = [row["messages"][:-1] for row in test]
    chat = rehearsal.load(copy)
    prompts = chat.prompts(questions)
    assert prompts == [evaluated[row["row_id"]] for row in test]
    for row, prompt in zip(test, prompts, strict=True):
        text = chat.tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        assert text == measured[row["row_id"]]["prompt"]
        assert text.count(ORDER) == 1
        for example in told["examples"]:
            assert example[0]["content"].removeprefix(ORDER) in text
    said = [chat.text(ids) for ids in chat.answer(prompts, 4)]
    assert said == [measured[row["row_id"]]["answer"] for row in test]
    assert said == mlflow.pyfunc.load_model(str(copy)).predict([{"messages": question} for question in questions])

    version = fetch(settings.registry, made.registered.version)
    answerer = Answerer(version, 4, 8)
    assert answerer.ask(questions) == prompts
    served = ServedVersion(version)
    assert [served.prompt_tokens(each) for each in questions] == prompts
    with pytest.raises(
        RequestError, match="a few-shot prompt, which a text as it stands has no place for; accepted: mes"
    ):
        served.raw_tokens("Hello")
    for form in ("merged", "adapter", "vllm"):
        request = ExportRequest(settings.registry, made.registered.version, Path("exported"), form)
        with pytest.raises(ConfigError, match="serve it with: tunewright serve tiny --version 1"):
            export(request, lambda _: None)


def test_examples_are_left_out_as_the_evaluation_leaves_them_out(
    done: tuple[Path, State[Any]], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Outcome.of(done[1].result())
    assert made.registered and made.splits and made.tokens
    copy = kept(settings, made.registered.version)
    (base,) = [step.record for step in made.steps if isinstance(step.record, Base)]
    chat = rehearsal.load(copy)
    assert chat.example_prompt
    test = pq.read_table(made.splits.path("test.parquet")).to_pylist()
    questions = [row["messages"][:-1] for row in test]
    whole = max(map(len, chat.prompts(questions)))
    seen = set[int]()
    for context in range(whole // 2, whole + chat.example_prompt.room + 2, max(1, whole // 16)):
        monkeypatch.setattr(serving.ServedChat, "context", context)
        asked = shots.ask(
            Chat(load_tokenizer(base), base.weights),
            KeptExamples(chat.example_prompt),
            test,
            [[*range(len(chat.example_prompt.examples))]] * len(test),
            context=context,
            max_new_tokens=chat.example_prompt.room,
        )
        prompts = chat.prompts(questions)
        assert prompts == [row.tokens.input_ids[: row.tokens.prompt_length] for row in asked]
        seen |= {len(row.shots) for row in asked}
        assert chat.prompts(questions, max_new_tokens=10_000) == chat.prompts(questions, max_new_tokens=20_000)
    assert len(seen) > 1


def test_nothing_is_said_of_a_training_that_was_none(done: tuple[Path, State[Any]], settings: Settings) -> None:
    made = Outcome.of(done[1].result())
    assert made.registered and made.page and made.examples
    said = made.examples.says()
    assert said.startswith("Nothing was trained: the candidate is the base with a few-shot prompt of ")
    printed = json.loads(json.dumps(made.as_json()))
    assert not {"training", "preference", "divergence"} & printed.keys()
    keys = documented()["run"]
    assert [*faults(printed, "", keys, seen := set[str]())] == []
    assert {key for key in keys if key.startswith("examples")} <= seen
    assert printed["verdict"]["general"] == {}

    page = made.page.path("report.html").read_text()
    assert said in page and "Few-shot prompt</h2>" in page
    assert not re.search(r"best step|epochs|stopped early|Forgetting</h2>|class=.curve", page)
    assert f"examples <code>examples/{made.examples.key}</code>" in page
    assert "Train on the rows: method.kind=lora" in page
    output = StringIO()
    show_outcome(Console(file=output, width=200), made, "x.yaml")
    shown = output.getvalue()
    assert said in shown and str(made.examples.file) in shown and "\ncurves" not in shown

    with connected(settings.registry) as client:
        found = client.get_run(made.registered.run_id)
        description = client.get_model_version("tiny", made.registered.version).description or ""
    assert found.data.tags["training"] == said
    assert f"Method: few-shot prompt. {said}" in description
    assert not [key for key in found.data.metrics if key.startswith(("train", "validation", "forgetting"))]
    assert (found.data.params["method.kind"], found.data.params["evaluation.shots"]) == ("few_shot", "4")


def test_a_later_candidate_is_compared_with_a_prompt_and_a_prompt_with_a_trained_champion(
    done: tuple[Path, State[Any]], settings: Settings
) -> None:
    assert {step.state for step in plan(settings, "register", ())} == {"cached"}
    first = Outcome.of(done[1].result())
    release.promote(settings.registry, "1", by="ada", why="a trial")  # which rehearses it once more
    training = Training(learning_rate=0.01, max_steps=2, batch=4, evaluate_every=1)
    lora = settings.model_copy(update={"method": Method(rank=2, alpha=4), "training": training})
    would = {step.name: step for step in plan(lora, "register", ())}
    assert would["prepend champion"].state == "run"
    trained = Outcome.of(run(lora).result())
    assert "prepend champion" in [step.name for step in trained.steps]
    assert trained.verdict and trained.registered and trained.splits
    assert {"base", "champion", "few_shot"} <= trained.verdict.differences.keys()
    # The prompt that is the champion is the one that is a contender, chosen on the same rows.
    assert trained.answers["champion"].scores == pytest.approx(first.answers["candidate"].scores)
    assert trained.answers["champion"].scores == pytest.approx(trained.answers["few_shot"].scores)
    assert (trained.name, trained.alias) == ("Promoted", "@champion")

    again = Outcome.of(run(settings).result())
    assert again.registered and again.registered.version == "1"
    assert again.verdict and {"base", "champion"} <= again.verdict.differences.keys()
    assert again.answers["champion"].scores == pytest.approx(trained.answers["candidate"].scores)
    states = {step.name: step.state for step in again.steps}
    assert (states["examples"], states["evaluate candidate"]) == ("cached", "cached")
    assert "prepend champion" not in states

    back = release.rollback(settings.registry, by="ada", why="enough")
    assert (back.event.after, back.rehearsed) == ("1", rehearsal.REHEARSED)
    other = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"shots": 2})})
    would = {step.name: step for step in plan(other, "register", ())}
    assert would["examples"].because == ["evaluation.shots: 4 -> 2"]
    assert would["prepend candidate"].because == ["runs after examples"]


@pytest.mark.parametrize("by", ["bm25", "embedding"])
def test_a_retrieval_prompt_is_asked_and_answers_as_it_was_measured(
    by: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = iter([2, 1] if by == "bm25" else [1, 2])  # of the two that are tried, the first by words
    monkeypatch.setattr(Asking, "found", lambda *_: PromptScore(0.0, float(next(order, 0))))
    made = Outcome.of(run(settings.model_copy(update={"method": Method(kind="retrieval")})).result())
    assert made.registered and made.splits and made.examples and made.page
    copy = kept(settings, made.registered.version)
    told = json.loads((copy / "artifacts" / "model" / "examples.json").read_text())
    train = {row["row_id"]: row["messages"] for row in pq.read_table(made.splits.path("train.parquet")).to_pylist()}
    assert (copy / "artifacts" / "model" / "embedding").is_dir() == (by == "embedding")
    assert {*told["row_ids"]} == {*train} and len(told["examples"]) == made.examples.num_examples == len(train)

    test = pq.read_table(made.splits.path("test.parquet")).to_pylist()
    (prepended,) = [step.record for step in made.steps if isinstance(step.record, Prepended)]
    evaluated = prompts_in(prepended.path("test.parquet"))
    questions = [row["messages"][:-1] for row in test]
    chat = rehearsal.load(copy)
    prompts = chat.prompts(questions)
    assert prompts == [evaluated[row["row_id"]] for row in test]
    assert Answerer(fetch(settings.registry, made.registered.version), 4, 8).ask(questions) == prompts
    before = set[tuple[int, ...]]()
    for question, prompt in zip(questions, prompts, strict=True):
        assert chat.example_prompt
        chosen = chat.example_prompt.chosen(question)
        text = chat.tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        places = [text.index(told["examples"][at][0]["content"].removeprefix(ORDER)) for at in chosen]
        assert len(places) == 4 and places == sorted(places)
        said = {*question[0]["content"].removeprefix(ORDER).split()}
        shared = [len(said & {*example[0]["content"].removeprefix(ORDER).split()}) for example in told["examples"]]
        assert shared[chosen[-1]] >= max(shared) - 1  # BM25 counts rare words more, and embeddings what they mean
        before.add(tuple(chosen))
    assert len(before) > len(test) // 2

    assert made.answers["candidate"].scores != made.answers["few_shot"].scores  # which is its contender
    said = made.examples.says()
    names = ("BM25", "embeddings") if by == "bm25" else ("embeddings", "BM25")
    assert said.startswith(
        "Nothing was trained: the candidate is the base with a retrieval prompt of 4 nearest rows of "
        f"{len(train)} by {names[0]} (chosen over {names[1]} on "
    )
    page = made.page.path("report.html").read_text()
    assert "Retrieval prompt</h2>" in page and said in page
    assert f"The registered version contains {len(train)} training rows" in page
    with pytest.raises(ConfigError, match=r"is the base with a retrieval prompt: it has no weights of its own"):
        export(ExportRequest(settings.registry, made.registered.version, Path("out"), "merged"), lambda _: None)


def test_with_a_static_model_a_question_finds_the_examples_that_say_the_same(tmp_path: Path) -> None:
    texts = [word for word, _ in SYNONYMS]
    examples = [[{"role": "user", "content": text}, {"role": "assistant", "content": "one"}] for text in texts]
    file = tmp_path / "examples.json"
    file.write_text(json.dumps({"examples": examples, "opening": "", "room": 8, "nearest": 2}))
    asked = [[{"role": "user", "content": synonym}] for _, synonym in SYNONYMS]
    by_words = serving.example_prompt(tmp_path)
    assert by_words and {by_words.chosen(messages)[-1] for messages in asked} == {0}, "they share no word"
    save_model(tmp_path / "embedding")
    prompt = serving.example_prompt(tmp_path)
    assert prompt and [prompt.chosen(messages)[-1] for messages in asked] == [*range(len(texts))]
    (tmp_path / "embedding" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        serving.example_prompt(tmp_path)


def test_a_question_finds_the_examples_that_share_its_rare_words() -> None:
    said = ["where is my card", "where is my parcel", "退货怎么办理", "如何修改密码", "Où est ma CARTE?"]
    examples = [[{"role": "user", "content": text}, {"role": "assistant", "content": "card"}] for text in said]
    prompt = serving.ExamplePrompt(examples, "", 8, nearest=2)

    def found(*texts: str) -> list[int]:
        return prompt.chosen([{"role": "user", "content": text} for text in texts])

    assert found("the card, please")[-1] == 0
    assert found("parcel")[-1] == 1
    assert found("密码忘了")[-1] == 3  # written without spaces
    assert found("ma carte")[-1] == 4
    assert found("nothing of it") == [1, 0]  # none is more like it: the first
    assert found("")[-1] == 0 and len(found("", "parcel")) == 2
    assert serving.ExamplePrompt(examples, "", 8).chosen([]) == [0, 1, 2, 3, 4]
    assert serving.ExamplePrompt(examples, "", 8, nearest=9).chosen([])[-1] == 0


def test_earlier_answers_are_compared_where_the_version_says_so_and_the_last_never(tmp_path: Path) -> None:
    def said(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]

    examples = [said("Hi", "Which lamp?", "That", "red"), said("Hi", "Which shoe?", "That", "lamp")]
    kept = {"examples": examples, "opening": "", "room": 8, "nearest": 1}
    for told in (kept | {"compares_answers": True}, kept):
        (tmp_path / serving.EXAMPLES).write_text(json.dumps(told))
        prompt = serving.example_prompt(tmp_path)
        assert prompt and prompt.chosen(said("Hi", "Which lamp?", "That")) == [0]
        is_compared = "compares_answers" in told
        assert prompt.chosen(said("Hi", "Which shoe?", "That")) == [1 if is_compared else 0]
        assert prompt.chosen(said("Hi", "Which shoe?", "That", "Which lamp?")) == [1 if is_compared else 0]


def test_a_sentence_that_many_examples_share_finds_none() -> None:
    orders = ("Say what it is about:", "Sag, worum es geht!")  # each in half of the examples
    topics = ("card", "parcel", "refund", "lamp", "shoe", "chair", "phone", "table", "sofa", "coat", "ring", "shirt")
    said = [f"{order}\n{topic}" for topic in topics for order in orders]
    examples = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in said]
    prompt = serving.ExamplePrompt(examples, "", 8, nearest=2)
    chosen = prompt.chosen([{"role": "user", "content": f"{orders[0]} the shirt"}])
    assert [said[at].split("\n")[1] for at in chosen] == ["shirt", "shirt"]
    assert prompt.chosen([{"role": "user", "content": orders[1]}]) == [1, 0]  # none is more like it: the first


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"preference": {"method": "dpo"}}, "preference.method=dpo has no effect with method.kind=few_shot"),
        ({"grpo": {"rewards": {"exact_match": 1}}}, "grpo.rewards has no effect with method.kind=few_shot"),
        ({"checks": {"label_error_folds": 2}}, "checks.label_error_folds has no effect with method.kind=few_shot"),
        ({"lm_eval": {"tasks": ["arc_easy"]}}, "lm_eval.tasks has no effect with method.kind=few_shot"),
        ({"method": {"kind": "few_shot", "rank": 8}}, "rank=8 has no effect with kind=few_shot"),
    ],
)
def test_what_only_a_training_uses_is_refused(sections: dict[str, Any], said: str) -> None:
    given = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "b"}, "method": {"kind": "few_shot"}}
    assert Settings.model_validate(given | {"evaluation": {"contenders": [], "shots": 2}}).evaluation.shots == 2
    with pytest.raises(ValueError, match=re.escape(said)):
        Settings.model_validate(given | sections)


def test_its_stages_are_those_of_a_prompt(settings: Settings) -> None:
    assert {"examples", "prepend", "evaluate", "register"} <= {*stages(settings)}
    assert not {"train", "prompt", "forgetting", "divergence"} & {*stages(settings)}
    with pytest.raises(ConfigError, match=r"^train is a stage with a method\.kind that trains only, which is not set"):
        stages(settings, "train")
    lora = settings.model_copy(update={"method": Method()})
    assert {"train", "prompt", "forgetting"} <= {*stages(lora)} and "examples" not in stages(lora)
    with pytest.raises(
        ConfigError, match=r"examples is a stage with method.kind=few_shot or retrieval only, which is not set"
    ):
        stages(lora, "examples")


def test_a_plan_and_a_comparison_say_that_nothing_is_trained(settings: Settings) -> None:
    file = Path("x.yaml")
    sections = json.loads(settings.model_dump_json(exclude_defaults=True)) | {"training": {"max_steps": 9}}
    deployment = {"name": "x", "entrypoint": "tunewright.flows.finetune.finetune", "parameters": sections}
    file.write_text(json.dumps({"deployments": [deployment]}))
    pipeline = deployment_file.load(file)
    planned = planning.look_up(pipeline, "x.yaml")
    assert planned.costs is None
    printed = planning.as_json(planned)
    assert printed["unknown"] == "nothing is trained: with method.kind=few_shot the candidate is the base with a prompt"
    assert "not used, as nothing is trained (method.kind=few_shot): training.max_steps" in printed["notes"]
    assert [*faults(printed, "", documented()["plan"], set())] == []
    with pytest.raises(ConfigError, match=r"method.kind=few_shot trains nothing, and variants are compared by their"):
        variants(pipeline, ["training.max_steps=2,4"])
