"""A registered version as a folder for transformers, PEFT, vLLM, llama.cpp or Ollama, with its model card and proof."""

import contextlib
import importlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from tunewright.config import Registry
from tunewright.errors import ConfigError, TunewrightError, extra
from tunewright.evidence import bundle
from tunewright.export import card, evidence, gguf, ollama, parity, vllm, weights
from tunewright.export.parity import NOTHING, Parity
from tunewright.registry import files, rehearsal
from tunewright.registry.release import chosen, opened
from tunewright.serving import ServedChat, context_length
from tunewright.store import disk
from tunewright.store.locks import try_lock

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from model_signing.signing import Config as Signer

Form = Literal["merged", "adapter", "gguf", "ollama", "vllm"]
MERGED = ".merged"  # folder in the unfinished one: what a GGUF file is made of
SUFFIX = ".unfinished"  # of the folder beside the exported one, until that is whole and checked


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


def export(
    registry: Registry,
    number: str | None,
    folder: Path,
    form: Form,
    dtype: str | None,
    license_id: str | None,
    tell: Callable[[str], None],
    *,
    with_bom: bool = False,
    sign_with: Path | None = None,
) -> Exported:
    """Writes a version to `folder`: whole, checked and described, or not at all. `tell` gets each step in words.

    With `with_bom` it has a bill of materials, with `sign_with` a signature by this private key.

    Raises ConfigError for what cannot be exported so, TunewrightError where a check fails.
    """
    started = time.monotonic()
    target = disk.free_folder(folder)
    programs = gguf.programs(dtype) if form in gguf.FORMS else None
    signer = _extras(with_bom, sign_with)
    with opened(registry) as client, tempfile.TemporaryDirectory() as place:
        version = chosen(client, registry, number)
        uri = files.uri_of(version)
        kept = rehearsal.kept(client, version)
        found = evidence.of_version(client, version, Path(place))
        kept_evidence = bundle.of_version(client, version, Path(place)) if with_bom else None
        tell(f"fetching {uri} and verifying its files")
        with files.copied(client, version) as copy:
            tuned = copy / "artifacts" / rehearsal.IN_MODEL["model"]
            if form == "adapter":
                weights.require_adapter(uri, tuned)
            kind = form if form != "vllm" else "adapter" if vllm.loads_adapter(tuned) else "merged"
            tell("loading it as it was measured")
            loaded = rehearsal.load_here(uri, copy, f", so {NOTHING}")
            precision = dtype or str(loaded.model.dtype).removeprefix("torch.")
            measured = loaded.precision or precision
            hub = _on_hub(copy, loaded.base)
            beside = kind == "adapter" and hub is None
            most = kept.max_new_tokens or rehearsal.measured_max_new_tokens(copy)
            with _unfinished(target) as made:
                weights.require_room(made, loaded, tuned, precision, kind, beside=beside)
                tell(f"asking it {len(kept.rows)} test rows")
                expected = _expected(version, loaded, kept, tuned, most, tell)
                tell(f"writing {form} in {precision}")
                context = context_length(loaded.model.config.get_text_config().to_dict())
                architectures = loaded.model.config.architectures or []
                facts = None
                if kind == "adapter":
                    weights.write_adapter(made, loaded, tuned, hub)
                else:
                    whole = made if programs is None else made / MERGED
                    weights.write_merged(whole, loaded, tuned, precision if programs is None else "float32")
                loaded.model = None  # the memory is that of the process that checks
                weights.write_settings(made if programs is None else made / MERGED, loaded, most)
                if programs is not None:
                    facts = _write_gguf(made, programs, loaded, expected, version.name, precision, form, most, context)
                tell("loading it again without Tunewright and comparing the answers")
                if facts is not None:
                    file = made / facts.file
                    same = parity.check(made / MERGED, None, precision, expected, loaded, gguf=file, tell=tell)
                    shutil.rmtree(made / MERGED)
                else:
                    base = None if kind == "merged" else made / weights.BASE if beside else loaded.base
                    same = parity.check(made, base, precision, expected, loaded, tell=tell)
                command = vllm.write(made, version.name, precision) if form == "vllm" else ""
                described = card.ExportedForm(
                    form=kind,
                    dtype=precision,
                    measured=measured,
                    base=_in_words(copy),
                    hub=hub,
                    license=license_id,
                    most=most,
                    context=context,
                    rows=same.rows,
                    same=same.same,
                    gguf=facts and facts._replace(parity=same),
                    vllm=command,
                )
                (made / card.FILE).write_text(card.written(found, described), encoding="utf-8")
                if kept_evidence is not None:
                    _write_bom(made, version, found, described, kept_evidence, Path(place), architectures)
                if signer is not None:
                    _sign(made, target.name, signer)
                written = {
                    path.relative_to(made).as_posix(): path.stat().st_size
                    for path in sorted(made.rglob("*"))
                    if path.is_file()
                }
    return Exported(
        name=registry.name,
        version=str(version.version),
        form=form,
        folder=target,
        dtype=precision,
        base=None if kind != "adapter" else hub[0] if hub else weights.BASE,
        command=command,
        files=written,
        parity=same,
        seconds=round(time.monotonic() - started, 1),
    )


def _extras(with_bom: bool, sign_with: Path | None) -> "Signer | None":
    """The signer, if a key is given. Raises ConfigError where a package is missing or the key is refused."""
    if with_bom:
        with extra("bom", "--bom"):
            importlib.import_module("cyclonedx")
    if sign_with is None:
        return None
    with extra("sign", "--sign-with"):
        from tunewright.export import signing
    return signing.signer(sign_with)


def _write_bom(
    made: Path,
    version: "ModelVersion",
    found: evidence.CardEvidence,
    described: card.ExportedForm,
    origin: bundle.EvidenceBundle,
    local: Path,
    architectures: list[str],
) -> None:
    from tunewright.export import bom

    digests = {name: version.tags.get(name, "") for name in (files.FILES, files.EVIDENCE)}
    registered = datetime.fromtimestamp(version.creation_timestamp // 1000, UTC)
    bom.write(made, found, described, bom.Provenance(origin, local, digests, registered, architectures))


def _sign(made: Path, name: str, signer: "Signer") -> None:
    from tunewright.export import signing

    signing.sign(made, name, signer)


def _expected(
    version: "ModelVersion",
    loaded: ServedChat,
    kept: rehearsal.Rehearsal,
    tuned: Path,
    most: int,
    tell: Callable[[str], None],
) -> list[parity.ExpectedAnswer]:
    """Answers of the version, which is checked to be the measured one and to differ from the base."""
    prompts = loaded.prompts(rehearsal.questions(version, loaded, kept, NOTHING), [row.tools for row in kept.rows])
    parity.require_effect(files.uri_of(version), loaded, tuned, prompts)
    expected = parity.expected(loaded, kept.rows, prompts, most, tell)
    stops = loaded.contract["stop_token_ids"]
    said = [
        loaded.tokenizer.decode([token for token in each.answer if token not in stops], skip_special_tokens=True)
        for each in expected
    ]
    rehearsal.require_measured(version, loaded, kept, said, NOTHING)
    return expected


def _write_gguf(
    made: Path,
    programs: gguf.Programs,
    loaded: ServedChat,
    expected: list[parity.ExpectedAnswer],
    name: str,
    dtype: str,
    form: Form,
    most: int,
    context: int | None,
) -> card.Gguf:
    """Writes the GGUF file of a merged model, checked against the version's tokenizer, and the Modelfile of Ollama."""
    prompts = [each.prompt for each in expected]
    gguf.prepare(made / MERGED, loaded, prompts)
    file = made / gguf.file_name(name, dtype)
    gguf.write(programs, made / MERGED, file, name, dtype)
    header = gguf.read_header(file)
    gguf.require_same_tokenizer(header, loaded, prompts)
    facts = card.Gguf(file=file.name, splits=header.fields.get("tokenizer.ggml.pre"))
    if form == "ollama":
        prompt = ollama.prompt_of(loaded)
        text = ollama.modelfile(file.name, loaded, prompt, most, context)
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


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A folder beside `target`, which becomes it when the block ends, and goes where it raises.

    One that a killed process left is removed: its lock is free.
    """
    for left in target.parent.glob(f".{target.name}.*{SUFFIX}"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)
    try:
        made = Path(tempfile.mkdtemp(SUFFIX, f".{target.name}.", target.parent))
    except OSError as error:
        raise ConfigError(f"{target.parent}: cannot be written: {error.strerror}") from error
    try:
        with _locked(made):
            yield made
            _as_any_new(made)
            disk.sync(*made.rglob("*"), made)
            try:
                made.rename(target)
            except OSError as error:
                raise TunewrightError(f"{target} was made by another process meanwhile; {NOTHING}") from error
            disk.sync(target.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _as_any_new(folder: Path) -> None:
    """Gives files and folders the modes of any new ones: some libraries write for their user alone."""
    os.umask(mask := os.umask(0o077))
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder. Raises BlockingIOError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise BlockingIOError(f"{folder}: another process holds the lock")
        yield
    finally:
        os.close(descriptor)
