"""The other engine: a version as an exported folder, vLLM's configuration for it, and vLLM, where it is installed.

vLLM is none of this project's requirements, and was not run by it.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from tunewright import config
from tunewright.cli.predict.model import fetch
from tunewright.cli.serve import key
from tunewright.config import Registry
from tunewright.errors import ConfigError
from tunewright.export import ExportRequest, export, vllm
from tunewright.store import disk

VARIABLE = "VLLM_API_KEY"
LOWEST_PORT = 1024  # that it takes


def serve(
    registry: Registry, number: str | None, host: str, port: int, api_key: str, tell: Callable[[str], None]
) -> None:
    """Export a version, write vLLM's configuration and become vLLM.

    Raises ConfigError where there is no such version, or vLLM is not installed, TunewrightError where a check fails.
    """
    if port < LOWEST_PORT:
        raise ConfigError(f"--port {port}: accepted with --engine vllm: {LOWEST_PORT} or more")
    version = fetch(registry, number)
    folder = config.home() / "exported" / f"{registry.name}-{version.number}-{version.digest[:12]}"
    if not folder.is_dir():
        export(ExportRequest(registry, version.number, folder, "vllm"), tell)
    settings = vllm.configuration(registry.name, folder, version.precision or "auto") | {"host": host, "port": port}
    file = folder.with_name(f"{folder.name}.yaml")
    disk.replace(file, yaml.safe_dump(settings, sort_keys=False))
    command = vllm.command(settings, str(file))
    tell(f"vLLM's configuration is {file}; its command:")
    tell(f"  {_with_key(api_key)}{shlex.join(command)}")
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if not (program := shutil.which("vllm", path=places)):
        raise ConfigError(
            "--engine vllm: vLLM is not installed here; pip install vllm, in an environment of its own on a machine "
            "with a GPU, and run the command above there, or leave --engine out"
        )
    sys.stdout.flush()
    os.execve(program, command, os.environ | ({VARIABLE: api_key} if api_key else {}))  # noqa: S606 there is no shell


def _with_key(api_key: str) -> str:
    """The variable of the key for a shell, which reads it where it is kept: a key is shown by no command line."""
    if not api_key:
        return ""
    kept = f"${key.VARIABLE}" if key.is_given() else f"$(cat {shlex.quote(str(key.file()))})"
    return f'{VARIABLE}="{kept}" '
