"""A form reaches only hosts, files and modules that the worker's environment allows; no setting holds a secret."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from tunewright.cli.main import app
from tunewright.config import Data, Judge, Model, Registry, Settings, Source, outside
from tunewright.errors import ConfigError
from tunewright.flows.inputs import inputs
from tunewright.registry import address
from tunewright.registry.address import tracking_uri
from tunewright.registry.tracking import connected
from tunewright.tasks.ingest import source_files
from tunewright.tasks.prompt.documents import documents


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/v1",
        "https://hunter2@host/v1",
        "https://host/v1?api_key=hunter2",
        "https://host/v1?x=1&access_token=hunter2",
        "https://host/v1#token=hunter2",
        "https://host/v1#passwd=hunter2",
    ],
)
def test_credentials_in_an_address_are_refused_without_repeating_them(url: str) -> None:
    for make in (lambda: Judge(url=url, model="m"), lambda: Registry(tracking_uri=url), lambda: Source(path=url)):
        with pytest.raises(ValidationError, match=r"https://host/v1: a URL with credentials") as raised:
            make()
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("url", ["https://u:hunter2@h/x.yaml", "s3://hunter2@b/x.yaml", "https://h/x.yaml?sig=hunter2"])
def test_an_address_in_place_of_a_file_is_not_repeated_with_its_secret(url: str) -> None:
    for command in ("run", "plan", "data"):
        refused = CliRunner().invoke(app, [command, url, "--json"])
        assert refused.exit_code == 2
        assert "a URL; accepted: a file on this machine" in refused.stderr
        assert "hunter2" not in refused.output


def test_doctor_names_a_server_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://me:hunter2@127.0.0.1:9/api")
    shown = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "300"}).output
    assert "http://127.0.0.1:9/api does not answer" in shown
    assert "hunter2" not in shown


def test_a_database_is_named_with_its_user_and_without_its_password() -> None:
    assert Registry(tracking_uri="postgresql://mlflow@db/mlflow").tracking_uri
    with pytest.raises(ValidationError, match="PGPASSWORD") as raised:
        Registry(tracking_uri="postgresql://mlflow:hunter2@db/mlflow")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://2852039166/",  # the same address as a number
        "http://0xA9FEA9FE/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://metadata.google.internal./",
    ],
)
def test_a_metadata_service_is_never_asked(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^judge\.url=.*metadata service"):
        outside.check_host("judge.url", url, "TUNEWRIGHT_JUDGE_HOSTS")
    for path in (url, f"zip://a.jsonl::{url}"):
        with pytest.raises(ConfigError, match=r"^data\.sources\[0\]\.path=.*metadata service"):
            outside.check_path("data.sources[0].path", path)


def test_a_name_that_resolves_to_a_metadata_service_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [(0, 0, 0, "", ("169.254.169.254", 0))])
    with pytest.raises(ConfigError, match="metadata service"):
        outside.check_host("judge.url", "https://innocent.example/v1", "TUNEWRIGHT_JUDGE_HOSTS")


def test_only_hosts_that_the_environment_names_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    outside.check_host("registry.tracking_uri", "http://127.0.0.1:5000", "TUNEWRIGHT_TRACKING_HOSTS")
    monkeypatch.setenv("TUNEWRIGHT_TRACKING_HOSTS", "mlflow.internal,127.0.0.1:5000")
    outside.check_host("registry.tracking_uri", "http://127.0.0.1:5000", "TUNEWRIGHT_TRACKING_HOSTS")
    with pytest.raises(ConfigError, match=r"none of TUNEWRIGHT_TRACKING_HOSTS=mlflow\.internal"):
        outside.check_host("registry.tracking_uri", "http://127.0.0.1:5001", "TUNEWRIGHT_TRACKING_HOSTS")


def test_only_files_below_the_roots_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, other = tmp_path / "data", tmp_path / "database"
    for folder in (inside, other):
        folder.mkdir()
        (folder / "a.jsonl").touch()
    (inside / "link.jsonl").symlink_to(other / "a.jsonl")
    monkeypatch.setenv("TUNEWRIGHT_ROOTS", f"{inside}, s3://bucket/data, https://host/data")
    for path in (f"{inside}/a.jsonl", f"{inside}/*.jsonl", "s3://bucket/data/a.jsonl"):
        outside.check_path("data.sources[0].path", path)
    for path in (
        "/etc/passwd",
        f"{inside}/../database/a.jsonl",
        f"{inside}/link.jsonl",
        f"{other}/a.jsonl",
        "s3://bucket/database/a.jsonl",
        "s3://bucket/data/../a.jsonl",
        "https://host/data/%2e%2E/a.jsonl",
        "hub:org/name",
    ):
        with pytest.raises(ConfigError, match="outside TUNEWRIGHT_ROOTS"):
            outside.check_path("data.sources[0].path", path)


@pytest.mark.parametrize("name", ["a\nb.txt", "a\x1b]52;c;cm0gLXJm\x07.txt", "a\x9b2J.txt", "a\u202etxt.exe.txt"])
def test_a_file_whose_name_would_steer_a_terminal_or_part_a_list_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("text")
    said = re.escape(f"={str(tmp_path / name)!r}: has a control character or a line break in it; give it another name")
    with pytest.raises(ConfigError, match=rf"^data\.sources\[0\]\.path{said}$"):
        source_files(Data(sources=(Source(path=f"{tmp_path}/*.txt", format="jsonl"),)))
    with pytest.raises(ConfigError, match=rf"^evaluation\.documents\[0\]{said}$"):
        documents([f"{tmp_path}/*.txt"])


def test_a_root_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUNEWRIGHT_ROOTS", "~nobody-here/data,~/data")
    outside.check_path("data.sources[0].path", str(tmp_path / "data" / "a.jsonl"))
    with pytest.raises(ConfigError, match="lies outside TUNEWRIGHT_ROOTS=~nobody-here/data,~/data"):
        outside.check_path("data.sources[0].path", str(tmp_path / "a.jsonl"))


def test_a_link_that_a_glob_matches_leads_to_no_file_outside_the_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, other = tmp_path / "data", tmp_path / "other"
    for folder in (inside, other):
        folder.mkdir()
    (other / "secret.txt").write_text("secret")
    (inside / "link.txt").symlink_to(other / "secret.txt")
    monkeypatch.setenv("TUNEWRIGHT_ROOTS", str(inside))
    with pytest.raises(ConfigError, match=r"^data\.sources\[0\]\.path=.*/link\.txt: lies outside TUNEWRIGHT_ROOTS"):
        source_files(Data(sources=(Source(path=f"{inside}/*.txt", format="jsonl"),)))
    with pytest.raises(ConfigError, match=r"^evaluation\.documents\[0\]=.*/link\.txt: lies outside TUNEWRIGHT_ROOTS"):
        documents([f"{inside}/*.txt"])


NEEDED = {"judge": {"model": "m"}, "lm_eval": {"tasks": ["hellaswag"]}}  # by a section's own rules


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("model", "base", "{other}", "model.base={other}: lies outside TUNEWRIGHT_ROOTS"),
        ("model", "base", "org/name", "model.base=hub:org/name: lies outside TUNEWRIGHT_ROOTS"),
        ("model", "chat_template", "{other}/a.jinja", "model.chat_template={other}/a.jinja: lies outside"),
        ("dedupe", "semantic_model", "{other}", "dedupe.semantic_model={other}: lies outside TUNEWRIGHT_ROOTS"),
        ("evaluation", "json_schema", "{other}/a.json", "evaluation.json_schema={other}/a.json: lies outside"),
        ("lm_eval", "include_path", "{other}", "lm_eval.include_path={other}: lies outside TUNEWRIGHT_ROOTS"),
        ("evaluation", "metrics", ["auto", "os:X"], "evaluation.metrics=os:X: is of none of TUNEWRIGHT_MODULES"),
        ("gate", "metric", "os:X", "gate.metric=os:X: is of none of TUNEWRIGHT_MODULES"),
        ("gate", "guardrails", [{"metric": "os:X"}], "gate.guardrails=os:X: is of none of TUNEWRIGHT_MODULES"),
        ("checks", "expectations", [{"name": "os.X"}], "checks.expectations=os.X: is of none of TUNEWRIGHT_MODULES"),
        ("judge", "url", "https://b.example/v1", "judge.url=https://b.example/v1: its host is none of"),
        ("compute", "vllm", "https://b.example/v1", "compute.vllm=https://b.example/v1: its host is none of"),
        ("data", "sources", [{"path": "{other}/a.jsonl"}], "data.sources[0].path={other}/a.jsonl: lies outside"),
    ],
)
def test_a_run_asks_before_it_reads_what_a_setting_names(
    section: str, key: str, value: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, other = tmp_path / "inside", tmp_path / "other"
    inside.mkdir()
    other.mkdir()
    monkeypatch.setenv("TUNEWRIGHT_ROOTS", str(inside))
    monkeypatch.setenv("TUNEWRIGHT_MODULES", "team")
    monkeypatch.setenv("TUNEWRIGHT_JUDGE_HOSTS", "a.example")
    monkeypatch.setenv("TUNEWRIGHT_API_HOSTS", "a.example")
    monkeypatch.setattr("tunewright.modeling.models.identity", lambda _: "")
    settings = Settings(data=Data(sources=(Source(path=f"{inside}/*.jsonl"),)), model=Model(base=str(inside)))
    named = json.loads(json.dumps(value).replace("{other}", str(other)))
    changed = getattr(settings, section).model_dump() | {key: named} | NEEDED.get(section, {})
    with pytest.raises(ConfigError) as raised:
        inputs(settings.model_copy(update={section: type(getattr(settings, section)).model_validate(changed)}))
    assert str(raised.value).startswith(said.replace("{other}", str(other)))


def test_the_registry_of_a_run_is_asked_only_where_the_environment_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_TRACKING_HOSTS", "mlflow.internal")
    others = (
        "http://127.0.0.1:9",
        "postgresql://127.0.0.1:9/mlflow",
        "mysql+pymysql://127.0.0.1:9/mlflow",
        "postgresql://mlflow.internal/mlflow?host=127.0.0.1",
    )
    for uri in others:
        said = rf"^registry\.tracking_uri={re.escape(uri.partition('?')[0])}: its host is none of"
        with pytest.raises(ConfigError, match=said), connected(Registry(tracking_uri=uri)):
            pass


CREDENTIALS = {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": "hush", "MLFLOW_TRACKING_TOKEN": "hush"}


@pytest.mark.parametrize("held", [*CREDENTIALS, "~/.mlflow/credentials"])
def test_credentials_of_the_worker_are_for_the_mlflow_that_its_environment_names(
    held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    address.require_allowed("http://127.0.0.1:9")
    if held in CREDENTIALS:
        monkeypatch.setenv(held, CREDENTIALS[held])
    else:
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\nmlflow_tracking_password = hush\n")
    said = (
        rf"^registry\.tracking_uri=http://127\.0\.0\.1:9: {held} would be sent there; accepted: the server of MLFLOW_"
    )
    for own in ("", "http://127.0.0.1:10", "https://127.0.0.1:9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
        with pytest.raises(ConfigError, match=said), connected(Registry(tracking_uri="http://127.0.0.1:9")):
            pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9/mlflow")
    address.require_allowed("http://127.0.0.1:9")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("TUNEWRIGHT_TRACKING_HOSTS", "127.0.0.1:9")
    address.require_allowed("http://127.0.0.1:9")


@pytest.mark.parametrize("uri", ["sqlite:///{}", "sqlite+pysqlite:///{}", "sqlite:///file:{}?uri=true"])
def test_a_database_in_a_file_lies_below_the_roots(uri: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, other = home.parent / "inside", home.parent / "other"
    outsider = uri.format(other / "a.db")
    monkeypatch.setenv("TUNEWRIGHT_ROOTS", str(inside))
    said = r"^registry\.tracking_uri=.*: lies outside TUNEWRIGHT_ROOTS="
    with pytest.raises(ConfigError, match=said), connected(Registry(tracking_uri=outsider)):
        pass
    assert not other.exists()
    address.require_allowed(f"sqlite:///{inside}/a.db")
    address.require_allowed(tracking_uri(Registry()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", outsider)
    address.require_allowed(outsider)


def test_only_modules_that_the_environment_names_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    outside.check_module("evaluation.metrics", "anything:X")
    monkeypatch.setenv("TUNEWRIGHT_MODULES", "team,data_checks.tickets")
    for name in ("team:X", "team.metrics:X", "data_checks.tickets.ExpectTicket"):
        outside.check_module("evaluation.metrics", name)
    for name in ("teams:X", "data_checks.other.X", "os:X"):
        with pytest.raises(ConfigError, match="none of TUNEWRIGHT_MODULES"):
            outside.check_module("evaluation.metrics", name)


@pytest.mark.parametrize(
    "assignment",
    [
        "judge.url=http://u:hunter2@h/v1",
        "registry.tracking_uri=http://h:5000?token=hunter2",
        'data.sources=[{path: "s3://AK:hunter2@b/x.jsonl"}]',
        "model.base=https://u:hunter2@host/m",
    ],
)
def test_credentials_on_the_command_line_are_not_repeated(assignment: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "deployments: [{name: mine, entrypoint: tunewright.flows.finetune.finetune, "
        "parameters: {data: {sources: [{path: a.jsonl}]}, model: {base: org/name}}}]"
    )
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = CliRunner().invoke(app, ["plan", str(file), "--json", "--set", assignment])
    assert done.exit_code == 2
    assert "hunter2" not in done.output
    assert assignment.partition("=")[0] in done.output


def test_an_address_of_release_commands_with_credentials_names_its_own_option() -> None:
    done = CliRunner().invoke(app, ["release", "history", "x", "--tracking-uri", "http://u:hunter2@127.0.0.1:5999"])
    assert done.exit_code == 2
    assert "--tracking-uri: http://127.0.0.1:5999: a URL with credentials" in done.output
    assert "hunter2" not in done.output
