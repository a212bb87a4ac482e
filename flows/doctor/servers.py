"""The servers that runs would use."""

import os
from collections.abc import Iterator

import httpx

from flows.doctor.finding import Finding
from flows.services.ports import holder
from tasks import addresses

SECONDS = 5.0
PORTS = {"Prefect": 4200, "MLflow": 5000}


def findings() -> Iterator[Finding]:
    """Prefect's and MLflow's, of `tunewright up`, of the environment, or none: then a run starts one for itself."""
    up = addresses.running()
    if up:
        yield from (
            _answer("Prefect", f"{up.api}/health", up.prefect),
            _answer("MLflow", f"{up.mlflow}/health", up.mlflow),
        )
        return
    if api := os.environ.get("PREFECT_API_URL"):
        yield _answer("Prefect", f"{api.rstrip('/')}/health", api)
    else:
        yield Finding(
            "ok", "Prefect", "no server: each run starts one for itself, which takes 10 s; tunewright up starts one"
        )
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        yield Finding(
            "warning",
            "MLflow",
            f"MLFLOW_TRACKING_URI={uri} is not read; runs go to the home's database",
            "set registry.tracking_uri in the deployment file",
        )
    for name, port in PORTS.items():
        if who := holder(port):
            yield Finding(
                "warning",
                f"port {port}",
                f"held by {who}",
                f"tunewright up takes another one for {name} by its options",
            )


def _answer(name: str, address: str, shown: str) -> Finding:
    try:
        answer = httpx.get(address, timeout=SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = f"{shown} does not answer: {error}"
    else:
        if answer.is_success:
            return Finding("ok", name, f"{shown} answers")
        said = f"{shown} answers with {answer.status_code}"
    return Finding("failure", name, said, "start it, or unset what names it; tunewright up starts both servers")
