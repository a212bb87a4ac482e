"""The servers that runs would use."""

import os
from collections.abc import Iterator

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

from tunewright.cli.doctor.finding import Finding
from tunewright.cli.up.ports import holder
from tunewright.config import outside
from tunewright.machine import addresses

SECONDS = 5.0
START = "start it, or unset the variable; tunewright up starts both servers"
PORTS = {"Prefect": 4200, "MLflow": 5000}


def findings() -> Iterator[Finding]:
    """Prefect's and MLflow's, of `tunewright up`, of the environment, or none: then a run starts one for itself."""
    up, api = addresses.running(), os.environ.get("PREFECT_API_URL")
    if up and (not api or up.is_prefect(api)):
        yield _prefect(up.api, up.prefect, addresses.password())
    elif api:
        yield _prefect(api, outside.without_credentials(api), PREFECT_API_AUTH_STRING.value())
    else:
        yield Finding(
            "ok",
            "Prefect",
            "no server: each run starts a temporary one, which takes 10 s; tunewright up starts one that stays",
        )
    if up:
        yield _mlflow(up.mlflow)
        return
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        yield Finding(
            "warning",
            "MLflow",
            f"MLFLOW_TRACKING_URI={outside.without_credentials(uri)} is ignored; runs go to the home's database",
            "set registry.tracking_uri in the deployment file",
        )
    for name, port in PORTS.items():
        if who := holder(port):
            yield Finding(
                "warning",
                f"port {port}",
                f"in use by {who}",
                f"choose another port for {name} with the options of tunewright up",
            )


def _prefect(api: str, shown: str, password: str | None) -> Finding:
    """Whether Prefect's API answers, to whoever has this password."""
    advice = addresses.advice_on_api(api)
    try:
        with SyncPrefectClient(api, auth_string=password, api_key=PREFECT_API_KEY.value()) as server:
            server.api_version()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        code = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
        if advice and (code or isinstance(error, ValueError)):  # or a page
            return Finding("failure", "Prefect", f"{shown} answers, but not as Prefect's API", advice)
        if code == httpx.codes.UNAUTHORIZED:
            return Finding("failure", "Prefect", f"{shown} refuses the password", addresses.HOW_TO_LOG_IN)
        said = f"{shown} answers with {code}" if code else f"{shown} does not answer: {error}"
        return Finding("failure", "Prefect", said, f"{advice}, or {START}" if advice else START)
    return Finding("ok", "Prefect", f"{shown} answers")


def _mlflow(address: str) -> Finding:
    try:
        answer = httpx.get(f"{address}/health", timeout=SECONDS)
    except httpx.HTTPError as error:
        return Finding("failure", "MLflow", f"{address} does not answer: {error}", START)
    if answer.is_success:
        return Finding("ok", "MLflow", f"{address} answers")
    return Finding("failure", "MLflow", f"{address} answers with {answer.status_code}", START)
