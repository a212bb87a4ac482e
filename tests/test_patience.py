"""Reads of MLflow outside of stages wait for a server that is on its way back, and not for ever."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from tunewright.artifacts import Base
from tunewright.config import Data, Model, Registry, Settings, Source
from tunewright.errors import ConfigError, TrackingError
from tunewright.flows import finetune
from tunewright.flows.compare import compare
from tunewright.machine.addresses import Addresses
from tunewright.registry import tracking
from tunewright.registry.versions import champion, require_answer
from tunewright.tasks.base import base as load_base

Serve = Callable[[int, str], Registry]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(3, "dead")` is an MLflow without models whose first three answers are no answer; or a code, and a body."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "WAITS", (0.01, 0.02))
    servers: list[HTTPServer] = []

    def serve(failures: int, how: str) -> Registry:
        left = iter(range(failures))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if next(left, None) is None:
                    answer = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}
                    self.send_response(404)
                    self.end_headers()
                    self.wfile.write(json.dumps(answer).encode())
                elif how != "dead":
                    code, _, body = how.partition(" ")
                    self.send_response(int(code))
                    self.end_headers()
                    self.wfile.write(body.encode())
                else:
                    self.connection.close()

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Says nothing."""

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return Registry(name="tiny", tracking_uri=f"http://127.0.0.1:{servers[-1].server_port}")

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("how", ["503", "dead"])
def test_a_champion_is_looked_up_again_until_mlflow_answers(
    serve: Serve, how: str, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    assert champion(serve(3, how), "of a candidate", tiny_base, load_base.fn) is None
    said = [message for message in caplog.messages if "MLflow does not answer" in message]
    assert len(said) == 3
    assert all("; retrying in" in message for message in said)


def test_one_that_stays_away_is_given_up_with_one_line(
    serve: Serve, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(TrackingError, match=r"^registry\.tracking_uri=http://127.*: MLflow does not answer \("):
        champion(serve(10_000, "503"), "of a candidate", tiny_base, load_base.fn)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "401 Who are you?",
            "MLflow refuses the credentials (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_P",
        ),
        (
            '403 {"error_code": "PERMISSION_DENIED", "message": "No."}',
            "MLflow refuses the credentials (403); set MLFLO",
        ),
        (
            "404 <html>Nothing</html>",
            "what answers there, with 404, is not MLflow's API; set the address that its pages",
        ),
        (
            "200 <html>A page</html>",
            "what answers there, without JSON, is not MLflow's API; set the address that its pa",
        ),
    ],
)
def test_a_server_that_lets_nobody_in_or_is_another_one_is_one_line_with_advice_and_is_not_asked_again(
    serve: Serve, tiny_base: Base, how: str, said: str
) -> None:
    registry = serve(1, how)
    with pytest.raises(ConfigError) as stop:
        champion(registry, "of a candidate", tiny_base, load_base.fn)
    assert str(stop.value).startswith(f"registry.tracking_uri={registry.tracking_uri}: {said}")


def test_a_server_that_the_environment_names_is_said_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with (
        pytest.raises(TrackingError, match=f"^MLFLOW_TRACKING_URI={uri}: MLflow does not answer"),
        tracking.connected(Registry(name="tiny", tracking_uri=uri)) as client,
    ):
        client.search_registered_models()


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("http://127.0.0.1:9", "(Connection refused)"),
        ("http://mlflow.invalid:5000", "("),  # what the resolver says
        ("503", "(too many 503 error responses)"),
    ],
)
def test_a_server_that_is_not_reached_is_one_whole_sentence_with_advice(serve: Serve, where: str, why: str) -> None:
    registry = serve(10_000, where) if where == "503" else Registry(name="tiny", tracking_uri=where)
    with pytest.raises(TrackingError) as stop, tracking.connected(registry) as client:
        client.search_registered_models()
    begins, advice = (
        f"registry.tracking_uri={registry.tracking_uri}: MLflow does not answer {why}",
        "start its server or",
    )
    assert str(stop.value).startswith(begins) and advice in str(stop.value)
    assert str(stop.value).endswith(
        "without registry.tracking_uri and MLFLOW_TRACKING_URI, runs go to the database in the home"
    )
    assert "HTTPConnectionPool" not in str(stop.value)


def test_a_run_and_a_comparison_ask_mlflow_before_the_first_stage_where_a_later_one_needs_it(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(finetune, "pipeline", lambda _, calls: begun.append(calls.until))
    monkeypatch.setattr("tunewright.flows.compare._train", lambda *_: begun.append("variant"))
    monkeypatch.setattr(tracking, "FIRST_SECONDS", 0.02)
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    settings = Settings(data=Data(sources=(Source(path=str(file)),)), model=Model(base="org/name"))

    def of(registry: Registry) -> Settings:
        return settings.model_copy(update={"registry": registry})

    away = of(serve(10_000, "503"))
    for run in (
        lambda: finetune.run(away, "evaluate", ()),
        lambda: finetune.run(away, "register", ()),
        lambda: compare.fn(away, {"one": away}),
    ):
        with pytest.raises(TrackingError, match="MLflow does not answer"):
            run()
    assert begun == []
    finetune.run(away, "train", ())
    monkeypatch.setattr(tracking, "FIRST_SECONDS", 60.0)
    finetune.run(of(serve(1, "503")), "register", ())  # one that is on its way back
    assert begun == ["train", "register"]


@pytest.mark.parametrize(("is_of_up", "least", "most"), [(False, 10, 25), (True, 60, 120)])
def test_before_the_first_stage_a_dead_mlflow_is_waited_for_shortly_and_that_of_up_until_it_is_started_again(
    is_of_up: bool, least: float, most: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    slept, clock = [0.0], time.monotonic
    monkeypatch.setattr(time, "sleep", slept.append)  # our own waits and those of MLflow's client
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(slept))
    registry = Registry(name="tiny", tracking_uri="http://127.0.0.1:9")
    up = (
        Addresses(prefect="http://127.0.0.1:1", mlflow=str(registry.tracking_uri), pid=1, pool="p")
        if is_of_up
        else None
    )
    monkeypatch.setattr("tunewright.machine.addresses.running", lambda: up)
    monkeypatch.setattr("tunewright.machine.addresses.password", lambda: "p")
    with pytest.raises(TrackingError, match=r"MLflow does not answer \(Connection refused\)"):
        require_answer(registry)
    assert least < sum(slept) < most
    assert any("retrying" in message for message in caplog.messages) == is_of_up


@pytest.mark.parametrize("uri", ["nonsense", "./mlruns", "file:///srv/mlruns", "ftp://host", "http://", "sqlite:x.db"])
def test_an_address_that_mlflow_is_not_asked_at_is_refused_by_the_settings(uri: str) -> None:
    with pytest.raises(ValidationError, match=r"is not an address of MLflow that is read.*accepted: a server, such as"):
        Registry(tracking_uri=uri)


@pytest.mark.parametrize(
    "uri", ["http://h:5000", "https://h/mlflow", "sqlite:///m.db", "postgresql+psycopg2://u@h/m", "databricks"]
)
def test_an_address_that_mlflow_is_asked_at_is_accepted(uri: str) -> None:
    assert Registry(tracking_uri=uri).tracking_uri == uri
