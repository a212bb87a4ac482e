"""Checks for telemetry, for code that runs unasked, and for servers open to other machines."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

from tunewright.cli.doctor.finding import Finding
from tunewright.config import NO_TELEMETRY

ON = {"1", "true", "yes", "on"}
UNSAFE = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "models that MLflow loads may run their authors' code",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "anyone who can reach MLflow's server can start jobs on it",
    "HF_HUB_TRUST_REMOTE_CODE": "a model from the hub may run its own code",
    "TRUST_REMOTE_CODE": "a model may run its own code",
}
OPEN = ("0.0.0.0", "::")  # noqa: S104 what is looked for


def findings() -> Iterator[Finding]:
    """The environment's part in it; what is not set there is set by this project as it is safe."""
    loud = {name: os.environ[name] for name, quiet in NO_TELEMETRY.items() if os.environ[name] != quiet}
    if loud:
        shown = ", ".join(f"{name}={value}" for name, value in loud.items())
        yield Finding("warning", "telemetry", f"turned on by the environment: {shown}", f"unset {' '.join(loud)}")
    else:
        yield Finding("ok", "telemetry", "off in Prefect, MLflow, Great Expectations, Hugging Face and Ray")
    unsafe = {name: why for name, why in UNSAFE.items() if os.environ.get(name, "").lower() in ON}
    for name, why in unsafe.items():
        yield Finding("warning", "safety", f"{name}={os.environ[name]}: {why}", f"unset {name}")
    if os.environ.get("PREFECT_SERVER_API_HOST") in OPEN and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        yield Finding(
            "warning",
            "safety",
            "PREFECT_SERVER_API_HOST opens Prefect's server to the network without a password",
            "set PREFECT_SERVER_API_AUTH_STRING, or unset PREFECT_SERVER_API_HOST",
        )
        unsafe["PREFECT_SERVER_API_HOST"] = ""
    if find_spec("kernels"):
        yield Finding(
            "warning",
            "safety",
            "the package kernels is installed: transformers downloads code with it",
            "pip uninstall kernels",
        )
    elif not unsafe:
        yield Finding("ok", "safety", "no pickles, no remote code, servers on loopback")
