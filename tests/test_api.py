"""A script that was written for OpenAI's fine-tuning API works here with another base URL and key."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
import waiting
import yaml
from servers import make_home
from test_flow import ROWS

from tunewright.artifacts import Base
from tunewright.cli.api import app, curves, files, template
from tunewright.cli.api.app import FineTuningApi
from tunewright.cli.api.curves import TrainingFollower
from tunewright.cli.api.files import StoredFiles
from tunewright.cli.api.jobs import JobStore
from tunewright.cli.api.models import FineTunedModels
from tunewright.cli.api.running import JobRunner
from tunewright.cli.api.server import of_runs
from tunewright.cli.api.template import JobFiles, Template
from tunewright.cli.deployment_file import load as load_file
from tunewright.cli.serve import key
from tunewright.cli.serve.app import create_app
from tunewright.errors import ConfigError
from tunewright.store.backup import backup, restore

KEY = "sk-for-these-tests-alone"
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
    }
    for row in ROWS
]
STEPS = 120  # enough that it is still at work when it is paused: eight epochs of 58 rows, four at once
PARAMETERS = {
    "model": {"base": "base", "max_length": 128},
    "method": {"rank": 2, "alpha": 4},
    "training": {"learning_rate": 0.01, "batch": 4, "epochs": 3, "patience": None},
    "compute": {"threads": 1},
    "evaluation": {"max_new_tokens": 4, "contenders": [], "forgetting": False},
    "gate": {"metric": "perplexity", "confidence": 0.8},
}
TUNEWRIGHT = (sys.executable, "-c", "from tunewright.cli.main import main; main()")


def jsonl(records: list[Any]) -> bytes:
    return "".join(f"{json.dumps(each)}\n" for each in records).encode()


def write_template(file: Path, parameters: dict[str, Any]) -> Path:
    deployment = {"name": "tiny", "entrypoint": "tunewright.flows.finetune.finetune", "parameters": parameters}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"deployments": [deployment]}))
    return file


def test_openais_own_client_uploads_trains_follows_and_chats(
    tiny_base: Base, ready: tuple[Path, ...], tmp_path: Path
) -> None:
    """One job of the real server, with a real training that is paused in its midst."""
    home = tmp_path / "home"
    make_home(home, ready)
    file = write_template(
        tmp_path / "tiny.yaml", PARAMETERS | {"model": {"base": tiny_base.reference, "max_length": 128}}
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*TUNEWRIGHT, "api", file.name, "--port", str(port), "--model", "gpt-4o-mini-2024-07-18"]
    log = tmp_path / "log"
    variables = os.environ | {"TUNEWRIGHT_HOME": str(home), "TMPDIR": str(tmp_path), key.VARIABLE: KEY}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, env=variables)
    try:
        waiting.until(lambda: process.poll() is not None or "Ctrl-C stops it" in log.read_text(), 120)
        assert process.poll() is None, log.read_text()
        assert KEY not in log.read_text()
        use(openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def use(client: openai.OpenAI) -> None:
    """The script of a team."""
    uploaded = client.files.create(file=("chats.jsonl", jsonl(CHATS)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        training_file=uploaded.id,
        model="gpt-4o-mini-2024-07-18",
        suffix="Support Bot",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 8, "batch_size": "auto"}}},
    )
    assert job.hyperparameters.to_dict() == {"n_epochs": 8, "batch_size": 4, "learning_rate_multiplier": 1.0}

    def newest() -> Any:
        return client.fine_tuning.jobs.list_events(job.id, limit=1).data[0]

    waiting.until(lambda: newest().type == "metrics" or client.fine_tuning.jobs.retrieve(job.id).status == "failed")
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    seen = waiting.until(lambda: [*client.fine_tuning.jobs.list_events(job.id, limit=50)])
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    ended = waiting.until(lambda: (now := client.fine_tuning.jobs.retrieve(job.id)).finished_at and now, 600)
    events = [*client.fine_tuning.jobs.list_events(job.id, limit=50)][::-1]
    assert ended.status == "succeeded", (ended.error, [each.message for each in events])
    assert [each.id for each in events][: len(seen)] == [each.id for each in seen[::-1]]
    assert events[-1].message == "The job has successfully completed"

    steps: list[Any] = [each.data for each in events if each.type == "metrics"]
    assert [each["step"] for each in steps] == list(range(1, STEPS + 1))
    result = client.files.content(ended.result_files[0]).text
    rows = [*csv.DictReader(io.StringIO(result))]
    assert [float(row["train_loss"]) for row in rows] == [each["train_loss"] for each in steps]
    assert [row["valid_loss"] for row in rows] == [str(each.get("valid_loss", "")) for each in steps]
    assert rows[-1]["epoch"] == "8.0"
    assert ended.trained_tokens and ended.trained_tokens % 8 == 0

    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    losses = {int(row["step"]): float(row["valid_loss"]) for row in rows if row["valid_loss"]}
    assert checkpoint.metrics.valid_loss == min(losses.values()) == losses[checkpoint.step_number]

    made = ended.to_dict()["tunewright"]
    assert (made["model"], made["version"]) == ("tiny-support-bot", "1")
    assert any(made["sentence"] in each.message for each in events)
    assert ended.fine_tuned_model == f"ft:gpt-4o-mini-2024-07-18:tunewright:support-bot:{job.id[6:14]}"
    assert next(iter(client.models.list())).id == ended.fine_tuned_model
    assert client.models.retrieve(ended.fine_tuned_model).created == ended.finished_at
    asked: list[Any] = [{"role": "user", "content": "my parcel in Berlin is missing"}]
    whole = client.chat.completions.create(model=ended.fine_tuned_model, messages=asked)
    assert whole.model == ended.fine_tuned_model
    assert whole.choices[0].message.content
    parts = client.chat.completions.create(
        model=checkpoint.fine_tuned_model_checkpoint, messages=asked, stream=True, max_tokens=4
    )
    assert "".join(each.choices[0].delta.content or "" for each in parts) == whole.choices[0].message.content
    other = f"{ended.fine_tuned_model}:ckpt-step-999"
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model=other, messages=asked)
    assert f"the model '{other}' is not served here; accepted: {ended.fine_tuned_model}, or " in error.value.message
    assert checkpoint.fine_tuned_model_checkpoint in error.value.message


RUN = """
import json, sys, time
from pathlib import Path

folder = Path(sys.argv[-2]).parent
tries = folder / "tries"
tries.write_text(tries.read_text() + "." if tries.exists() else ".")
end = folder.parent / "end"  # the exit code, and what is printed
while not end.exists():
    time.sleep(0.02)
code, said = end.read_text().split(" ", 1)
print(said)
sys.exit(int(code))
"""


class Api:
    """The paths in this process, with a program in place of the runs that waits until it is told how to end."""

    def __init__(self, folder: Path, made: Template) -> None:
        self.folder, self.told = folder, list[str]()
        self.files, self.jobs = (
            StoredFiles(folder / "files", self.told.append),
            JobStore(folder / "jobs", self.told.append),
        )
        self.runner = JobRunner(self.jobs, self.files, folder, os.environ, lambda: None, self.told.append)
        self.runner.command = [sys.executable, "-c", RUN]
        models = FineTunedModels(self.jobs, made, 1, self.told.append)
        routes = FineTuningApi(made, self.files, self.jobs, self.runner).routes()
        settings = uvicorn.Config(create_app(models, "127.0.0.1", KEY, routes), log_level="error")
        self.server = uvicorn.Server(settings)
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def upload(self, content: bytes = b"", name: str = "chats.jsonl") -> str:
        return self.client.files.create(file=(name, content or jsonl(CHATS)), purpose="fine-tune").id

    def create(self, **fields: Any) -> Any:
        given: Any = {"model": "base", **fields}
        return self.client.fine_tuning.jobs.create(
            **given | {"training_file": given.get("training_file") or self.upload()}
        )

    def status(self, job: Any) -> str:
        return self.client.fine_tuning.jobs.retrieve(job.id).status

    def comes_to(self, job: Any, status: str) -> Any:
        waiting.until(lambda: self.status(job) == status, 30, 0.02)
        return self.client.fine_tuning.jobs.retrieve(job.id)

    def end(self, code: int, **printed: Any) -> None:
        unfinished = self.folder / "jobs" / "unfinished"
        unfinished.write_text(f"{code} {json.dumps(printed)}")
        unfinished.rename(self.folder / "jobs" / "end")

    def tries(self, job: Any) -> int:
        file = self.folder / "jobs" / job.id / "tries"
        return len(file.read_text()) if file.exists() else 0

    def said(self, job: Any) -> list[str]:
        return [each.message for each in self.client.fine_tuning.jobs.list_events(job.id, limit=50)][::-1]


@contextmanager
def running(folder: Path, made: Template) -> Iterator[Api]:
    api = Api(folder, made)
    api.thread.start()
    waiting.until(lambda: api.server.started, 30, 0.02)
    api.runner.start()
    try:
        yield api
    finally:
        api.runner.close()
        api.server.should_exit = True
        api.thread.join()


@pytest.fixture
def made(tmp_path: Path) -> Template:
    return template.load(write_template(tmp_path / "team" / "tiny.yaml", PARAMETERS), None, [], ["gpt-4o-mini"])


@pytest.fixture
def api(tmp_path: Path, made: Template) -> Iterator[Api]:
    with running(tmp_path / "api", made) as api:
        yield api


def test_a_paused_job_goes_on_where_it_is_resumed_and_a_cancelled_one_never(api: Api) -> None:
    job, after = api.create(), api.create()
    waiting.until(lambda: api.tries(job) == 1, 30, 0.02)
    api.comes_to(after, "queued")
    assert api.client.fine_tuning.jobs.pause(job.id).status == "paused"
    waiting.until(lambda: api.tries(after) == 1, 30, 0.02)
    with pytest.raises(openai.BadRequestError, match="pause: the job is paused; accepted: a job that is "):
        api.client.fine_tuning.jobs.pause(job.id)
    assert api.client.fine_tuning.jobs.cancel(after.id).status == "cancelled"
    assert api.client.fine_tuning.jobs.resume(job.id).status == "queued"
    waiting.until(lambda: api.tries(job) == 2, 30, 0.02)
    assert api.client.fine_tuning.jobs.cancel(job.id).finished_at
    for action in (api.client.fine_tuning.jobs.cancel, api.client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError, match="the job is cancelled; accepted: "):
            action(job.id)
    assert api.said(job)[-3:] == ["The job was resumed", "Fine-tuning job started", "The job was cancelled"]
    assert api.tries(after) == 1


def test_a_job_that_is_resumed_before_its_run_has_ended_is_not_failed(api: Api) -> None:
    job = api.create()
    waiting.until(lambda: api.tries(job) == 1, 30, 0.02)
    api.client.fine_tuning.jobs.pause(job.id)
    api.client.fine_tuning.jobs.resume(job.id)
    api.comes_to(job, "running")
    api.client.fine_tuning.jobs.pause(job.id)
    time.sleep(0.7)  # the run is ended at the next look, while the job is queued again
    api.client.fine_tuning.jobs.resume(job.id)
    waiting.until(lambda: api.tries(job) == 2, 30, 0.02)
    assert api.status(job) == "running"


def test_jobs_of_a_server_that_was_ended_go_on_in_the_next(tmp_path: Path, made: Template) -> None:
    with running(tmp_path / "api", made) as api:
        job, after = api.create(metadata={"team": "a"}), api.create()
        waiting.until(lambda: api.tries(job) == 1, 30, 0.02)
        api.comes_to(after, "queued")
        said = api.said(job)
    record = tmp_path / "api" / "jobs" / job.id / "job.json"
    assert json.loads(record.read_bytes())["status"] == "running"
    (tmp_path / "api" / "jobs" / "ftjob-broken").mkdir()
    (tmp_path / "api" / "jobs" / "ftjob-broken" / "job.json").write_text("{")
    (tmp_path / "api" / "files" / ".upload-part").write_text("half of a file")
    with record.with_name("events.jsonl").open("a") as events:
        events.write('{"id": "of a power cut')
    with running(tmp_path / "api", made) as api:
        waiting.until(lambda: api.tries(job) == 2, 30, 0.02)
        assert [each.id for each in api.client.fine_tuning.jobs.list()] == [after.id, job.id]
        assert api.said(job)[: len(said)] == said
        assert "The server was started again; the job resumes from what it has made" in api.said(job)
        assert any("ftjob-broken/job.json: cannot be read" in line for line in api.told)
        assert not [*(tmp_path / "api" / "files").glob(".upload-*")]
        api.end(3, error="data.sources[0]: too few rows")
        for each in (job, after):
            assert api.comes_to(each, "failed").error.code == "invalid_training_file"


def test_a_backup_has_the_jobs_and_their_files_for_another_home(
    tmp_path: Path, made: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [tmp_path / "old", tmp_path / "new"]
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(homes[0]))
    with running(homes[0] / "api", made) as api:
        job = api.create()
        waiting.until(lambda: api.tries(job) == 1, 30, 0.02)
    backup(tmp_path / "backup.tar")
    shutil.rmtree(homes[0])
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(homes[1]))
    restore(tmp_path / "backup.tar")
    with running(homes[1] / "api", made) as api:
        api.comes_to(job, "running")
        file = api.folder / "jobs" / job.id / "job.yaml"
        (source,) = load_file(file).settings.data.sources
        assert (
            (file.parent / source.path).read_bytes()
            == jsonl(CHATS)
            == api.client.files.content(job.training_file).read()
        )


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (2, "model.base=base: there is no such folder", "invalid_settings"),
        (3, "FILE: 5 of 9 records quarantined", "invalid_training_file"),
        (4, "training did not finish: loss is NaN at step 12", "training_failed"),
        (1, "", "server_error"),
    ],
)
def test_a_run_that_fails_is_the_error_of_the_job(api: Api, code: int, said: str, kind: str) -> None:
    job = api.create()
    path, name = api.files.path(api.files.get(job.training_file)), f"chats.jsonl ({job.training_file})"
    api.end(code, **({"error": said.replace("FILE", str(path)), "exit_code": code} if said else {}))
    error = api.comes_to(job, "failed").error
    assert (error.code, error.message) == (
        kind,
        said.replace("FILE", name) or f"the run ended with exit code {code}",
    )
    assert api.said(job)[-1] == f"The job failed: {error.message}"


def test_a_file_that_cannot_be_trained_on_fails_its_job_before_it_is_queued(api: Api) -> None:
    api.create()  # which is at work
    bad = api.upload(b'{"messages": []}\n{bad\n', "mine.jsonl")
    error = api.comes_to(job := api.create(training_file=bad), "failed").error
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert f"mine.jsonl ({bad}): 2 of 2 records cannot be used, accepted are at most 10 %: " in error.message
    assert "first line 2, Expecting property name" in error.message
    assert str(api.folder) not in error.message
    assert "Files validated, moving job to queued state" not in api.said(job)

    error = api.comes_to(api.create(validation_file=bad), "failed").error
    assert (error.code, error.param) == ("invalid_validation_file", "validation_file")

    old = api.upload(jsonl([{"prompt": row["instruction"], "completion": row["output"]} for row in ROWS] + [{}]))
    api.comes_to(job := api.create(training_file=old), "queued")
    assert any("72 examples; 1 record is left out: 1 unknown_layout, first line 73, " in each for each in api.said(job))

    altered = api.upload(jsonl(CHATS[1:]))
    api.files.path(api.files.get(altered)).write_bytes(jsonl(CHATS[:-1]))
    assert "is not what was uploaded" in api.comes_to(api.create(training_file=altered), "failed").error.message


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "gpt-5"}, 'model "gpt-5": accepted: base, gpt-4o-mini'),
        ({"training_file": "file-none"}, 'training_file: there is no file "file-none"'),
        ({"training_file": "../../job"}, 'training_file: there is no file "../../job"'),
        (
            {"method": {"type": "dpo", "dpo": {}}},
            'method.type: "dpo" is training on preferences, which tunewright run does; accepted: supervised',
        ),
        ({"method": {"type": "reinforcement"}}, 'method.type: "reinforcement" is training on rewards; '),
        ({"integrations": [{"type": "wandb"}]}, "integrations: not supported, as MLflow records every job; leave it "),
        (
            {"hyperparameters": {"n_epochs": 0}},
            "hyperparameters.n_epochs 0: accepted: auto, or a whole number from 1 to 1000",
        ),
        (
            {"hyperparameters": {"batch_size": True}},
            "hyperparameters.batch_size true: accepted: auto, or a whole number from 1 to 1000000",
        ),
        ({"hyperparameters": {"rank": 1}}, "hyperparameters.rank: no such field; leave it out"),
        ({"seed": -1}, "seed -1: accepted: a whole number from 0 to 4294967295"),
        ({"suffix": "東京"}, 'suffix "東京": accepted: text of 1 to 64 characters, with one of a-z or 0-9 among them'),
        ({"metadata": {"a": "b" * 513}}, "metadata: accepted: up to 16 pairs of texts, keys of up to 64 and values "),
        ({"epochs": 3}, '"epochs": no such field; '),
    ],
)
def test_a_request_that_nothing_here_does_is_refused_by_name(api: Api, fields: dict[str, Any], sentence: str) -> None:
    given = {"model": "base", "training_file": fields.get("training_file") or api.upload()} | fields
    answer = httpx.post(f"{api.url}/v1/fine_tuning/jobs", content=json.dumps(given), headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["message"][: len(sentence)]) == (400, sentence)
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert [*api.client.fine_tuning.jobs.list()] == []


def test_no_more_than_so_many_jobs_wait(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_JOBS", 2)
    jobs = [api.create(), api.create()]
    with pytest.raises(openai.RateLimitError, match="2 jobs are waiting already; cancel some, or try again later"):
        api.create()
    api.client.fine_tuning.jobs.cancel(jobs[1].id)
    assert api.create().status == "validating_files"


def test_a_run_has_the_home_and_not_the_key(home: Path) -> None:
    assert of_runs({"A": "b", key.VARIABLE: KEY}) == {"A": "b", "TUNEWRIGHT_HOME": str(home)}


def test_jobs_and_events_come_in_pages_the_newest_first(api: Api) -> None:
    file = api.upload()
    made = [api.create(training_file=file, metadata={"number": str(number)}).id for number in range(5)]
    first = api.client.fine_tuning.jobs.list(limit=2)
    assert ([each.id for each in first.data], first.has_more) == (made[:2:-1], True)
    assert [each.id for each in first] == made[::-1]  # all pages
    assert [each.id for each in api.client.fine_tuning.jobs.list(metadata={"number": "3"})] == [made[3]]
    job = api.client.fine_tuning.jobs.retrieve(made[0])
    api.comes_to(job, "running")
    events = [*api.client.fine_tuning.jobs.list_events(made[0], limit=2)]
    assert [each.message for each in events][-1] == f"Created fine-tuning job: {made[0]}"
    assert len({each.id for each in events}) == len(events) > 4
    for path in ("jobs?limit=0", "jobs?after=none", f"jobs/{made[0]}/events?limit=1001", "jobs?limit=%C2%B2"):
        assert httpx.get(f"{api.url}/v1/fine_tuning/{path}", headers=HEADERS).status_code == 400
    assert [*api.client.fine_tuning.jobs.checkpoints.list(made[0])] == []
    with pytest.raises(openai.NotFoundError, match="there is no fine-tuning job"):
        api.client.fine_tuning.jobs.retrieve("ftjob-none")
    with pytest.raises(openai.NotFoundError, match="accepted: the fine_tuned_model of a job that succeeded"):
        api.client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hello"}])


def test_a_file_is_kept_as_it_came_for_its_owner_alone(api: Api) -> None:
    content = os.urandom(3_000_000) + b"\r\n--\r\n" * 1_000
    uploaded = api.client.files.create(file=("../../a b.jsonl", content), purpose="fine-tune")
    assert (uploaded.filename, uploaded.bytes, uploaded.purpose) == ("a b.jsonl", len(content), "fine-tune")
    stored = api.files.get(uploaded.id)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert stat.S_IMODE(api.files.path(stored).stat().st_mode) == 0o600
    assert stat.S_IMODE(api.files.folder.stat().st_mode) == 0o700
    assert api.client.files.content(uploaded.id).read() == content
    other, same = api.upload(), api.upload()
    assert api.files.path(api.files.get(other)) == api.files.path(api.files.get(same))
    assert api.client.files.delete(same).deleted
    assert [each.id for each in api.client.files.list()] == [other, uploaded.id]
    assert [each.id for each in api.client.files.list(order="asc", limit=1)] == [uploaded.id, other]
    assert [*api.client.files.list(purpose="fine-tune-results")] == []
    job = api.create(training_file=other)
    with pytest.raises(openai.BadRequestError, match=rf"{other} is in use by {job.id}, which is "):
        api.client.files.delete(other)
    api.client.fine_tuning.jobs.cancel(job.id)
    for each in (other, uploaded.id):
        assert api.client.files.delete(each).deleted
    assert [*api.files.folder.iterdir()] == []
    with pytest.raises(openai.NotFoundError):
        api.client.files.content(other)


def form(*parts: tuple[str, str], end: bool = True) -> bytes:
    said = "".join(f"--x\r\nContent-Disposition: form-data; {kind}\r\n\r\n{text}\r\n" for kind, text in parts)
    return (said + "--x--\r\n" * end).encode()


PURPOSE, FILE = ('name="purpose"', "fine-tune"), ('name="file"; filename="a.jsonl"', "{}")


@pytest.mark.parametrize(
    ("body", "kind", "status", "sentence"),
    [
        (b"{}", "application/json", 415, 'the content type is "application/json"; accepted: a form of the type'),
        (b"{}", "multipart/form-data; boundary=x", 400, "the form cannot be read"),
        (b"", "multipart/form-data; boundary=x", 400, "the form cannot be read"),
        (form(PURPOSE, FILE, end=False), "multipart/form-data; boundary=x", 400, "the form cannot be read"),
        (form(PURPOSE), "multipart/form-data; boundary=x", 400, "file: is missing"),
        (form(FILE), "multipart/form-data; boundary=x", 400, "purpose: is missing; accepted: fine-tune"),
        (form(PURPOSE, FILE, FILE), "multipart/form-data; boundary=x", 400, '"file": accepted: a form of the type'),
        (form(('name="purpose"', "batch"), FILE), "multipart/form-data; boundary=x", 400, 'purpose: "batch"; accepted'),
        (form(('name="purpose"', "a" * 2_000)), "multipart/form-data; boundary=x", 400, "purpose: is longer than"),
        (form(('name="expires"', "9")), "multipart/form-data; boundary=x", 400, '"expires": not supported'),
        (form(PURPOSE, (FILE[0], "")), "multipart/form-data; boundary=x", 400, "file: is empty"),
        (form(PURPOSE, (FILE[0], "a" * 2_000)), "multipart/form-data; boundary=x", 413, "file: is larger than 1,500 b"),
    ],
)
def test_an_upload_that_is_no_file_for_training_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, body: bytes, kind: str, status: int, sentence: str
) -> None:
    monkeypatch.setattr(files, "LARGEST", 1_500)
    answer = httpx.post(f"{api.url}/v1/files", content=body, headers=HEADERS | {"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["message"][: len(sentence)]) == (status, sentence)
    assert [*api.files.folder.iterdir()] == []


def test_an_upload_is_refused_where_the_disk_has_no_room(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROOM_BYTES", 2**60)
    with pytest.raises(openai.InternalServerError, match="the disk has no room for the file"):
        api.upload()
    assert [*api.files.folder.iterdir()] == []


def test_nothing_is_there_for_who_has_no_key_or_for_pages_of_others(api: Api) -> None:
    file = api.upload()
    job = api.create(training_file=file)
    for method, path in [
        ("POST", "files"),
        ("GET", "files"),
        ("GET", f"files/{file}/content"),
        ("DELETE", f"files/{file}"),
        ("POST", "fine_tuning/jobs"),
        ("GET", "fine_tuning/jobs"),
        ("POST", f"fine_tuning/jobs/{job.id}/cancel"),
        ("GET", f"fine_tuning/jobs/{job.id}/events"),
    ]:
        url = f"{api.url}/v1/{path}"
        assert httpx.request(method, url).status_code == 401
        assert httpx.request(method, url, headers=HEADERS | {"Origin": "http://a.example"}).status_code == 403
        assert httpx.request(method, url, headers=HEADERS | {"Host": "a.example"}).status_code == 400
    assert api.status(job) != "cancelled"


ROWS_OF = JobFiles(Path("/api/train.jsonl"), None)


def test_a_job_has_the_settings_of_the_template_and_its_own_rows(tmp_path: Path) -> None:
    base = tmp_path / "team" / "base"
    base.mkdir(parents=True)
    sources = [
        {"path": "own.jsonl"},
        {"path": "test.jsonl", "use_as": "test"},
        {"path": "v.jsonl", "use_as": "validation"},
    ]
    training = {"learning_rate": 0.001, "max_steps": 7, "micro_batch": 8}
    parameters = {
        "data": {"sources": sources, "limit": 9},
        "model": {"base": "base", "revision": "a"},
        "training": training,
        "evaluation": {"json_schema": "answer.json"},
    }
    made = template.load(write_template(base.parent / "tiny.yaml", parameters), None, ["data.limit=5"], ["b=org/b"])
    assert made.bases == {"base": str(base), "b": "org/b"}

    job = made.job(str(base), ROWS_OF, "", {})
    folder = base.parent
    assert [each["path"] for each in job["data"]["sources"]] == [
        "/api/train.jsonl",
        str(folder / "test.jsonl"),
        str(folder / "v.jsonl"),
    ]
    assert job["data"]["limit"] == 5
    assert job["model"] == {"base": str(base), "revision": "a"}
    assert job["evaluation"]["json_schema"] == str(folder / "answer.json")
    assert (job["training"], job["registry"]["name"]) == (training, "tiny")

    both = JobFiles(ROWS_OF.training, Path("/api/valid.jsonl"))
    job = made.job("org/b", both, "New Bot", {"training.epochs": 2, "training.batch": 4})
    assert [(each["path"], each.get("use_as")) for each in job["data"]["sources"]] == [
        ("/api/train.jsonl", None),
        ("/api/valid.jsonl", "validation"),
        (str(folder / "test.jsonl"), "test"),
    ]
    assert job["model"] == {"base": "org/b"}
    assert job["training"] == {"learning_rate": 0.001, "micro_batch": 4, "epochs": 2, "batch": 4}
    assert job["registry"]["name"] == "tiny-new-bot"


@pytest.mark.parametrize(
    ("parameters", "models", "sentence"),
    [
        (PARAMETERS | {"until": "train"}, [], "until: a job ends with a registered version; leave it out"),
        (PARAMETERS | {"method": {"kind": "few_shot"}}, [], "method.kind=few_shot trains nothing, and a job is"),
        (PARAMETERS, ["a b"], '--model "a b": accepted: NAME or NAME=BASE'),
        (PARAMETERS, ["ft:a=b"], '--model "ft:a=b": accepted: NAME or NAME=BASE'),
        (PARAMETERS, ["a="], '--model "a=": names no base; accepted: NAME=BASE'),
        ({}, [], "model: missing"),
    ],
)
def test_a_template_that_makes_no_job_is_refused(
    tmp_path: Path, parameters: dict[str, Any], models: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        template.load(write_template(tmp_path / "tiny.yaml", parameters), None, [], models)


def test_what_auto_stands_for_is_reported(api: Api, made: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.create(hyperparameters={"learning_rate_multiplier": 0.5}, seed=7, suffix="v1.2")
    assert job.hyperparameters.to_dict() == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert (job.seed, job.method.supervised.hyperparameters.to_dict()) == (7, job.hyperparameters.to_dict())
    deployed = yaml.safe_load((api.folder / "jobs" / job.id / "job.yaml").read_text())
    training = deployed["deployments"][0]["parameters"]["training"]
    assert training == PARAMETERS["training"] | {"learning_rate": 0.005, "seed": 7}
    assert deployed["deployments"][0]["parameters"]["registry"]["name"] == "tiny-v1-2"
    with pytest.raises(openai.BadRequestError, match=r"differ from method\.supervised\.hyperparameters"):
        api.create(
            hyperparameters={"n_epochs": 1},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        )


def line(step: int, planned: int, **figures: float) -> str:
    return json.dumps({"step": step, "planned": planned, "time": 1_000.0 + 10 * step, "epoch": step / 4, **figures})


def test_each_point_is_one_event_also_where_a_training_goes_on(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = [line(1, 4, loss=2.0, learning_rate=0.1), line(2, 4, loss=1.5), line(2, 4, eval_loss=1.8)]
    metrics.write_text("\n".join(lines) + "\n" + line(3, 4, loss=1.0)[:-3])
    follower = TrainingFollower([])
    assert [said for said, _ in follower.read(metrics)] == [
        "Step 1/4: training loss=2.0000",
        "Step 2/4: training loss=1.5000, validation loss=1.8000",
    ]
    assert [*follower.read(metrics)] == []
    assert follower.end() == max(int(time.time()), 1_040)
    metrics.write_text("\n".join([*lines[:2], line(3, 4, loss=1.0)]) + "\n")  # resumed from step 2
    assert [*follower.read(metrics)] == []  # step 3 may be evaluated yet
    assert [figures["step"] for _, figures in follower.read(metrics, is_over=True)] == [3]
    assert curves.as_csv(curves.points(metrics)).splitlines()[:3] == [
        "step,train_loss,valid_loss,learning_rate,epoch",
        "1,2.0,,0.1,0.25",
        "2,1.5,,,0.5",
    ]


def test_a_long_training_has_about_a_thousand_events(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f"{line(step, 4_999, loss=1.0)}\n" for step in range(1, 5_000)))
    events = [figures["step"] for _, figures in TrainingFollower([]).read(metrics, is_over=True)]
    assert (len(events), events[0], events[-1]) == (1_000, 5, 4_999)
    assert len(curves.as_csv(curves.points(metrics)).splitlines()) == 5_000
