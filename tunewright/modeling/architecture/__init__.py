"""Probe of a base's architecture: run a tiny model of its class to find which computations are correct (checks.py).

Lists of names go stale, and a class that ignores positions or keeps a state trains silently wrong. So attention, layout
and decoding are chosen by probing a small model of the base's own configuration, in a fraction of a second; if a faster
way gives another result, only the plain way is left. The result is cached in the home by a digest of its inputs.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from tunewright import compat, config
from tunewright.errors import ConfigError, one_line
from tunewright.modeling.architecture.tiny import absurd, nested, tiny, windows
from tunewright.store import disk
from tunewright.store.code_hashes import fingerprints

Decoding = Literal["shared", "copied", "library"]
# Of a configuration, what says nothing of how its class computes.
BESIDE = ("dtype", "torch_dtype", "transformers_version", "architectures", "use_cache", "quantization_config")
OTHER_MEDIA = ("vision_config", "audio_config", "text_config", "image_token_id", "vq_config", "speech_config")


class Architecture(BaseModel, frozen=True):
    """The correct choices for a base, and the reasons against the others."""

    refused: str = ""  # why it cannot be trained at all, and what is accepted; empty if it can
    attention: Literal["sdpa", "eager"] = "eager"
    packing: str = ""  # why rows cannot lie one after another; empty if they can
    shared_prefix: str = ""  # why they cannot lie behind what they share; empty if they can
    decoding: Decoding = "library"  # by our own attention, by copies of the states, or by generate
    pads_left: bool = False  # whether generate answers several rows at once as it does each alone
    unreached: tuple[str, ...] = ()  # linear modules whose weights the class reads by itself: no adapter acts there
    windows: dict[str, int] = {}  # tokens that attention slides over, or the like, by the names of the configuration


def of(model_config: Any, longest: int = 0) -> Architecture:
    """Probe a base with this configuration, transformers' own or of cost_model, for rows of up to `longest` tokens."""
    fields = getattr(model_config, "fields", None)
    return probe(model_config.to_dict() if fields is None else fields, longest)


def probe(fields: Mapping[str, Any], longest: int = 0) -> Architecture:
    """The same of the fields of a config.json."""
    plain = {name: value for name, value in fields.items() if name not in BESIDE and not name.startswith("_")}
    if found := nested(plain):
        return Architecture(refused=f"its config.json has {found}")
    text = json.dumps(plain, sort_keys=True, default=str)
    found = _kept(text, ())
    exceeded = tuple(name for name, size in found.windows.items() if size < longest)
    return _kept(text, exceeded) if exceeded else found


def require(fields: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError where a base with this config.json cannot be trained; `where` names it."""
    if refused := probe(fields).refused:
        raise ConfigError(f"model.base={where}: {refused}")


@functools.lru_cache(1_000)
def _kept(fields: str, exceeded: tuple[str, ...]) -> Architecture:
    """The probe's result, from the home if it is there."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    identity = json.dumps([fields, exceeded, versions, fingerprints("tunewright.modeling.architecture.checks")])
    folder = config.home() / "architectures"
    file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:20]}.json"
    try:
        return Architecture.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        found = _probed(json.loads(fields, object_hook=_number), exceeded)
    with contextlib.suppress(ConfigError, OSError):  # a home that is only read, as by a plan: probed again next time
        config.make_home()
        folder.mkdir(exist_ok=True)
        disk.replace(file, found.model_dump_json())
    return found


def _number(read: dict[str, Any]) -> Any:
    """Decode a number that transformers writes as an object since JSON has none such: infinity and NaN."""
    return float(read["__float__"]) if read.keys() == {"__float__"} else read


def _probed(fields: dict[str, Any], exceeded: tuple[str, ...]) -> Architecture:
    from transformers import AutoConfig

    from tunewright.modeling.architecture import checks

    if refused := _refused(fields):
        return Architecture(refused=refused)
    fields = AutoConfig.for_model(**fields).to_dict()  # with what it leaves at its default
    errors, found = [], None
    for all_layers in (False, True):
        try:
            found = checks.checked(tiny(fields, exceeded, all_layers=all_layers))
        except Exception as error:  # what a class raises for sizes that do not go together is anything
            errors.append(one_line(error))
        if found and not found.refused:  # some are refused for a kind of layer that the fewest do not have
            return _with_windows(found.model_copy(update={"windows": windows(fields)}), exceeded)
    if found and not errors:
        return found
    try:
        attention = "sdpa" if compat.supports_sdpa(fields) else "eager"  # as the class says of itself
    except Exception as error:  # a value of a wrong type under a field's second name, which only its own name checks
        return Architecture(refused=f"model_type {fields['model_type']} takes no such config.json ({one_line(error)})")
    unknown = f"no tiny model of type {fields['model_type']} could be made to check it ({errors[0]})"
    return Architecture(attention=attention, packing=unknown, shared_prefix=unknown)


def _with_windows(found: Architecture, exceeded: Sequence[str]) -> Architecture:
    """The same, with the windows that rows exceed among the reasons."""
    if not exceeded or not found.packing:
        return found
    than = " and ".join(f"{name}={found.windows[name]}" for name in exceeded)
    longer = {
        name: f"{getattr(found, name)}, where rows are longer than {than}" for name in ("packing", "shared_prefix")
    }
    return found.model_copy(update=longer)


def _refused(fields: Mapping[str, Any]) -> str:
    """Why transformers has no causal language model of text for this config.json, and what is accepted."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    accepted = "accepted: text models that transformers loads with AutoModelForCausalLM, such as llama or qwen3"
    kind = fields.get("model_type")
    if not isinstance(kind, str) or not kind:
        return f"its config.json has no model_type that is a name; {accepted}"
    if kind not in CONFIG_MAPPING:
        own = "brings code of its own (auto_map), which is never run" if "auto_map" in fields else "is not known"
        version = importlib.metadata.version("transformers")
        return f"model_type {kind} {own} in transformers {version}; {accepted}"
    if fields.get("is_encoder_decoder"):
        return f"model_type {kind} is an encoder-decoder; {accepted}"
    if any(name in fields for name in OTHER_MEDIA):
        return f"model_type {kind} reads more than text; {accepted}, or its text part saved as a model of its own"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"model_type {kind} is not a causal language model; {accepted}"
    if found := absurd(fields):
        return f"its config.json has {found}"
    try:
        AutoConfig.for_model(**fields)
    except Exception as error:  # what a configuration raises for sizes that do not go together is anything
        return f"model_type {kind} takes no such config.json ({one_line(error)})"
    return ""
