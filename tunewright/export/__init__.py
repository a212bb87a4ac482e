"""A registered version as a folder for transformers, PEFT, vLLM, llama.cpp or Ollama, with its model card and proof."""

import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel

from tunewright.config import Registry
from tunewright.errors import extra
from tunewright.evidence import bundle
from tunewright.export import card, evidence, gguf, ollama, parity, vllm, weights
from tunewright.export.parity import NOTHING, Parity
from tunewright.export.unfinished import unfinished
from tunewright.registry import files, rehearsal
from tunewright.registry.release import chosen, opened
from tunewright.serving import ServedChat, context_length
from tunewright.store import disk

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from model_signing.signing import Config as Signer

Form = Literal["merged", "adapter", "gguf", "ollama", "vllm"]
MERGED = ".merged"  # folder in the unfinished one: what a GGUF file is made of


class ExportRequest(NamedTuple):
    """A version to export, and how."""

    registry: Registry
    version: str | None  # None: the one that has the alias
    folder: Path
    form: Form
    dtype: str | None = None  # None: the one that the version was measured in
    license_id: str | None = None
    with_bom: bool = False  # write a bill of materials
    sign_with: Path | None = None  # private key


class Exported(BaseModel, frozen=True):
    """Result of an export."""

    name: str
    version: str
    form: Form
    folder: Path
    dtype: str
    base: str | None  # id on the hub, or the folder of the base in the exported one; None where it needs none
    command: str  # that vLLM is started with in the folder; "" of another form
    files: dict[str, int]  # path in the folder -> bytes
    parity: Parity
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A version that is loaded as it was measured, and what it becomes."""

    version: "ModelVersion"
    chat: ServedChat
    tuned: Path
    kept: rehearsal.Rehearsal
    form: Form
    kind: str  # the form of its weights: adapter or merged where `form` is vllm
    dtype: str
    measured: str  # the precision that it was measured in
    hub: tuple[str, str | None] | None  # id and commit of its base there
    base: str  # in words
    most: int  # tokens of an answer
    context: int | None  # tokens that the base reads at once
    architectures: list[str]  # as config.json of the base names them

    @property
    def has_base_beside(self) -> bool:
        """Whether the base is written beside an adapter, as no hub has it."""
        return self.kind == "adapter" and self.hub is None


def export(request: ExportRequest, tell: Callable[[str], None]) -> Exported:
    """Writes a version to a folder: whole, checked and described, or not at all. `tell` gets each step in words.

    Raises ConfigError for what cannot be exported so, TunewrightError where a check fails.
    """
    started = time.monotonic()
    target = disk.free_folder(request.folder)
    programs = gguf.programs(request.dtype) if request.form in gguf.FORMS else None
    signer = _extras(request)
    with opened(request.registry) as client, tempfile.TemporaryDirectory() as place:
        version = chosen(client, request.registry, request.version)
        kept = rehearsal.kept(client, version)
        found = evidence.of_version(client, version, Path(place))
        origin = bundle.of_version(client, version, Path(place)) if request.with_bom else None
        tell(f"fetching {files.uri_of(version)} and verifying its files")
        with files.copied(client, version) as copy:
            source = _loaded(request, version, kept, copy, tell)
            with unfinished(target) as made:
                same, facts = _write(made, source, programs, tell)
                command = vllm.write(made, version.name, source.dtype) if request.form == "vllm" else ""
                described = _described(source, request.license_id, same, facts, command)
                (made / card.FILE).write_text(card.written(found, described), encoding="utf-8")
                if origin is not None:
                    _write_bom(made, source, found, described, origin, Path(place))
                if signer is not None:
                    _sign(made, target.name, signer)
                written = {
                    path.relative_to(made).as_posix(): path.stat().st_size
                    for path in sorted(made.rglob("*"))
                    if path.is_file()
                }
    return Exported(
        name=request.registry.name,
        version=str(version.version),
        form=request.form,
        folder=target,
        dtype=source.dtype,
        base=None if source.kind != "adapter" else source.hub[0] if source.hub else weights.BASE,
        command=command,
        files=written,
        parity=same,
        seconds=round(time.monotonic() - started, 1),
    )


def _loaded(
    request: ExportRequest, version: "ModelVersion", kept: rehearsal.Rehearsal, copy: Path, tell: Callable[[str], None]
) -> _Source:
    """The version, loaded from a verified copy of its files. Raises ConfigError where it has not the form."""
    uri, tuned = files.uri_of(version), copy / "artifacts" / rehearsal.IN_MODEL["model"]
    weights.require_weights(version.name, str(version.version), tuned)
    if request.form == "adapter":
        weights.require_adapter(uri, tuned)
    kind = request.form if request.form != "vllm" else "adapter" if vllm.loads_adapter(tuned) else "merged"
    tell("loading it as it was measured")
    chat = rehearsal.load_here(uri, copy, f", so {NOTHING}")
    config, dtype = chat.model.config, request.dtype or str(chat.model.dtype).removeprefix("torch.")
    return _Source(
        version=version,
        chat=chat,
        tuned=tuned,
        kept=kept,
        form=request.form,
        kind=kind,
        dtype=dtype,
        measured=chat.precision or dtype,
        hub=_on_hub(copy, chat.base),
        base=_in_words(copy),
        most=kept.max_new_tokens or rehearsal.measured_max_new_tokens(copy),
        context=context_length(config.get_text_config().to_dict()),
        architectures=config.architectures or [],
    )


def _write(
    made: Path, source: _Source, programs: gguf.Programs | None, tell: Callable[[str], None]
) -> tuple[Parity, card.Gguf | None]:
    """Writes the weights with their settings, and loads them again; the model in memory cannot answer afterwards.

    Raises TunewrightError where the answers are not those of the version.
    """
    chat, is_gguf = source.chat, programs is not None
    whole = made / MERGED if is_gguf else made
    weights.require_room(made, chat, source.tuned, source.dtype, source.kind, beside=source.has_base_beside)
    tell(f"asking it {len(source.kept.rows)} test rows")
    expected = _expected(source, tell)
    tell(f"writing {source.form} in {source.dtype}")
    if source.kind == "adapter":
        weights.write_adapter(made, chat, source.tuned, source.hub)
    else:
        weights.write_merged(whole, chat, source.tuned, "float32" if is_gguf else source.dtype)
    chat.model = None  # the memory is that of the process that checks
    weights.write_settings(whole, chat, source.most)
    facts = _write_gguf(made, programs, source, expected) if programs is not None else None
    tell("loading it again without Tunewright and comparing the answers")
    if facts is not None:
        same = parity.check(whole, None, source.dtype, expected, chat, gguf=made / facts.file, tell=tell)
        shutil.rmtree(whole)
        return same, facts._replace(parity=same)
    base = None if source.kind == "merged" else made / weights.BASE if source.has_base_beside else chat.base
    return parity.check(made, base, source.dtype, expected, chat, tell=tell), None


def _described(
    source: _Source, license_id: str | None, same: Parity, facts: card.Gguf | None, command: str
) -> card.ExportedForm:
    return card.ExportedForm(
        form=source.kind,
        dtype=source.dtype,
        measured=source.measured,
        base=source.base,
        hub=source.hub,
        license=license_id,
        most=source.most,
        context=source.context,
        rows=same.rows,
        same=same.same,
        gguf=facts,
        vllm=command,
    )


def _extras(request: ExportRequest) -> "Signer | None":
    """The signer, if a key is given. Raises ConfigError where a package is missing or the key is refused."""
    if request.with_bom:
        with extra("bom", "--bom"):
            importlib.import_module("cyclonedx")
    if request.sign_with is None:
        return None
    with extra("sign", "--sign-with"):
        from tunewright.export import signing
    return signing.signer(request.sign_with)


def _write_bom(
    made: Path,
    source: _Source,
    found: evidence.CardEvidence,
    described: card.ExportedForm,
    origin: bundle.EvidenceBundle,
    local: Path,
) -> None:
    from tunewright.export import bom

    tags = source.version.tags
    digests = {name: tags.get(name, "") for name in (files.FILES, files.EVIDENCE)}
    registered = datetime.fromtimestamp(source.version.creation_timestamp // 1000, UTC)
    bom.write(made, found, described, bom.Provenance(origin, local, digests, registered, source.architectures))


def _sign(made: Path, name: str, signer: "Signer") -> None:
    from tunewright.export import signing

    signing.sign(made, name, signer)


def _expected(source: _Source, tell: Callable[[str], None]) -> list[parity.ExpectedAnswer]:
    """Answers of the version, which is checked to be the measured one and to differ from the base."""
    version, chat, kept = source.version, source.chat, source.kept
    prompts = chat.prompts(rehearsal.questions(version, chat, kept, NOTHING), [row.tools for row in kept.rows])
    parity.require_effect(files.uri_of(version), chat, source.tuned, prompts)
    expected = parity.expected(chat, kept.rows, prompts, source.most, tell)
    stops = chat.contract["stop_token_ids"]
    said = [[token for token in each.answer if token not in stops] for each in expected]
    rehearsal.require_measured(version, chat, kept, prompts, said, NOTHING)
    return expected


def _write_gguf(
    made: Path, programs: gguf.Programs, source: _Source, expected: list[parity.ExpectedAnswer]
) -> card.Gguf:
    """Writes the GGUF file of a merged model, checked against the version's tokenizer, and the Modelfile of Ollama."""
    name, prompts = source.version.name, [each.prompt for each in expected]
    gguf.prepare(made / MERGED, source.chat, prompts)
    file = made / gguf.file_name(name, source.dtype)
    gguf.write(programs, made / MERGED, file, name, source.dtype)
    header = gguf.read_header(file)
    gguf.require_same_tokenizer(header, source.chat, prompts)
    facts = card.Gguf(file=file.name, splits=header.fields.get("tokenizer.ggml.pre"))
    if source.form == "ollama":
        prompt = ollama.prompt_of(source.chat)
        text = ollama.modelfile(file.name, source.chat, prompt, source.most, source.context)
        (made / ollama.FILE).write_text(text, encoding="utf-8")
        facts = facts._replace(has_template=prompt.template is not None)
    return facts


def _named(copy: Path) -> dict[str, Any]:
    return json.loads((copy / "artifacts" / rehearsal.IN_MODEL["base"]).read_text(encoding="utf-8"))


def _on_hub(copy: Path, base: Path) -> tuple[str, str | None] | None:
    """The id and the commit of a base that the hub has; None where it was a folder, or comes from a package."""
    named = _named(copy)
    if named["reference"].startswith("package:") or Path(named["reference"]).is_absolute():
        return None
    commit = base.name if base.parent.name == "snapshots" else named["revision"]
    return named["reference"], commit


def _in_words(copy: Path) -> str:
    """Name of the base for a reader elsewhere: its id, or the name of its folder or file."""
    reference = _named(copy)["reference"]
    if reference.startswith("package:"):
        package, _, file = reference.removeprefix("package:").partition("/")
        return f"`{file}` of the Python package `{package}`"
    return f"`{Path(reference).name if Path(reference).is_absolute() else reference}`"
