"""The other engine: a version as an exported folder, vLLM's configuration for it, and vLLM, where it is installed.

vLLM is none of this project's requirements, and was not run by it.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tunewright import config
from tunewright.cli.predict.model import FetchedVersion, fetch
from tunewright.cli.serve import key
from tunewright.config import Registry
from tunewright.errors import ConfigError
from tunewright.export import export
from tunewright.export.weights import ADAPTER, BASE
from tunewright.registry.rehearsal import IN_MODEL
from tunewright.store import disk

VARIABLE = "VLLM_API_KEY"
LOWEST_PORT = 1024  # that it takes
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that it takes as the largest of its adapters
MERGED_ONLY = ("use_dora", "modules_to_save", "trainable_token_indices")  # of adapters, which it does not load


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
        export(registry, version.number, folder, "adapter" if _is_adapter(version) else "merged", None, None, tell)
    settings = configuration(registry.name, folder, version.precision or "auto", host, port)
    file = folder.with_name(f"{folder.name}.yaml")
    disk.replace(file, yaml.safe_dump(settings, sort_keys=False))
    command = ["vllm", "serve", str(settings["model"]), "--config", str(file)]
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


def configuration(name: str, folder: Path, dtype: str, host: str, port: int) -> dict[str, Any]:
    """Return vLLM's options for an exported folder, by which it prompts, stops and answers as the version does."""
    common = {
        "host": host,
        "port": port,
        "dtype": dtype,
        "tokenizer": str(folder),
        "chat-template": str(folder / "chat_template.jinja"),
        "generation-config": str(folder),  # the stop tokens and the limit of the answer's
        "override-generation-config": '{"temperature": 0}',  # it samples by default
    }
    if not (folder / ADAPTER[0]).is_file():
        return {"model": str(folder), "served-model-name": name} | common
    adapter = json.loads((folder / ADAPTER[0]).read_bytes())
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    rank = max(adapter["r"], *(adapter.get("rank_pattern") or {}).values(), 0)
    model = {"model": str(folder / BASE) if base == BASE else base} | ({"revision": revision} if revision else {})
    return (
        model
        | {"served-model-name": f"{name}-base"}  # the base answers, too, and not under the name of the version
        | common
        | {
            "enable-lora": True,
            "lora-modules": [f"{name}={folder}"],
            "max-lora-rank": next((each for each in RANKS if each >= rank), rank),
        }
    )


def _is_adapter(version: FetchedVersion) -> bool:
    file = version.copy / "artifacts" / IN_MODEL["model"] / ADAPTER[0]
    return file.is_file() and not any(json.loads(file.read_bytes()).get(name) for name in MERGED_ONLY)


def _with_key(api_key: str) -> str:
    """The variable of the key for a shell, which reads it where it is kept: a key is shown by no command line."""
    if not api_key:
        return ""
    kept = f"${key.VARIABLE}" if key.is_given() else f"$(cat {shlex.quote(str(key.file()))})"
    return f'{VARIABLE}="{kept}" '
