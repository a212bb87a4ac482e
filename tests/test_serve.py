"""A served version answers OpenAI's own client as it was measured, for whoever has the key, and follows its alias."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pyarrow.parquet as pq
import pytest
import waiting
import without_project
import yaml
from conftest import MakeSplits, write_splits
from registered import QUESTIONS, ask, register_candidate, tune
from starlette.applications import Starlette
from typer.testing import CliRunner

from tunewright.artifacts import Base, Contender
from tunewright.cli.main import app
from tunewright.cli.predict.model import FetchedVersion
from tunewright.cli.serve import engines, key
from tunewright.cli.serve.answering import AnswerText, StopReached, loads_apart
from tunewright.cli.serve.asking import Asked, RequestError, read
from tunewright.cli.serve.queue import called
from tunewright.cli.serve.server import Listening
from tunewright.config import Evaluation, Model, Registry
from tunewright.export import answering, vllm
from tunewright.machine.ports import free_port
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.registry.tracking import connected
from tunewright.tasks.evaluate import evaluate
from tunewright.tasks.render import render

KEY = "sk-for-these-tests-alone"
WAITING = 2
SLOW = 77  # a seed with which the server takes its time
SERVER = f"""
import sys, time
from tunewright.cli.main import main
from tunewright.cli.serve import answering, endpoint

endpoint.POLL_SECONDS = 0.2
answer = answering.ServedVersion.answer

def slowly(self, prompt, asked, most, watch):
    def wait(*state):
        time.sleep(0.2 if asked.seed == {SLOW} else 0)
        watch(*state)
    return answer(self, prompt, asked, most, wait)

answering.ServedVersion.answer = slowly
main()
"""


@dataclass
class Served:
    """A server, and what it serves."""

    home: Path
    url: str
    process: subprocess.Popen[str]
    log: Path
    tuned: tuple[Path, Path]  # of version 1, the champion, and 2
    said: tuple[list[str], list[str]]

    def client(self, api_key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=60)

    def ask(self, text: str, **options: Any) -> Any:
        return self.client().chat.completions.create(
            **{"model": "triage", "messages": [{"role": "user", "content": text}]} | options
        )

    def refused(self, path: str, body: Any) -> tuple[int, str]:
        """The status and the sentence of a request that fails."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = httpx.post(f"{self.url}{path}", content=content, headers={"Authorization": f"Bearer {KEY}"})
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert len(error["message"].splitlines()) == 1
        return answer.status_code, error["message"]

    def metric(self, name: str, labels: str = "") -> float:
        page = httpx.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*{labels}.*}})? (\S+)$", page, re.M))


@contextmanager
def serving(home: Path, *options: str, log: Path, environment: dict[str, str]) -> Iterator[tuple[Any, str]]:
    """A process of the command, and its address once it answers."""
    port = free_port()
    command = [sys.executable, "-c", SERVER, "serve", "triage", "--port", str(port), *options]
    variables = os.environ | {"TUNEWRIGHT_HOME": str(home)} | environment
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=variables, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        waiting.until(lambda: process.poll() is not None or "Ctrl-C stops it" in log.read_text(), 120)
        assert process.poll() is None, log.read_text()
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(
    tiny_base: Base,
    tuned: Path,
    said: list[str],
    mlflow_database: Path,
    architectures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """A server of a model with two versions, of which the first is the champion."""
    folder = tmp_path_factory.mktemp("serve")
    home, other = folder / "home", tune(tiny_base, folder / "other", seed=2)
    home.mkdir()
    shutil.copy(mlflow_database, home)
    shutil.copytree(architectures, home / "architectures")
    answers = (said, ask(tiny_base, other))
    assert answers[0] != answers[1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TUNEWRIGHT_HOME", str(home))
        splits = write_splits(folder, [("q", "a")], [("r", "b")], [(each, "yes") for each in QUESTIONS])
        register_candidate(folder, tuned, answers[0], splits, base=tiny_base)
        register_candidate(
            folder, other, answers[1], splits, base=tiny_base, decision="keep", digest="b", challenged="1"
        )
    log = folder / "log"
    options = ("--max-waiting", str(WAITING))
    with serving(home, *options, log=log, environment={key.VARIABLE: KEY}) as (process, url):
        yield Served(home, url, process, log, (tuned, other), answers)


def greedy(model: Any, ids: list[int], stop: int, most: int) -> list[int]:
    """The tokens of a model that computes each one without any cache; a stop token is the last."""
    import torch

    new: list[int] = []
    while len(new) < most and stop not in new:
        with torch.inference_mode():
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_fifty_prompts_get_the_same_tokens_in_all_places(
    served: Served, tiny_base: Base, make_splits: MakeSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the trained model, the evaluation, the registry, over HTTP, merged, and exported to plain transformers."""
    from mlflow.pyfunc import load_model as load_version

    monkeypatch.setenv("TUNEWRIGHT_HOME", str(served.home))
    asked = [f"Where is order {at}?" * (1 + at % 3) for at in range(50)]
    conversations = [[{"role": "user", "content": text}] for text in asked]
    model: Any = load_model(tiny_base, served.tuned[0] / "model")
    tokenizer = load_tokenizer(tiny_base)
    prompts = [
        tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=True)["input_ids"]
        for each in conversations
    ]
    trained = [greedy(model, prompt, tokenizer.eos_token_id, 6) for prompt in prompts]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in trained]
    assert len({*texts}) > 3

    splits = make_splits([("q", "a")], [("r", "b")], [(text, "yes") for text in asked])
    tokens = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
    candidate = Contender(name="candidate", base=tiny_base, model=served.tuned[0] / "model", model_digest="1")
    measured = evaluate.fn(
        contender=candidate, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=6)
    )
    answers = pq.read_table(measured.path("answers.parquet")).to_pylist()
    assert [row["answer"] for row in answers] == texts
    assert [row["stopped"] for row in answers] == [row[-1] == tokenizer.eos_token_id for row in trained]

    with connected(Registry(name="triage")):
        registered = load_version("models:/triage/1")
        assert registered.predict([{"messages": each} for each in conversations], params={"max_new_tokens": 6}) == texts

    with ThreadPoolExecutor(WAITING + 1) as clients:
        replies = [*clients.map(lambda text: served.ask(text, extra_body={"return_token_ids": True}), asked)]
    stopped = [each.choices[0].finish_reason == "stop" for each in replies]
    ended = [[tokenizer.eos_token_id] if each else [] for each in stopped]
    assert [each.choices[0].token_ids + end for each, end in zip(replies, ended, strict=True)] == trained
    assert [each.choices[0].message.content for each in replies] == texts

    merged = model.merge_and_unload()
    assert [greedy(merged, prompt, tokenizer.eos_token_id, 6) for prompt in prompts] == trained

    exported = CliRunner().invoke(app, ["export", "triage", str(tmp_path / "exported"), "--to", "merged"])
    assert exported.exit_code == 0, exported.output
    rows = [{"messages": each, "tools": None, "answer": row} for each, row in zip(conversations, trained, strict=True)]
    request = {
        "folder": str(tmp_path / "exported"),
        "base": None,
        "gguf": None,
        "dtype": "float32",
        "rows": rows,
        "reply": str(tmp_path / "reply"),
    }
    stranger = without_project.environment(tmp_path / "elsewhere") | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", answering.__file__]
    subprocess.run(command, input=json.dumps(request), env=stranger, text=True, check=True, capture_output=True)
    replied = json.loads((tmp_path / "reply").read_text())["rows"]
    assert [(row["prompt"], row["answer"]) for row in replied] == [*zip(prompts, trained, strict=True)]


def test_each_token_is_that_of_the_model_without_any_cache(served: Served, tiny_base: Base) -> None:
    model, tokenizer = load_model(tiny_base, served.tuned[0] / "model"), load_tokenizer(tiny_base)
    for number, text in enumerate(QUESTIONS):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        new = greedy(model, ids, tokenizer.eos_token_id, 40)
        limit = ("max_tokens", "max_completion_tokens")[number % 2]
        found = served.ask(text, messages=messages, extra_body={"return_token_ids": True, limit: 40})
        assert found.choices[0].token_ids == [each for each in new if each != tokenizer.eos_token_id]
        assert found.usage.prompt_tokens == len(ids)
        raw = {"max_tokens": 40, "extra_body": {"return_token_ids": True}}
        for given in (prompt, ids):
            same = served.client().completions.create(model="triage", prompt=given, **raw)
            assert same.choices[0].token_ids == found.choices[0].token_ids
            assert same.choices[0].text == found.choices[0].message.content


def test_a_streamed_answer_is_the_whole_one_in_parts(served: Served) -> None:
    longest = 0
    for text in (*QUESTIONS, "東京 😀"):
        for options in ({}, {"max_tokens": 60}, {"max_tokens": 60, "temperature": 0.8, "top_p": 0.9, "seed": 5}):
            whole = served.ask(text, **options)
            with served.ask(text, stream=True, stream_options={"include_usage": True}, **options) as parts:
                got = [*parts]
            longest = max(longest, len(got))
            assert [each.usage for each in got[:-1]] == [None] * (len(got) - 1)
            assert (got[-1].usage, got[-1].choices) == (whole.usage, [])
            said = [each.choices[0] for each in got[:-1]]
            assert said[0].delta.role == "assistant"
            assert "".join(each.delta.content or "" for each in said) == whole.choices[0].message.content
            assert [each.finish_reason for each in said] == [None] * (len(said) - 1) + [whole.choices[0].finish_reason]
            assert {(each.id, each.model) for each in got} == {(got[0].id, "triage@1")}
    assert longest > 8
    parts = served.client().completions.create(model="triage@champion", prompt="one two", max_tokens=9, stream=True)
    whole = served.client().completions.create(model="triage@1", prompt="one two", max_tokens=9)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_an_answer_ends_before_the_first_stop_text(served: Served) -> None:
    whole = served.ask(QUESTIONS[0], max_tokens=60).choices[0].message.content
    stop = whole[7:10]
    for stops in (stop, ["never said", stop]):
        found = served.ask(QUESTIONS[0], max_tokens=60, stop=stops)
        assert found.choices[0].message.content == whole[: whole.index(stop)]
        assert found.choices[0].finish_reason == "stop"
        parts = served.ask(QUESTIONS[0], max_tokens=60, stop=stops, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == found.choices[0].message.content
    assert served.ask(QUESTIONS[0], max_tokens=60, stop="never said").choices[0].message.content == whole


def test_a_seed_repeats_a_sampled_answer(served: Served) -> None:
    def said(**options: Any) -> str:
        return served.ask(QUESTIONS[0], max_tokens=30, temperature=1.5, **options).choices[0].message.content

    assert said(seed=1) == said(seed=1)
    assert len({said(seed=1), said(seed=2), said(), said()}) > 2


def test_the_models_are_listed_by_their_names(served: Served) -> None:
    names = ["triage", "triage@champion", "triage@1"]
    assert [each.id for each in served.client().models.list()] == names
    assert served.client().models.retrieve("triage@1").id == "triage@1"
    for model in ("triage@2", "gpt-4o"):
        with pytest.raises(openai.NotFoundError, match=rf"the model '{model}' is not served here; accepted: triage, "):
            served.ask("Hello", model=model)


def test_who_has_no_key_and_a_page_of_another_origin_are_refused(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError, match="wrong or no API key"):
        served.client("sk-of-somebody-else").models.list()
    headers = {"Authorization": f"Bearer {KEY}"}
    for path in ("/v1/models", "/metrics", "/v1/chat/completions", "/nothing"):
        assert httpx.get(f"{served.url}{path}").status_code == 401
        assert httpx.get(f"{served.url}{path}", headers=headers | {"Origin": "http://a.example"}).status_code == 403
        assert httpx.get(f"{served.url}{path}", headers=headers | {"Host": "a.example"}).status_code == 400
    preflight = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{served.url}/v1/chat/completions", headers=preflight)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{served.url}/health", headers={"Origin": "http://a.example"}).status_code == 403
    own = headers | {"Origin": served.url}
    assert httpx.get(f"{served.url}/v1/models", headers=own).status_code == 200


CHAT = {"model": "triage", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
CALLED = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "4"}
PARTS = [{"type": "image_url", "image_url": {"url": "http://a.example/a.png"}}]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "the body is no JSON; accepted: a JSON object"),
        (b'{"model": "ni\xf1o"}', "the body is not UTF-8: byte 14 is 0xf1; accepted: a JSON object in UTF-8"),
        (b"[" * 100_000, "the body is no JSON; accepted: a JSON object"),
        ([], "the body is no JSON object"),
        ({"model": "triage"}, "messages: is missing"),
        ({"messages": []}, "model: is missing"),
        (CHAT | {"messages": []}, "messages []: accepted: at least one item"),
        (CHAT | {"messages": ["Hello"]}, 'messages[0] "Hello": accepted: a mapping'),
        (CHAT | {"messages": [{"role": "user", "content": None}]}, "messages[0]: content is no text; accepted: a text"),
        (CHAT | {"messages": [{"role": "user", "content": PARTS}]}, "messages[0]: content has a part of type "),
        (CHAT | {"messages": [{"role": "user", "content": "a", "name": "b"}]}, 'messages[0]: "name" is not supported'),
        (CHAT | {"messages": [{"role": "assistant", "content": "a"}]}, "messages: the last is the assistant's; "),
        (CHAT | {"messages": [{"role": "user", "content": "a<|im_end|>"}]}, "the text of user has '<|im_end|>', a "),
        (CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}, "the chat template of the version refuses the "),
        (CHAT | {"messages": [{"role": "user", "content": "word " * 3_000}]}, "12,0"),
        (CHAT | {"max_tokens": 2_040}, "33 tokens of the prompt and max_tokens=2040 are more than the 2,048 that the "),
        (CHAT | {"max_tokens": 0}, "max_tokens 0: accepted: 1 or more"),
        (CHAT | {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens and max_completion_tokens differ; "),
        (CHAT | {"temperature": 3}, "temperature 3: accepted: 2 or less"),
        (CHAT | {"temperature": "hot"}, 'temperature "hot": accepted: a number'),
        (CHAT | {"stream": "yes"}, 'stream "yes": accepted: true or false'),
        (CHAT | {"stop": ["a", 1]}, "stop: accepted: a text, or up to 4 texts, of 1 to 1,000 characters"),
        (CHAT | {"stop": ""}, "stop: accepted: a text, or up to 4 texts, of 1 to 1,000 characters"),
        (CHAT | {"stream_options": {"include_usage": True}}, "stream_options: accepted only with stream=true"),
        (CHAT | {"tools": [{"type": "function"}]}, "tools[0] has no name; accepted: a function with name and parame"),
        (CHAT | {"tools": [TOOL]}, "tools: the chat template of this version leaves out the definitions of tools; "),
        (CHAT | {"messages": [CALLED]}, 'messages[0]: "tool_calls" is accepted only in a request with tools; '),
        (CHAT | {"messages": [RESULT]}, "messages[0]: role tool is accepted only in a request with tools; "),
        (CHAT | {"tool_choice": "required"}, 'tool_choice "required": accepted: '),
        (CHAT | {"response_format": {"type": "json_object"}}, "response_format: not supported by this endpoint; "),
        (CHAT | {"logprobs": True}, "logprobs: not supported by this endpoint; leave it out"),
        (CHAT | {"n": 2}, "n: not supported by this endpoint; leave it out"),
        (CHAT | {"max_token": 2}, '"max_token": no such field; did you mean max_tokens? leave it out'),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_in_one_line(served: Served, body: Any, sentence: str) -> None:
    status, said = served.refused("/v1/chat/completions", body)
    assert (status, said[: len(sentence)]) == (400, sentence)


def test_a_completion_that_cannot_be_answered_is_refused_in_one_line(served: Served) -> None:
    wanted = "accepted: a text, or a list of token ids"
    for prompt, sentence in {
        "": f"prompt: is empty; {wanted}",
        "\ud800": "prompt: has half of a surrogate pair; accepted: Unicode text",
        None: f"prompt: {wanted}",
        (1, 99_999): "prompt: token 99999; accepted: ids below ",
        (1, -1): f"prompt: {wanted}",
        ("a", "b"): "prompt: 2 prompts; accepted: one in a request",
    }.items():
        status, said = served.refused("/v1/completions", {"model": "triage", "prompt": prompt})
        assert (status, said[: len(sentence)]) == (400, sentence)
    assert served.refused("/v1/completions", b" " * 11_000_000) == (413, "the request is longer than 10,000,000 bytes")


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    neutral = {"n": 1, "tools": [], "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me"}
    neutral |= {"response_format": {"type": "text"}, "logit_bias": None, "temperature": None, "stop": None}
    earlier = {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": None, "annotations": []}
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]
    messages = [{"role": "developer", "content": parts}, *CHAT["messages"], earlier, *CHAT["messages"]]
    asked = read(json.dumps(CHAT | neutral | {"messages": messages}).encode(), is_chat=True)
    assert asked.messages == [
        {"role": "developer", "content": "Be\nbrief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Hello"},
    ]
    assert asked == Asked(model="triage", messages=asked.messages)


def test_tools_and_earlier_calls_are_read_as_the_chat_template_takes_them() -> None:
    call = {"id": "call_x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *CHAT["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_x", "content": [{"type": "text", "text": "2"}]},
    ]
    body = CHAT | {"messages": messages, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True}
    asked: Any = read(json.dumps(body).encode(), is_chat=True).messages
    assert asked.tools == [TOOL]
    assert asked[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert asked[2] == {"role": "tool", "content": "2", "tool_call_id": asked[1]["tool_calls"][0]["id"], "name": "f"}
    assert read(json.dumps(body).encode(), is_chat=True).most_calls is None
    assert read(json.dumps(body | {"parallel_tool_calls": False}).encode(), is_chat=True).most_calls == 1
    none: Any = read(json.dumps(body | {"tool_choice": "none"}).encode(), is_chat=True).messages
    assert (none, none.tools) == (asked, [])
    wrong = json.dumps(body | {"messages": [*messages[:2], messages[2] | {"tool_call_id": "y"}]}).encode()
    with pytest.raises(RequestError, match=r"messages\[2\]\.tool_call_id is 'y'; accepted: call_x") as error:
        read(wrong, is_chat=True)
    assert (error.value.param, error.value.code) == ("messages", "unmatched_call")


def test_calls_in_an_answer_are_sent_as_calls_and_what_cannot_be_read_as_text() -> None:
    said, (call,) = called('So:\n<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call>')
    assert (said, call["function"]) == ("So:", {"name": "f", "arguments": '{"a": "ü"}'})
    two = "".join(f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in "fg")
    for most, names in ((None, ["f", "g"]), (1, ["f"])):
        assert [each["function"]["name"] for each in called(two, most)[1]] == names
    for text in ("Hello", '<tool_call>\n{"name": "f", "arg'):
        assert called(text) == (text, [])


def test_requests_wait_for_one_another_and_too_many_are_refused(served: Served) -> None:
    slow = {"max_tokens": 400, "temperature": 0.5, "seed": SLOW, "stream": True}
    with ExitStack() as open_streams, ThreadPoolExecutor(WAITING) as clients:
        first = open_streams.enter_context(served.ask("Hello", **slow))
        next(iter(first))  # it has begun
        others = [clients.submit(served.ask, text) for text in QUESTIONS[:WAITING]]
        waiting.until(lambda: served.metric("tunewright_waiting_requests") == WAITING)
        with pytest.raises(openai.RateLimitError, match=r"3 requests are waiting already; try again later") as error:
            served.ask("Hello")
        assert error.value.response.headers["retry-after"] == "1"
        began = time.monotonic()
        first.close()  # whoever goes away has its answer ended
        answers = [each.result(timeout=30).choices[0].message.content for each in others]
        assert time.monotonic() - began < 20
    assert answers == served.said[0][:WAITING]
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):  # one that is not streamed, too
        body = CHAT | slow | {"stream": False}
        client.post(
            f"{served.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=1
        )
    began = time.monotonic()
    assert served.ask(QUESTIONS[0]).choices[0].message.content == served.said[0][0]
    assert time.monotonic() - began < 20
    assert served.metric("tunewright_requests_total", 'status="499"') == 1


def test_the_metrics_count_requests_and_tokens(served: Served) -> None:
    names = ("tunewright_requests_total", "tunewright_prompt_tokens_total", "tunewright_answer_tokens_total")
    before = [served.metric(name) for name in names]
    found = served.ask(QUESTIONS[1])
    after = [served.metric(name) for name in names]
    requests, read_tokens, said_tokens = (b - a for a, b in zip(before, after, strict=True))
    assert requests >= 2  # and those for the metrics
    assert (read_tokens, said_tokens) == (found.usage.prompt_tokens, found.usage.completion_tokens)
    assert served.metric("tunewright_answer_seconds_count") >= 1


def test_text_is_handed_out_where_the_next_token_cannot_change_it(tiny_base: Base) -> None:
    tokenizer = load_tokenizer(tiny_base)
    text = "naïve 東京 😀 STOP here"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "�" in "".join(tokenizer.decode([each]) for each in ids)
    grown = AnswerText(tokenizer)
    parts = [grown.grow(ids[:end]) for end in range(1, len(ids) + 1)]
    assert "".join(parts) == text and "�" not in "".join(parts)
    cut = AnswerText(tokenizer, ("STOP", "STAND"))
    parts = []
    with pytest.raises(StopReached) as reached:
        for end in range(1, len(ids) + 1):
            parts.append(cut.grow(ids[:end]))
    assert "".join([*parts, str(reached.value)]) == cut.text == "naïve 東京 😀 "
    broken = AnswerText(tokenizer)
    half = tokenizer("😀", add_special_tokens=False)["input_ids"][:2]
    assert (broken.grow(half), broken.grow(half, is_last=True)) == ("", tokenizer.decode(half))


def test_a_moved_alias_is_followed_without_a_restart(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(served.home))
    of_second = (served.tuned[1] / "model" / "adapter_model.safetensors").read_bytes()
    files = (served.home / "mlartifacts").rglob("adapter_model.safetensors")
    (weights,) = [file for file in files if file.read_bytes() == of_second]
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + b"?")

    def is_well() -> bool:
        return httpx.get(f"{served.url}/health").status_code == 200

    with connected(Registry(name="triage")) as client:
        client.set_registered_model_alias("triage", "champion", "2")
        waiting.until(lambda: served.metric("tunewright_failed_swaps_total") == 1)
        assert served.ask(QUESTIONS[0]).choices[0].message.content == served.said[0][0]
        weights.write_bytes(intact)
        client.delete_registered_model_alias("triage", "champion")
        waiting.until(lambda: not is_well())
        with pytest.raises(openai.InternalServerError, match="no version of triage is @champion now"):
            served.ask(QUESTIONS[0])
        assert [*served.client().models.list()] == []
        client.set_registered_model_alias("triage", "champion", "1")
        waiting.until(is_well)
    assert CliRunner().invoke(app, ["release", "promote", "triage", "2", "--reason", "better"]).exit_code == 0
    waiting.until(lambda: served.metric("tunewright_swaps_total") == 1)
    assert [served.ask(text).choices[0].message.content for text in QUESTIONS] == served.said[1]
    assert served.ask(QUESTIONS[0]).model == "triage@2"
    with pytest.raises(openai.NotFoundError, match="the model 'triage@1' is not served here"):
        served.ask(QUESTIONS[0], model="triage@1")
    refused, withdrawn, again, moved = served.log.read_text().splitlines()[-4:]
    assert refused.startswith("triage@1 goes on: models:/triage/2: artifacts/model/adapter_model.safetensors was alt")
    assert (withdrawn, again, moved) == (
        "no version of triage is @champion now: requests get status 503",
        "triage@1 is @champion again",
        "triage@2 is @champion now and answers from here on",
    )


def test_ctrl_c_ends_the_answer_at_hand_and_leaves_no_process(served: Served) -> None:
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert children  # which render templates
    slow = {"max_tokens": 400, "temperature": 0.5, "seed": SLOW, "stream": True}
    with served.ask("Hello", **slow) as parts, pytest.raises(openai.APIError, match="the server is stopping"):
        next(iter(parts))
        served.process.send_signal(signal.SIGINT)
        for _ in parts:
            pass
    assert served.process.wait(timeout=20) == 0
    assert served.log.read_text().splitlines()[-1] == "stopped"
    psutil.wait_procs(children, timeout=10)
    assert not [each for each in children if each.is_running()]


def test_a_fixed_version_stays_and_a_kill_leaves_nothing(served: Served, tmp_path: Path) -> None:
    options = ("--version", "1", "--no-key")
    with serving(served.home, *options, log=tmp_path / "log", environment={}) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [each.id for each in client.models.list()] == ["triage", "triage@1"]
        found = client.chat.completions.create(
            model="triage", messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=6
        )
        assert found.choices[0].message.content == served.said[0][0]  # though version 2 has the alias
        assert (tmp_path / "log").read_text().splitlines()[-1] == "no API key is asked for"
        (child,) = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running()


def test_a_key_is_drawn_once_for_a_home_and_is_its_owners_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = key.api_key()
    assert (key.api_key(), re.fullmatch(r"sk-[\w-]{32}", drawn) is not None) == (drawn, True)
    assert (home / "api_key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(key.VARIABLE, KEY)
    assert key.api_key() == KEY
    monkeypatch.setenv(key.VARIABLE, "short")
    line = f"error: {key.VARIABLE}: accepted: at least 16 ASCII characters without spaces\n"
    result = CliRunner().invoke(app, ["serve", "triage"])
    assert (result.exit_code, result.stderr) == (2, line)


def test_options_that_cannot_be_are_refused_in_one_line(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, sentence in {
            ("--engine", "vlm"): '--engine "vlm": did you mean vllm? accepted: tunewright, transformers, vllm',
            ("--no-key", "--host", "0.0.0.0"): "--no-key: accepted only without --host, as whoever reaches 0.0.0.0 ",
            ("--port", port): f"--port {port}: in use by ",
            ("--host", "1.2.3.4", "--port", port): f"--host 1.2.3.4 --port {port}: Cannot assign requested address",
            ("--port", str(free_port())): "no model is registered in this home yet",
            ("--engine", "vllm", "--port", "80"): "--port 80: accepted with --engine vllm: 1024 or more",
        }.items():
            result = CliRunner().invoke(app, ["serve", "triage", *options])
            (line,) = result.stderr.splitlines()
            assert (result.exit_code, line[: len(sentence) + 7]) == (2, f"error: {sentence}")


def test_vllm_gets_an_exported_adapter_its_configuration_and_the_key(
    served: Served, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(served.home))
    monkeypatch.delenv(key.VARIABLE, raising=False)
    command = ["serve", "triage", "--version", "1", "--engine", "vllm", "--port", "8123"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --engine vllm: vLLM is not installed here; pip install vllm, in an ")
    (file,) = (served.home / "exported").glob("triage-1-*.yaml")
    folder = file.with_suffix("")
    shown = f'  VLLM_API_KEY="$(cat {served.home}/api_key)" vllm serve {folder}/base --config {file}'
    assert shown in result.stdout.splitlines()
    assert yaml.safe_load(file.read_text()) == {
        "model": f"{folder}/base",
        "served-model-name": "triage-base",
        "host": "127.0.0.1",
        "port": 8123,
        "dtype": "float32",
        "tokenizer": str(folder),
        "chat-template": f"{folder}/chat_template.jinja",
        "generation-config": str(folder),
        "override-generation-config": '{"temperature": 0}',
        "enable-lora": True,
        "lora-modules": [f"triage={folder}"],
        "max-lora-rank": 8,
    }
    assert (folder / "chat_template.jinja").read_text() == load_tokenizer(tiny_base).chat_template
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"]

    program = tmp_path / "vllm"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: became.extend(call))
    written = [each.stat().st_mtime_ns for each in folder.iterdir()]
    assert CliRunner().invoke(app, command).exit_code == 0
    path, arguments, environment = became
    assert (path, arguments) == (str(program), ["vllm", "serve", f"{folder}/base", "--config", str(file)])
    assert environment["VLLM_API_KEY"] == (served.home / "api_key").read_text().strip()
    assert [each.stat().st_mtime_ns for each in folder.iterdir()] == written, "an exported version is used again"


def test_the_server_of_transformers_answers_as_measured_behind_the_key(served: Served, tmp_path: Path) -> None:
    options = ("--version", "1", "--engine", "transformers")
    variables = {key.VARIABLE: KEY}
    with serving(served.home, *options, log=tmp_path / "log", environment=variables) as (_, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)
        assert [each.id for each in client.models.list()] == ["triage"]
        for text, expected in zip(QUESTIONS, served.said[0], strict=True):
            asked: Any = {"model": "triage", "messages": [{"role": "user", "content": text}], "max_tokens": 6}
            assert client.chat.completions.create(**asked).choices[0].message.content == expected
            parts = client.chat.completions.create(**asked, stream=True)
            streamed = "".join(part.choices[0].delta.content or "" for part in parts)
            assert streamed == expected.rstrip("\N{REPLACEMENT CHARACTER}"), "but for half of a character"
        with pytest.raises(openai.BadRequestError, match="400"):
            client.completions.create(model="gpt2", prompt="a")
        with_key = {"Authorization": f"Bearer {KEY}"}
        further = {401: {}, 400: with_key | {"Host": "evil.test"}, 403: with_key | {"Origin": "http://evil.test"}}
        for status, headers in further.items():
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == status
        assert httpx.post(f"{url}/load_model", json={"model": "gpt2"}, headers=with_key).status_code == 404
        assert httpx.get(f"{url}/health").status_code == 200
        page = httpx.get(f"{url}/metrics", headers=with_key).text
        assert 'tunewright_requests_total{path="/v1/chat/completions",status="200"} 6.0' in page
        assert "tunewright_answer_seconds_count 6.0" in page
        assert re.search(r'tunewright_served_info\{.*name="triage",version="1"\} 1.0', page)
    lines = (tmp_path / "log").read_text()
    (folder,) = (served.home / "exported").glob("triage-1-*.merged/triage")
    assert f"  cd {folder.parent}; transformers serve triage --host 127.0.0.1 --port " in lines
    assert KEY not in lines


def test_the_home_stays_where_it_is_while_transformers_serves_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNEWRIGHT_HOME", raising=False)
    version = FetchedVersion("1", "models:/triage/1", tmp_path, "0" * 64)
    places: list[Path] = []

    def listen(at: Listening, opened: Any, tell: Any) -> None:
        opened()
        places.extend([Path.cwd(), key.file()])

    replaced: dict[str, Any] = {
        "fetch": lambda *_: version,
        "_export": lambda registry, version, folder, *_: folder.mkdir(parents=True),
        "app_of_transformers": lambda _: Starlette(),
        "listen": listen,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(engines, name, function)
    engines.serve_by_transformers(Registry(name="triage"), None, Listening("127.0.0.1", 8000, "", 1), print)
    home = tmp_path / ".tunewright"
    assert places == [home / "exported" / f"triage-1-{'0' * 12}.merged", home / "api_key"]


def test_vllm_loads_a_whole_model_or_a_base_on_the_hub_by_its_commit(tmp_path: Path) -> None:
    whole = vllm.configuration("triage", tmp_path, "bfloat16")
    assert (whole["model"], whole["served-model-name"]) == (str(tmp_path), "triage")
    assert not {"enable-lora", "lora-modules"} & whole.keys()
    adapter = {"base_model_name_or_path": "org/tiny", "revision": "abc", "r": 4, "rank_pattern": {"q_proj": 24}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    found = vllm.configuration("triage", tmp_path, "bfloat16")
    assert (found["model"], found["revision"], found["max-lora-rank"]) == ("org/tiny", "abc", 32)


@pytest.mark.parametrize(
    ("written", "parser"),
    [
        ("{{ tools }}<tool_call>{{ call }}</tool_call>", "hermes"),
        ("{{ tools }}<tool_call><function={{ name }}></function></tool_call>", "qwen3_coder"),
        ("{{ tools }}[TOOL_CALLS]{{ calls }}", "mistral"),
        ("{{ tools }}{{ call }}", None),
    ],
)
def test_vllm_reads_calls_in_the_form_of_the_chat_template(tmp_path: Path, written: str, parser: str | None) -> None:
    (tmp_path / "chat_template.jinja").write_text(written)
    found = vllm.configuration("triage", tmp_path, "bfloat16")
    assert (found.get("tool-call-parser"), found.get("enable-auto-tool-choice")) == (parser, True if parser else None)


@pytest.mark.parametrize(("precision", "apart"), [("float32", True), ("bfloat16", False), (None, False)])
def test_a_version_is_loaded_beside_another_only_where_that_cannot_change_its_answers(
    tmp_path: Path, precision: str | None, apart: bool
) -> None:
    version = FetchedVersion("1", "models:/triage/1", tmp_path, "")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "base.json").write_text(json.dumps({"precision": precision}))
    assert loads_apart(version) is apart
