"""Targets of what a service is given: who is told of runs, the answers that decide, and how a version is asked."""

import io
import json
from typing import Any
from unittest.mock import patch
from uuid import UUID

import fuzz_inputs as inputs
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_model_targets import CHATML, chat_tokenizer
from fuzz_target import Target, home, manifest_of, refusal
from hypothesis import strategies as st
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore
from prefect.server.utilities.user_templates import render_user_template_sync

from tunewright import serving
from tunewright.artifacts import Answers
from tunewright.cli import deployment_file
from tunewright.cli.deploy import automations
from tunewright.errors import TunewrightError
from tunewright.store import manifest
from tunewright.store.cache_key import key_of
from tunewright.store.manifest import Damaged

ID = UUID(int=1)
STATE = {"flow_run": {"name": "a", "id": "b", "state": {"name": "Failed", "type": "CRASHED", "message": "no"}}}
OPERATION: dict[str, Any] = {
    "watch": 60,
    "start_on": "drift",
    "notify": ["slack-webhook/ops", "email/all"],
    "notify_on": ["failure", "rejection", "approval", "promotion"],
}
NAMED = st.sampled_from(
    ("mine", "a b", "{{ flow_run", "{% if", "{# a", "é 😀 {{", '{{ "}} }}', "{{ 7 * 7 }}", "a\\nb", '"', "x" * 300)
)


@st.composite
def _operations(draw: st.DrawFn) -> bytes:
    """A deployment file, which JSON is as well, whose name and operation are drawn."""
    parameters = {
        "data": {"sources": [{"path": "a.jsonl"}]},
        "model": {"base": "x/y"},
        "gate": {"approval": draw(st.booleans())},
        "registry": {"name": draw(st.just("mine") | NAMED)},
        "operation": draw(st.just(OPERATION) | inputs.altered_once(OPERATION) | inputs.altered(OPERATION)),
    }
    name = draw(st.just("mine") | NAMED | inputs.TEXTS)
    deployment = {"name": name, "entrypoint": "tunewright.flows.finetune.finetune", "parameters": parameters}
    return inputs.as_json({"deployments": [deployment]})


def notify(content: bytes) -> str:
    """Settings of who is told are refused, or are automations that Prefect takes, as many as they name."""
    with home() as folder:
        (folder / "a.yaml").write_bytes(content)
        try:
            (name,) = deployment_file.names(deployment_file.read(folder / "a.yaml"))
            pipeline = deployment_file.load(folder / "a.yaml", name)
        except TunewrightError as error:
            return refusal(error)
    settings, operation = pipeline.settings, pipeline.settings.operation
    target = automations.Target(ID, pipeline.name, settings.registry.name, "http://a", approval=settings.gate.approval)
    made = automations.of_deployment(target, operation, dict.fromkeys(operation.notify, ID))
    told = len(operation.notify_on) if operation.notify else 0
    assert len([each for each in made if " notified of " in each.name]) == told
    for each in made:
        assert AutomationCore.model_validate_json(each.model_dump_json()).name == each.name
        for message in (action for action in each.actions if isinstance(action, SendNotification)):
            assert render_user_template_sync(message.subject, STATE) == f"{pipeline.name}: {_shown(each.name)}"
            assert pipeline.name in render_user_template_sync(message.body, STATE)
    return ""


def _shown(automation: str) -> str:
    if " notified when " in automation:
        return automation.rpartition(" is ")[2]
    return "approval needed" if " notified of pending approvals " in automation else "Failed"


def _table() -> bytes:
    columns = {"row_id": ["r1", "r2"], "answer": ["yes", "no"], "exact_match": [1.0, 0.0], "perplexity": [2.5, 3.5]}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


ANSWERS = _table()


def answers(content: bytes) -> str:
    """Answers that were altered are damaged, and never read."""
    ingredients = {"gate.metric": "auto"}
    key = key_of("evaluate", ingredients)
    record = {"stage": "evaluate", "key": key, "digest": "d", "contender": "base", "num_rows": 2, "scores": {}}
    with home():
        folder = manifest.folder_of("evaluate", key)
        folder.mkdir(parents=True)
        file = folder / "answers.parquet"
        file.write_bytes(ANSWERS)
        written = manifest_of(record, "Answers", manifest.files_in(folder), ingredients)
        manifest.write(folder, written)
        manifest.remember(folder, "evaluate", key)
        file.write_bytes(content)
        try:
            found = manifest.read(Answers, "evaluate", key).record
        except Damaged as error:
            assert content != ANSWERS, "answers as they were written are damaged"
            return refusal(error)
        assert pq.read_table(found.path("answers.parquet")).num_rows == found.num_rows
    return ""


CONTRACT: dict[str, Any] = {
    "chat_template": CHATML,
    "date_in_template": None,
    "generation_prompt": "<|im_start|>assistant\n",
    "add_special_tokens": False,
    "stop_token_ids": [1],
    "pad_token_id": 1,
}
TEMPLATES = (
    "{{ messages[0].content.x.y }}",
    "{{ 1 / 0 }}",
    "{% for",
    "{{ raise_exception('no') }}",
    "{{ messages + 1 }}",
)


@st.composite
def _contracts(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(inputs.json_files(CONTRACT))
    changed = draw(st.sampled_from(({"chat_template": draw(st.sampled_from(TEMPLATES) | inputs.TEXTS)}, {})))
    date = {"date_in_template": draw(st.none() | st.sampled_from(TEMPLATES) | inputs.TEXTS)}
    return inputs.as_json(CONTRACT | changed | date)


def contract(content: bytes) -> str:
    """The contract of a version says how it is asked, or is refused."""
    chat = serving.ServedChat()
    chat.tokenizer = chat_tokenizer()
    with home() as folder, patch.object(serving, "LARGEST_ID", len(chat.tokenizer)):
        (folder / "contract.json").write_bytes(content)
        try:
            chat.contract = serving.read_contract(folder / "contract.json")
            (prompt,) = chat.prompts([[{"role": "user", "content": "Hello"}]])
        except ValueError as error:
            return refusal(error)
        assert all(type(each) is int for each in prompt)
        assert set(chat.contract["stop_token_ids"]) <= set(range(len(chat.tokenizer)))
        assert chat.contract == json.loads(content)
    return ""


SERVICE_TARGETS: dict[str, Target] = {
    "notify": Target(_operations(), notify, ("prefect.server.utilities.user_templates",)),
    "answers": Target(inputs.faulty(st.just(ANSWERS)), answers),
    "contract": Target(_contracts(), contract, ("transformers", "tokenizers")),
}
