"""MLflow's server rewrites paths below the home to addresses that a remote client can read."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tunewright.registry.mlflow_server import ServedPaths

FOLDER = Path('/home/é "x"/mlartifacts')


def asked(answer: Any) -> Any:
    return TestClient(ServedPaths(Starlette(routes=[Route("/", lambda _: answer)]), FOLDER)).get("/")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (f"{FOLDER}", "mlflow-artifacts:/"),
        (f"{FOLDER}/1/abc/artifacts", "mlflow-artifacts:/1/abc/artifacts"),
        (f"file://{FOLDER}/1/models/m-2/artifacts", "mlflow-artifacts:/1/models/m-2/artifacts"),
        (f"{FOLDER}-of-another/1", f"{FOLDER}-of-another/1"),
        (f"{FOLDER}2/1", f"{FOLDER}2/1"),
        ("s3://bucket/1", "s3://bucket/1"),
        ("mlflow-artifacts:/1", "mlflow-artifacts:/1"),
    ],
)
def test_a_place_in_the_home_is_one_that_the_server_gives_out(place: str, said: str) -> None:
    answer = {"run": {"info": {"artifact_uri": place}, "note": place}}
    for text in (json.dumps(answer), json.dumps(answer, indent=2), json.dumps(answer, ensure_ascii=False)):
        found = asked(PlainTextResponse(text, media_type="application/json"))
        assert found.json() == {"run": {"info": {"artifact_uri": said}, "note": place}}
        assert int(found.headers["content-length"]) == len(found.content)


def test_an_answer_in_parts_is_one_answer() -> None:
    text = json.dumps([{"artifact_location": f"{FOLDER}/1"}] * 3)
    parts = iter([text[:25], text[25:40], text[40:]])
    found = asked(StreamingResponse(parts, media_type="application/json"))
    assert found.json() == [{"artifact_location": "mlflow-artifacts:/1"}] * 3


def test_what_is_no_json_or_failed_stays_as_it_is() -> None:
    text = f'"artifact_uri": "{FOLDER}/1"'
    assert asked(PlainTextResponse(text)).text == text
    refused = asked(JSONResponse({"error_code": "INVALID"}, status_code=400))
    assert (refused.status_code, refused.json()) == (400, {"error_code": "INVALID"})
