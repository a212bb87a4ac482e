"""`tunewright export`: a registered version as a folder for transformers, PEFT, vLLM, llama.cpp and Ollama."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from tunewright.accepted import did_you_mean, shown
from tunewright.cli import interrupts
from tunewright.cli.command_line import Json, console_of, one_line_errors
from tunewright.cli.registered_model import Alias, Name, Uri, Version, named_as_typed, registry_of
from tunewright.cli.visible import as_line
from tunewright.errors import ConfigError
from tunewright.reports.pages import counted

if TYPE_CHECKING:  # what it imports takes seconds
    from tunewright.export import Exported
    from tunewright.export.hub import Pushed

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")  # in a GGUF file
FORMS = {
    **dict.fromkeys(("merged", "adapter", "vllm"), DTYPES),
    **dict.fromkeys(("gguf", "ollama"), (*DTYPES, *QUANTIZED)),
}
PROGRAMS = {"gguf": "llama.cpp", "ollama": "Ollama"}  # that next is said to be run by


def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; not there yet, or empty")],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORM",
            help="merged: a whole model; adapter: the PEFT adapter, for its base; vllm: either of them and vLLM's "
            "configuration; gguf: a file for llama.cpp; ollama: that file and a Modelfile",
        ),
    ],
    version: Version = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help=f"Precision: {', '.join(DTYPES)}; of gguf and ollama also {', '.join(QUANTIZED)}; default: the one it "
            "was measured in",
            show_default=False,
        ),
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence for the model card, such as apache-2.0")
    ] = None,
    bom: Annotated[
        bool, typer.Option("--bom", help="Write a bill of materials as well: bom.cdx.json, a CycloneDX ML-BOM")
    ] = False,
    sign_with: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY", help="Sign the folder into model.sig with this private key: PEM, P-256, P-384 or P-521"
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="hub:OWNER/NAME",
            help="Repository of the Hugging Face Hub that gets the folder, by your token: HF_TOKEN or hf auth login",
            show_default=False,
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let anyone read that repository; default: private")] = False,
    alias: Alias = "champion",
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Write a registered version as a folder for transformers, PEFT, vLLM, llama.cpp or Ollama, with a model card.

    Before the folder appears, it is loaded again without Tunewright and has to give the answers of the registered
    version; otherwise nothing is written. Only --push sends anything anywhere.

    Exit codes: 0 exported, 2 wrong options, or nothing there to export, 1 a check that failed, or anything else.
    """
    console = console_of(as_json)
    with one_line_errors(as_json), named_as_typed():
        _require("--to", to, tuple(FORMS))
        if dtype is not None:
            _require(f"--to {to} --dtype", dtype, FORMS[to])
        if public and push is None:
            raise ConfigError("--public: accepted only with --push, as it says who may read what is pushed")
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright import export as exporting
            from tunewright.export import hub

        def tell(step: str) -> None:
            console.print(Text(step, "dim"), soft_wrap=True)

        target = None if push is None else hub.target(push, is_public=public)
        if target:
            hub.check_token(target, tell)
        form: Any = to
        request = exporting.ExportRequest(registry, version, folder, form, dtype, license_id, bom, sign_with)
        found = exporting.export(request, tell)
        _show(console, found)
        pushed = target and hub.push(found.folder, target, _message(found), tell)
        if pushed:
            _show_pushed(console, pushed)
    if as_json:
        print(as_line(_as_json(found) | {"pushed": pushed and pushed._asdict()}))


def _require(option: str, given: str, accepted: tuple[str, ...]) -> None:
    if given not in accepted:
        raise ConfigError(f"{option} {shown(given)}: {did_you_mean(given, accepted)}")


def _next(found: "Exported") -> list[str]:
    """Commands to run next; their programs are none of the project's requirements, so they were not run."""
    folder, name = shlex.quote(str(found.folder)), shlex.quote(found.name)
    if found.command:
        return [f"cd {folder} && {found.command}"]
    if found.form == "merged":
        return [f"vllm serve {folder} --served-model-name {name}"]
    if found.form == "adapter":
        base = shlex.quote(str(found.folder / found.base) if found.base == "base" else str(found.base))
        return [f"vllm serve {base} --enable-lora --lora-modules {name}={folder}"]
    if found.form == "ollama":
        return [f"ollama create {name} -f {shlex.quote(str(found.folder / 'Modelfile'))}"]
    (file,) = (path for path in found.files if path.endswith(".gguf"))
    return [f"llama-server --model {shlex.quote(str(found.folder / file))} --alias {name} --jinja"]


def _show(console: Console, found: "Exported") -> None:
    size = sum(found.files.values())
    said = f": version {found.version} of {found.name}, {found.form} in {found.dtype}, {decimal(size)}, "
    console.print(Text.assemble(("Exported", "bold green"), f"{said}{found.seconds:,.0f} s"))
    for path, each in found.files.items():
        console.print(Text(f"  {decimal(each):>10}  {path}"))
    parity = found.parity
    ties = f", {counted(parity.near_ties, 'other')} from a near tie on" if parity.near_ties else ""
    ties += f", {parity.others} other tokens" if parity.others else ""
    said = (
        f"parity: {parity.same} of {parity.rows} test rows get the same tokens{ties}; the mean log-probability of "
        f"the answer differs by at most {parity.largest_difference:.1g} nats/token (accepted: {parity.bound:g})"
    )
    console.print(Text(said), soft_wrap=True)
    console.print(Text("next", "bold"))
    console.print(Text(f"  read {found.folder / 'README.md'}: how to load it, its scores and limits"), soft_wrap=True)
    for command in _next(found):
        program = PROGRAMS.get(found.form, "vLLM")
        console.print(Text(f"  {command}    # {program} itself was not run here"), soft_wrap=True)


def _message(found: "Exported") -> str:
    """The message of the commit."""
    return f"{found.name}, version {found.version}: {found.form} in {found.dtype}, exported by Tunewright"


def _show_pushed(console: Console, pushed: "Pushed") -> None:
    for path in pushed.removed:
        console.print(Text(f"  removed of an earlier model: {path}"), soft_wrap=True)
    readers = "public" if pushed.is_public else "private"
    console.print(Text.assemble(("Pushed", "bold green"), f": {pushed.url}, {readers}"), soft_wrap=True)


def _as_json(found: "Exported") -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "form": found.form,
        "folder": str(found.folder),
        "dtype": found.dtype,
        "base": found.base,
        "files": [{"path": path, "bytes": size} for path, size in found.files.items()],
        "bytes": sum(found.files.values()),
        "parity": found.parity.model_dump(),
        "seconds": found.seconds,
        "next": _next(found),
    }
