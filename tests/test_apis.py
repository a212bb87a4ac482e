"""A model behind an API answers the same test rows, is paid for once, and decides nothing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import chat_server, reply_of
from conftest import MakeSplits
from pydantic import ValidationError

from tunewright.artifacts import Answers, Base, Contender, Splits, Tokens
from tunewright.config import Evaluation, Gate, Model
from tunewright.errors import ApiError, ApiRefused, is_transient
from tunewright.json_api import ChatApi
from tunewright.similarity.embedding import WORDLLAMA
from tunewright.tasks.decide import decide
from tunewright.tasks.evaluate import evaluate
from tunewright.tasks.evaluate.apis import answer_of
from tunewright.tasks.prompt import prompt
from tunewright.tasks.render import render
from tunewright.tools.conversation import Conversation
from tunewright.tools.parsing import parse

ABOUT = ("delivery", "refund", "repair")
ROWS = [(f"Write what message {n} is about", ABOUT[n % 3]) for n in range(60)]
PRICES = {"input_price": 2.0, "output_price": 10.0}  # a reply of 50 and 5 tokens: 0.00015


class Api:
    """Knows the answer to each row but those that it is told to get wrong."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.keys: set[str | None] = set()
        self.wrong: set[int] = set()
        self.statuses: list[int] = []
        self.tokens: tuple[int, int] = (50, 5)
        self.url = ""

    def __call__(self, request: Any, key: str | None) -> tuple[int, Any]:
        self.requests.append(request)
        self.keys.add(key)
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return status, {"error": "no"}
        number = int(request["messages"][-1]["content"].split()[3])
        return 200, reply_of("no idea" if number in self.wrong else ABOUT[number % 3], tokens=self.tokens)


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    with chat_server(made) as made.url:
        yield made


@pytest.fixture
def splits(make_splits: MakeSplits) -> Splits:
    return make_splits(ROWS[:12], ROWS[12:20], ROWS[20:])


@pytest.fixture
def tokens(splits: Splits, tiny_base: Base) -> Tokens:
    return render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))


Ask = Callable[..., Answers]


@pytest.fixture
def ask(api: Api, splits: Splits, tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """`ask(**of)` is what the API answers, with these fields of api_models and of evaluation."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    prompts = prompt.fn(
        splits=splits,
        tokens=tokens,
        base=tiny_base,
        contenders=(),
        shots=2,
        max_new_tokens=16,
        embedding_model=WORDLLAMA,
        embedding="",
        asks_apis=True,
    )

    def make(evaluation: dict[str, Any] | None = None, **of: Any) -> Answers:
        given = {"api_models": [{"url": api.url, "model": "maker/wise-1", **of}], "max_new_tokens": 16}
        settings = Evaluation.model_validate(given | (evaluation or {}))
        (model,) = settings.api_models
        contender = Contender(
            name=model.contender,
            base=tiny_base,
            prompts=prompts.path("messages.jsonl"),
            prompts_digest=prompts.digest,
            api=model,
        )
        return evaluate.fn(contender=contender, tokens=tokens, evaluation=settings)

    return make


def rows(answers: Answers) -> list[dict[str, Any]]:
    return pq.read_table(answers.path("answers.parquet")).to_pylist()


def test_it_is_asked_with_shots_and_scored_as_all_others(
    ask: Ask, api: Api, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_API_KEYS", "api.example.com=other, 127.0.0.1=qx=7qz")
    api.wrong = {20, 21, 22, 23}
    answers = ask(**PRICES)
    assert (answers.contender, answers.num_rows, answers.num_unanswered) == ("wise-1", 40, 0)
    assert answers.scores["exact_match"] == 0.9
    assert "perplexity" not in answers.scores
    found = rows(answers)
    test = pq.read_table(tokens.path("test.parquet"))
    assert [row["row_id"] for row in found] == test["row_id"].to_pylist()
    assert [row["reference"] for row in found] == test["reference"].to_pylist()
    assert all(row["nll"] is None and row["stopped"] and row["num_tokens"] == 5 for row in found)
    use = answers.api
    assert use
    assert (use.model, use.input_tokens, use.output_tokens) == ("maker/wise-1", 2000, 200)
    assert use.price == pytest.approx(0.15)
    assert use.seconds > 0
    assert api.keys == {"Bearer qx=7qz"}
    request = api.requests[0]
    assert [turn["role"] for turn in request["messages"]][-5:] == ["user", "assistant"] * 2 + ["user"]
    assert request["messages"][-2]["content"] in ABOUT
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("maker/wise-1", 0, 256)
    assert "tools" not in request
    written = answers.path("answers.parquet").read_bytes() + Path(answers.folder, "manifest.json").read_bytes()
    assert b"7qz" not in written


def test_no_reply_is_paid_for_twice(ask: Ask, api: Api, home: Path) -> None:
    api.statuses = [200] * 10 + [500] * 1000
    with pytest.raises(ApiError, match=r"^evaluation.api_models=http.*: no answer after 5 attempts: 500") as error:
        ask()
    assert is_transient(error.value)
    (file,) = (home / "api_replies").iterdir()
    kept = len(file.read_text().splitlines())
    assert kept == 1 + 10
    with file.open("a") as lines:
        lines.write('["abc", {"of": "another version"}]\n')
        lines.write('{"request": "ab')  # of a run that was killed
    api.statuses, before = [], len(api.requests)
    assert ask().num_rows == 40
    assert len(api.requests) - before == 30
    assert ask(parameters={"temperature": None, "seed": 1}).num_rows == 40
    assert len(api.requests) - before == 70, "other parameters are another request"
    assert "temperature" not in api.requests[-1]
    assert api.requests[-1]["seed"] == 1
    before = len(api.requests)
    assert ask(name="other").contender == "other"
    assert len(api.requests) == before


def test_a_budget_ends_it_before_the_rows_that_it_does_not_pay_for(
    ask: Ask, api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "tunewright")
    monkeypatch.setattr("tunewright.tasks.evaluate.interim.FEWEST", 4)  # blocks end after 5, 10, 20, 30 and 40 rows
    refused = (
        r"^evaluation.api_budget=0.0005: the first 5 test rows cost about 0.00075 at wise-1; accepted: at least that"
    )
    with pytest.raises(ApiRefused, match=refused):
        ask({"api_budget": 0.0005}, **PRICES)
    assert len(api.requests) == 1, "which tells the price"
    answers = ask({"api_budget": 0.004}, **PRICES)  # of 26 rows
    assert (answers.num_rows, answers.num_unanswered) == (20, 20)
    assert "evaluation.api_budget=0.004 is spent after 20 test rows" in caplog.text
    assert len(api.requests) == 20
    assert ask({"api_budget": 0.0017}, **PRICES).num_rows == 30, "what is kept costs nothing"


def test_an_api_that_counts_no_tokens_has_no_price_and_no_budget(ask: Ask, api: Api) -> None:
    api.tokens = (0, 0)
    with pytest.raises(ApiRefused, match=r"^evaluation.api_budget=1: wise-1 does not count tokens; accepted: none$"):
        ask({"api_budget": 1}, **PRICES)
    use = ask(**PRICES).api
    assert use
    assert use.price is None


def test_a_refusal_is_no_end_of_the_run(ask: Ask, api: Api) -> None:
    api.statuses = [401] * 100
    with pytest.raises(
        ApiRefused, match=r"^evaluation.api_models=http\S+ answers 401 .*; accepted: the base address of"
    ):
        ask()


def test_tools_are_sent_and_calls_are_read(make_splits: MakeSplits) -> None:
    call = {"id": "call00000", "type": "function", "function": {"name": "track", "arguments": {"parcel": "é 1"}}}
    tool = {"type": "function", "function": {"name": "track", "description": "", "parameters": {"type": "object"}}}
    turns = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call], "weight": 0, "reasoning_content": "hm"},
        {"role": "tool", "content": "here", "tool_call_id": "call00000", "name": "track"},
    ]
    asked: list[Any] = []

    def answer(request: Any, key: str | None) -> tuple[int, Any]:
        asked.append(request)
        function = {"name": "track", "arguments": '{"parcel": "é 2"}'}
        message = {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
        return 200, reply_of(message, "tool_calls")

    from tunewright.tasks.evaluate.apis import _as_sent

    with chat_server(answer) as url:
        api = ChatApi(url, "m", setting="s", who="m")
        reply = api.ask([_as_sent(turn) for turn in Conversation(turns)], tools=[tool])
    sent = asked[0]["messages"]
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"parcel": "é 1"}
    assert not {"weight", "reasoning_content"} & sent[1].keys()
    assert sent[2] == turns[2]
    assert reply.stopped
    (found,) = parse(answer_of(reply.message)).calls
    assert (found.name, found.arguments) == ("track", {"parcel": "é 2"})
    assert answer_of({"content": " a ", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}, 3]}) == "a"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ((40, 40), "The candidate is as good as wise-1, within .02: exact match 1.00 against .90, +.10 ["),
        ((40, 2), "wise-1 is better than the candidate: exact match .05 against .90, -.85 ["),
        (
            (40, 35),
            "These rows do not show that the candidate is as good as wise-1, within .02: exact match .875 against .9",
        ),
    ],
)
def test_the_verdict_compares_it_and_does_not_depend_on_it(
    ask: Ask, api: Api, splits: Splits, tmp_path: Path, own: tuple[int, int], said: str
) -> None:
    api.wrong = {56, 57, 58, 59}
    wise = ask(**PRICES)
    table = pq.read_table(wise.path("answers.parquet"))

    def answers(name: str, right: int) -> Answers:
        folder = tmp_path / name
        folder.mkdir()
        scores = pa.array([1.0] * right + [0.0] * (len(table) - right))
        numbers = pa.array([1.0] * len(table))
        made = table.set_column(table.column_names.index("exact_match"), "exact_match", scores)
        made = made.set_column(made.column_names.index("nll"), "nll", numbers)
        made = made.set_column(
            made.column_names.index("num_reference_tokens"), "num_reference_tokens", pa.array([1] * len(table))
        )
        pq.write_table(made, folder / "answers.parquet")
        scored = {"exact_match": right / len(table)}
        return Answers(
            stage="evaluate",
            contender=name,
            folder=folder,
            digest=name,
            num_rows=40,
            scores=scored,
            metric="exact_match",
        )

    deciding = (answers("base", 0), answers("candidate", own[1]))
    with_it = decide.fn(answers=(*deciding, wise), splits=splits, gate=Gate(guardrails=()))
    without = decide.fn(answers=deciding, splits=splits, gate=Gate(guardrails=()))
    assert (with_it.sentence, with_it.decision, without.beside) == (without.sentence, without.decision, ())
    (sentence,) = with_it.beside
    assert sentence.startswith(said)
    assert "; 1,000 answers of wise-1 cost 0.15, and one takes " in sentence
    assert "wise-1" not in with_it.differences


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"api_models": [{"url": "https://a:b@c/v1", "model": "m"}]}, "a URL with credentials.*TUNEWRIGHT_API_KEYS"),
        ({"api_models": [{"url": "https://c/v1", "model": "m", "input_price": 1}]}, "are set together"),
        ({"api_models": [{"url": "https://c/v1", "model": "x/base"}]}, "two contenders would be called base"),
        ({"api_models": [{"url": "https://c/v1", "model": "m"}] * 2}, "two contenders would be called m"),
        ({"api_models": [{"url": "https://c/v1", "model": "m", "parameters": {"n": 2}}]}, "parameters.n is set by"),
        ({"api_budget": 1}, "api_budget=1 needs api_models"),
        ({"api_models": [{"url": "https://c/v1", "model": "m"}], "api_budget": 1}, "needs input_price and .* of m"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Evaluation.model_validate(values)
