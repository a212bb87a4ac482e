"""The other engines: a version as an exported folder, and vLLM or the server of transformers for it.

vLLM is none of this project's requirements, and was not run by it.
"""

import importlib
import os
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import yaml
from starlette.types import ASGIApp

from tunewright import config
from tunewright.cli.predict.model import FetchedVersion, fetch
from tunewright.cli.serve import key
from tunewright.cli.serve.app import guarded
from tunewright.cli.serve.metrics import RequestMetrics
from tunewright.cli.serve.queue import Tell
from tunewright.cli.serve.server import Listening, listen
from tunewright.compat import app_of_transformers
from tunewright.config import Registry
from tunewright.errors import ConfigError, extra
from tunewright.export import ExportRequest, Form, export, vllm
from tunewright.store import disk

VARIABLE = "VLLM_API_KEY"
LOWEST_PORT = 1024  # that vLLM takes


def serve_by_vllm(registry: Registry, number: str | None, at: Listening, tell: Tell) -> None:
    """Export a version, write vLLM's configuration and become vLLM.

    Raises ConfigError where there is no such version, or vLLM is not installed, TunewrightError where a check fails.
    """
    if at.port < LOWEST_PORT:
        raise ConfigError(f"--port {at.port}: accepted with --engine vllm: {LOWEST_PORT} or more")
    version = fetch(registry, number)
    folder = _folder(registry, version)
    _export(registry, version, folder, "vllm", tell)
    settings = vllm.configuration(registry.name, folder, version.precision or "auto")
    settings |= {"host": at.host, "port": at.port}
    file = folder.with_name(f"{folder.name}.yaml")
    disk.replace(file, yaml.safe_dump(settings, sort_keys=False))
    command = vllm.command(settings, str(file))
    tell(f"vLLM's configuration is {file}; its command:")
    tell(f"  {_with_key(at.api_key)}{shlex.join(command)}")
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if not (program := shutil.which("vllm", path=places)):
        raise ConfigError(
            "--engine vllm: vLLM is not installed here; pip install vllm, in an environment of its own on a machine "
            "with a GPU, and run the command above there, or leave --engine out"
        )
    sys.stdout.flush()
    os.execve(program, command, os.environ | ({VARIABLE: at.api_key} if at.api_key else {}))  # noqa: S606 there is no shell


def serve_by_transformers(registry: Registry, number: str | None, at: Listening, tell: Tell) -> None:
    """Export a version merged, and answer by the server of transformers, behind the key, until Ctrl-C.

    Raises ConfigError where there is no such version, the port is taken or a package is missing, TunewrightError where
    a check fails.
    """
    with extra("serving", "--engine transformers"):
        for needed in ("openai", "transformers.cli.serving.server"):
            importlib.import_module(needed)

    until_end = ExitStack()

    def opened() -> tuple[_Alone, ASGIApp, str]:
        version = fetch(registry, number)
        folder = Path(f"{_folder(registry, version)}.merged", registry.name)
        _export(registry, version, folder, "merged", tell)
        command = shlex.join(["transformers", "serve", folder.name, "--host", at.host, "--port", str(at.port)])
        tell("The command line of the same server, which asks for no key:")
        tell(f"  cd {shlex.quote(str(folder.parent))}; {command}")
        until_end.enter_context(config.working_in(folder.parent))  # requests name a model by its path from here
        metrics = RequestMetrics(lambda: [(registry.name, version.number, version.digest)])
        app = guarded(app_of_transformers(folder.name), at.host, at.api_key, metrics)
        return _Alone(), app, f"{registry.name}, version {version.number}, answers by transformers"

    with until_end:
        listen(at, opened, tell)


class _Alone:
    """An app without services beside it."""

    def start(self) -> None:
        """Nothing is to be started."""

    stop = close = start


def _folder(registry: Registry, version: FetchedVersion) -> Path:
    return config.home() / "exported" / f"{registry.name}-{version.number}-{version.digest[:12]}"


def _export(registry: Registry, version: FetchedVersion, folder: Path, form: Form, tell: Tell) -> None:
    if not folder.is_dir():
        export(ExportRequest(registry, version.number, folder, form), tell)


def _with_key(api_key: str) -> str:
    """The variable of the key for a shell, which reads it where it is kept: a key is shown by no command line."""
    if not api_key:
        return ""
    kept = f"${key.VARIABLE}" if key.is_given() else f"$(cat {shlex.quote(str(key.file()))})"
    return f'{VARIABLE}="{kept}" '
