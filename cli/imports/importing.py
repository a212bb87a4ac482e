"""Apply the rules of a tool to a configuration: our parameters, and the end of each of its keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from tunewright.accepted import accepted, shown
from tunewright.cli.deployment_file.strict_yaml import Document
from tunewright.cli.imports import OF_TRL, axolotl, llama_factory, openai, reading, trl
from tunewright.cli.imports.places import Places
from tunewright.cli.imports.rules import DataSetEntry, Original, Table, Tool, Treatment, carried, lost, not_needed
from tunewright.config import USED_BY, Method, Settings, Source
from tunewright.errors import ConfigError
from tunewright.flows.parameters import section_of, slug, written

TOOLS = {tool.name: tool for tool in (axolotl.TOOL, llama_factory.TOOL, trl.TOOL, openai.TOOL)}
SOURCE = "data.sources[]."
EPOCHS = ("training.epochs",)
OF_STEPS = ("learning_rate", "epochs", "max_steps")  # that a training on pairs has of its own


class KeyEnd(NamedTuple):
    """One key of the configuration: its place and value, and what became of it; None where it is not known."""

    key: str
    value: Any
    treatment: Treatment | None


@dataclass
class Imported:
    """The result: our parameters by their dotted keys, where each came from, and every key of the original."""

    tool: Tool
    name: str  # of the deployment
    file: str
    values: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    of_sources: list[str] = field(default_factory=list)  # where each source came from
    origins: dict[str, str] = field(default_factory=dict)  # our key -> what the file says beside it
    unread: list[str] = field(default_factory=list)  # data sets that are no source, and why
    ends: list[KeyEnd] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def parameters(self) -> dict[str, Any]:
        """The sections of the deployment, in the order of the settings."""
        found: dict[str, Any] = {"data": {"sources": self.sources}}
        for key, value in self.values.items():
            section, _, name = key.partition(".")
            found.setdefault(section, {})[name] = value
        return {
            section: {name: found[section][name] for name in _fields(section) if name in found[section]}
            for section in Settings.model_fields
            if section in found
        }


def import_file(
    file: Path, output: Path, asked: str | None = None, base: str | None = None, devices: int = 1
) -> Imported:
    """Import a configuration for a deployment file in the folder `output`. Raises ConfigError."""
    document = reading.parse(file)
    given = openai.only_job(reading.mapping(document), str(file))
    command = OF_TRL.get(asked or "", "")
    tool = reading.tool_of(document, given, TOOLS, "trl" if command else asked)
    keys = reading.flattened(given, tool.groups)
    places = Places(Path.cwd(), file.parent.absolute(), output.absolute())
    values = {key: value for key, (_, value) in keys.items() if value not in (None, "", [], {})}
    original = Original(values, places, tool.defaults, devices, frozenset(given).intersection(tool.groups), command)
    original = replace(original, defaults={**tool.defaults, **tool.own_defaults(original)})
    name = values.get("suffix") or values.get("user_provided_suffix") if tool is openai.TOOL else None
    found = Imported(tool, slug(str(name or "")) or slug(file.stem) or "imported", str(file))
    try:
        for key, what in tool.refused(original):
            raise ConfigError(
                f"{_place(document, keys, key)}: {key}: {what}; accepted: supervised fine-tuning of text, DPO, KTO or "
                "ORPO by lora, qlora, full or spectrum"
            )
        _apply(found, tool.table, original, {key: at for key, (at, _) in keys.items()})
        found.empty = [at for key, (at, _) in keys.items() if key not in values]
        for entry in tool.entries(original):
            _apply_entry(found, entry)
    except ValueError as error:
        key = str(error).partition(":")[0]
        raise ConfigError(f"{_place(document, keys, key)}: {error}") from None
    except (TypeError, AttributeError):
        raise ConfigError(f"{file}: a value is of another type than {tool.title} takes") from None
    _complete(found, original)
    if base is not None:
        found.values["model.base"], found.origins["model.base"] = places.base(base)[0], "--base"
    _require(found, document, keys)
    return found


def _place(document: Document, keys: Mapping[str, tuple[str, Any]], key: str) -> str:
    return document.place(keys[key][0] if key in keys else key)


def _apply(found: Imported, table: Table, original: Original, at: Mapping[str, str]) -> None:
    """The keys that are given, in the order of the table: of two that set the same of ours, the first one decides."""
    order = {key: i for i, key in enumerate(table)}
    for key in sorted(original.values, key=lambda key: order.get(key, len(order))):
        value, rule = original.values[key], table.get(key)
        if rule is None:
            found.ends.append(KeyEnd(at[key], value, None))
            continue
        treatment = _within_bounds(_decided(rule.decide, value, original))
        taken = {ours: found.origins[ours] for ours in treatment.values if ours in found.values}
        if treatment.kind == "set" and any(found.values[ours] != treatment.values[ours] for ours in taken):
            treatment = not_needed(f"{next(iter(taken.values()))} decides")
        else:
            _set(found, treatment, key if isinstance(value, dict | list) else f"{key}: {written(value)}")
        found.ends.append(KeyEnd(at[key], value, treatment))


def _decided(decide: Any, value: Any, original: Original) -> Treatment:
    try:
        return decide(value, original)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return lost(f"{shown(value)} is not understood: ours stays at its default")


def _set(found: Imported, treatment: Treatment, origin: str) -> None:
    for ours, value in treatment.values.items():
        if ours not in found.values:
            found.values[ours], found.origins[ours] = value, origin
        else:
            found.origins[ours] += f", {origin}"


def _within_bounds(treatment: Treatment) -> Treatment:
    """The treatment without values that our settings refuse; what they accept is said."""
    kept, said = {}, ""
    for key, value in treatment.values.items():
        bounded, refused = _bounded(key, value)
        said = said or refused
        if not refused:
            kept[key] = bounded
    return lost(said, kept) if said else Treatment(treatment.kind, treatment.why, kept)


def _bounded(key: str, value: Any) -> tuple[Any, str]:
    """A value as the setting has it, or why the setting refuses it."""
    if isinstance(value, list) and key == f"{SOURCE}path":
        both = [_bounded(key, each) for each in value]
        return [path for path, _ in both], next((said for _, said in both if said), "")
    name = key.rpartition(".")[2]
    model = Source if key.startswith(SOURCE) else section_of(Settings.model_fields[key.partition(".")[0]].annotation)
    if model is None or name not in model.model_fields:
        raise KeyError(key)
    found = model.model_fields[name]
    if isinstance(value, float) and value.is_integer() and int in (found.annotation, *get_args(found.annotation)):
        value = int(value)
    needed = {other: "x" for other, each in model.model_fields.items() if each.is_required()}
    try:
        model.model_validate(needed | {name: value}, strict=True)
    except ValidationError as error:
        first = next((each for each in error.errors(include_url=False) if each["loc"][:1] == (name,)), None)
        if first is None:  # of several settings together, which is looked at when all are there
            return value, ""
        if first["type"] == "value_error":
            return None, f"{key}: {first.get('ctx', {}).get('error', '')}"
        named = (found.description or "").partition(": ")[2]
        said = named if first["type"] == "string_pattern_mismatch" and named else accepted(first, found)
        return None, f"{key}: {shown(value)} is refused; accepted: {said}"
    return value, ""


def _apply_entry(found: Imported, entry: DataSetEntry) -> None:
    """A data set: one source, or one for each of its files."""
    inner = Imported(found.tool, found.name, found.file)
    _apply(inner, entry.table, entry.values, {key: f"{entry.key}.{key}" for key in entry.values.values})
    if entry.is_made:  # its keys are not those of the file
        inner.ends = [end._replace(key=entry.key) for end in inner.ends if end.treatment and end.treatment.why]
    found.ends += inner.ends
    values = {key.removeprefix(SOURCE): value for key, value in inner.values.items()}
    path = values.pop("path", [])
    use = {"use_as": entry.use_as} if entry.use_as else {}
    paths = path if isinstance(path, list) else [path]
    if not paths:
        reasons = [end.treatment.why for end in inner.ends if end.treatment and end.treatment.kind == "no counterpart"]
        found.unread.append(f"{entry.key}: {next(iter(reasons), 'no path')}")
    found.sources += [{"path": each, **values, **use} for each in paths]
    found.of_sources += [entry.key] * len(paths)


def _complete(found: Imported, original: Original) -> None:
    """Add what follows from several keys, and the tool's own defaults; drop what does nothing or is refused."""
    for key, treatment in found.tool.completed(original, found.values):
        _set(found, treatment, f"{key}: {treatment.why}" if treatment.why else key)
        _add_end(found, key, treatment)
    table, whose = found.tool.table, f"default of {found.tool.title}"
    gone = {  # what a key of theirs decides on without a counterpart: ours stays at its default, as the list says
        table[key].targets[:1]
        for key, treatment in ((end.key.rpartition(".")[2], end.treatment) for end in found.ends)
        if key in table and treatment and treatment.kind == "no counterpart"
    }
    for key, value in original.defaults.items():
        rule = table[key]
        if rule.targets[:1] in gone or (rule.targets == EPOCHS and "training.max_steps" in found.values):
            continue
        treatment = _within_bounds(_decided(rule.decide, value, original))
        fresh = {ours: each for ours, each in treatment.values.items() if ours not in found.values}
        _set(found, Treatment("set", "", fresh), whose)
    _complete_method(found)
    if "preference.method" in found.values:
        _train_on_pairs_alone(found)
    batch, micro = found.values.get("training.batch"), found.values.get("training.micro_batch")
    if isinstance(micro, int) and (batch is None or micro > batch):
        _drop(found, "training.micro_batch", not_needed("training.batch is no larger"))
    if any(source.get("use_as") == "validation" for source in found.sources) and "split.validation" in found.values:
        _drop(found, "split.validation", not_needed("the validation split is given"))


def _train_on_pairs_alone(found: Imported) -> None:
    """Their training on pairs is not the second of a run: its steps are those of preference, and SFT is left out."""
    renamed = {f"training.{name}": f"preference.{name}" for name in OF_STEPS}
    found.values = {renamed.get(key, key): value for key, value in found.values.items()}
    found.origins = {renamed.get(key, key): origin for key, origin in found.origins.items()}
    for i, end in enumerate(found.ends):
        if end.treatment:
            values = {renamed.get(key, key): value for key, value in end.treatment.values.items()}
            found.ends[i] = end._replace(treatment=Treatment(end.treatment.kind, end.treatment.why, values))
    if found.values["preference.method"] == "orpo":
        for name in ("loss", "sft_weight"):
            if f"preference.{name}" in found.values:
                _drop(found, f"preference.{name}", not_needed("no effect with method=orpo"))
    else:
        _set(found, carried({"preference.after_sft": False}), f"{found.tool.title} trains on pairs alone")


def _add_end(found: Imported, key: str, treatment: Treatment) -> None:
    """Add what is said of a key, which may not be given, or of the configuration."""
    for i, end in enumerate(found.ends):
        if end.treatment and end.key.rpartition(".")[2] == key:
            values = {**end.treatment.values, **treatment.values}
            found.ends[i] = end._replace(treatment=Treatment(treatment.kind, treatment.why, values))
            return
    found.ends.append(KeyEnd(f"{key} (not given)" if key in found.tool.table else key, None, treatment))


def _complete_method(found: Imported) -> None:
    """Drop settings of the method that do nothing with its kind, or that do not go together."""
    kind = found.values.get("method.kind", Method.model_fields["kind"].default)
    for name in Method.model_fields:
        if name != "kind" and name not in USED_BY[kind] and f"method.{name}" in found.values:
            _drop(found, f"method.{name}", not_needed(f"no effect with kind={kind}"))
    for name in ("init", "dora"):
        values = {key.partition(".")[2]: each for key, each in found.values.items() if key.startswith("method.")}
        try:
            Method.model_validate(values)
        except ValidationError as error:
            if name in values:
                _drop(found, f"method.{name}", lost(str(error.errors()[0].get("ctx", {}).get("error", ""))))


def _drop(found: Imported, key: str, instead: Treatment) -> None:
    """Take out a value of ours; `instead` is the end of keys that set nothing else."""
    del found.values[key], found.origins[key]
    for i, end in enumerate(found.ends):
        values = end.treatment.values if end.treatment else {}
        if end.treatment and key in values:
            rest = {ours: each for ours, each in values.items() if ours != key}
            kept = Treatment(end.treatment.kind, end.treatment.why, rest)
            found.ends[i] = end._replace(treatment=kept if rest else instead)


def _require(found: Imported, document: Document, keys: Mapping[str, tuple[str, Any]]) -> None:
    """Raises ConfigError where there is no base, or no data set to train on."""
    if "model.base" not in found.values:
        names = [key for key, rule in found.tool.table.items() if "model.base" in rule.targets] or ["model"]
        key = next((name for name in names if name in keys), names[0])
        given = f"{shown(keys[key][1])} is not to be had" if key in keys else "missing"
        raise ConfigError(f"{_place(document, keys, key)}: {key}: {given}; name a base with --base, such as org/name")
    if not any(source.get("use_as") != "validation" for source in found.sources):
        why = next(iter(found.unread), "no data set is named")
        raise ConfigError(f"{document.name}: {why}; accepted: at least one data set to train on")


def _fields(section: str) -> Iterator[str]:
    model = section_of(Settings.model_fields[section].annotation)
    yield from model.model_fields if model else ()
