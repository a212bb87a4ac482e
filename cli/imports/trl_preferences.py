"""The method that a configuration of TRL is for, SFT, DPO, KTO or ORPO, and the arguments of the last three.

The arguments of SFTConfig, DPOConfig, KTOConfig and ORPOConfig look alike: those that only one has tell which it is.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from tunewright.accepted import shown
from tunewright.cli.imports.rules import (
    KeyRule,
    Original,
    Table,
    Treatment,
    by,
    carried,
    each,
    is_number,
    is_off,
    lost,
    missing,
    needless,
    not_needed,
    same_as,
)
from tunewright.cli.imports.trainer import ANSWERS, EVALUATED
from tunewright.config import Preference

CLASSES = {
    **dict.fromkeys(("DPOConfig", "dpo_config"), "dpo"),
    **dict.fromkeys(("KTOConfig", "kto_config"), "kto"),
    **dict.fromkeys(("ORPOConfig", "orpo_config"), "orpo"),
    **dict.fromkeys(("SFTConfig", "sft_config"), "sft"),
}
ON_PREFERENCES = ("dpo", "kto", "orpo")
LOSSES: tuple[str, ...] = get_args(Preference.model_fields["loss"].annotation)  # of DPO, that are offered
OTHER_LOSSES = ("aot", "aot_pair", "aot_unpaired", "discopop", "sft")  # of DPO
KTO_LOSSES = ("kto", "bco", "apo_zero_unpaired")
SFT_LOSSES = ("nll", "chunked_nll")  # the same cross-entropy as here
OF_KTO = ("desirable_weight", "undesirable_weight")
OF_DPO = (
    *("rpo_alpha", "loss_weights", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha"),
    *("use_weighting", "discopop_tau", "reference_free", "use_logits_to_keep", "use_num_logits_to_keep"),
)
SHARED = (  # by two of the three or all
    *("beta", "precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model", "ref_model_mixup_alpha"),
    *("ref_model_sync_steps", "max_prompt_length", "max_completion_length", "generate_during_eval", "padding_value"),
    *("label_pad_token_id", "is_encoder_decoder", "ref_model_init_kwargs", "ref_adapter_name", "force_use_ref_model"),
)
OF_SFT = (
    *("packing", "packing_strategy", "eval_packing", "assistant_only_loss", "completion_only_loss", "max_seq_length"),
    *("dataset_text_field", "dataset_kwargs", "num_of_sequences", "chars_per_token", "train_on_responses_only"),
)
SMALLEST_SMOOTHING = 0.001  # that the paper of exo_pair has
REFERENCE = "the reference is the model before its first step"


class Told(NamedTuple):
    """The method of a configuration, the key that tells it, and what to say where others have that key as well."""

    command: str
    by: str = ""
    why: str = ""


def told(original: Original) -> Told:
    """Tell the method: by --from, by the name of a class, or by keys; DPO where several of the three have them."""
    if original.command:
        return Told(original.command, "--from")
    for group, command in CLASSES.items():
        if group in original.groups:
            return Told(command, group)
    if key := _first(original, OF_KTO):
        return Told("kto", key)
    given = original.values.get("loss_type")
    names = _names(given)
    if names and names[0] in KTO_LOSSES:
        return Told("kto", "loss_type")
    if names and (isinstance(given, list) or names[0] in (*LOSSES, *OTHER_LOSSES)):
        return Told("dpo", "loss_type")
    if key := _first(original, OF_DPO):
        return Told("dpo", key)
    if key := _first(original, SHARED):
        return Told("dpo", key, "KTO and ORPO have such keys too; if it is one of them, say --from trl-kto or trl-orpo")
    return Told("sft", "loss_type" if names and names[0] in (*SFT_LOSSES, "dft") else _first(original, OF_SFT))


def completed(original: Original) -> Iterator[tuple[str, Treatment]]:
    """The method, and what told it; of SFT only that nothing did."""
    found = told(original)
    if found.command in ON_PREFERENCES:
        why = found.why if found.command != "orpo" else "its loss covers the prompts too there, answers alone here"
        yield f"{found.command.upper()}, told by {found.by}", carried({"preference.method": found.command}, why)
    elif not found.by:
        yield "SFT, told by no key", not_needed("if it is of DPO, KTO or ORPO, say --from trl-dpo, trl-kto or trl-orpo")


def refused(original: Original) -> Iterator[tuple[str, str]]:
    """Losses that are not offered, with why."""
    command, names = told(original).command, _names(original.get("loss_type"))
    if command == "kto" and names and names != ["kto"]:
        yield "loss_type", f"{shown(names[0])} is a loss of KTO that is not offered"
    if command != "dpo" or not names:
        return
    if unknown := [name for name in names if name not in (*LOSSES, "sft")] or (names if names == ["sft"] else []):
        yield "loss_type", f"{shown(unknown[0])} is a loss of DPO that is not offered"
    elif _of_loss(original) is None:
        weights = original.get("loss_weights")
        said = f" with loss_weights {shown(weights)}" if weights else ""
        yield "loss_type", f"{', '.join(names)}{said}: one loss is offered, of weight 1, with or without sft beside it"


def loss(value: Any, original: Original) -> Treatment:
    """The loss, which is that of SFT or of the method on preferences."""
    command = told(original).command
    if command == "orpo":
        return not_needed("of DPO and KTO")
    if command == "kto":
        return not_needed("the same loss here")
    if command == "sft":
        is_same = value in (None, *SFT_LOSSES)
        return not_needed("the same cross-entropy here") if is_same else lost("the loss is the plain cross-entropy")
    found = _of_loss(original)
    if found is None:
        raise ValueError(f"loss_type: {shown(value)} is refused")
    name, weight = found
    values: dict[str, Any] = {"preference.loss": name}
    if weight is not None:
        values["preference.sft_weight"] = weight
    if name == "exo_pair" and is_off(original.get("label_smoothing")):
        values["preference.label_smoothing"] = SMALLEST_SMOOTHING
        return carried(values, "without label_smoothing this loss is infinite: the least that its paper has is taken")
    return carried(values)


def dropout(value: Any, original: Original) -> Treatment:
    """The dropout of an adapter, which training on preferences turns off there unless it is told not to."""
    if told(original).command in ON_PREFERENCES and original.get("disable_dropout") in (None, True, "true"):
        return not_needed("disable_dropout turns it off there, and it is off here by default")
    return carried({"method.dropout": value})


def of(target: str, *commands: str) -> KeyRule:
    """A number of these methods."""

    def decide(value: Any, original: Original) -> Treatment:
        has_it = told(original).command in commands
        return carried({target: value}) if has_it else not_needed(f"of {' and '.join(commands).upper()}")

    return by(decide, target)


def smoothing(value: Any, original: Original) -> Treatment:
    """The share of pairs that are labelled the wrong way, which two losses take into account."""
    if is_off(value):
        return not_needed("off there as well")
    if told(original).command == "dpo" and _names(original.get("loss_type"))[:1] in (["robust"], ["exo_pair"]):
        return carried({"preference.label_smoothing": value})
    return lost("preference.label_smoothing goes with the losses robust and exo_pair")


def divergence(_: Any, original: Original) -> Treatment:
    """The divergence from the reference, and its coefficient."""
    kind = str(original.get("f_divergence_type") or "reverse_kl").rpartition(".")[2].lower()
    if kind == "reverse_kl":
        return not_needed("the reverse KL divergence, as here")
    return lost("the divergence is the reverse KL here")


def reference(value: Any, original: Original) -> Treatment:
    """Another model as the reference."""
    base = original.get("model_name_or_path")
    return not_needed("the base, as here") if is_off(value) or value == base else lost(REFERENCE)


def of_synced(_: Any, original: Original) -> Treatment:
    """How a reference follows the model."""
    return not_needed("of sync_ref_model") if is_off(original.get("sync_ref_model")) else lost(REFERENCE)


def _first(original: Original, keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in original.values), "")


def _names(given: Any) -> list[str]:
    return [str(name) for name in given] if isinstance(given, list) else [] if given is None else [str(given)]


def _of_loss(original: Original) -> tuple[str, float | None] | None:
    """The one loss on pairs, and the weight of SFT where it is added to it; None where these are other ones."""
    names, weights = _names(original.get("loss_type")), original.get("loss_weights") or []
    weights = weights if isinstance(weights, list) else [weights]
    weighted = dict(zip(names, weights or [1.0] * len(names), strict=False))
    added = weighted.pop("sft", None)
    if len(names) != len(weighted) + (added is not None) or [*weighted.values()] != [1]:
        return None
    if added is not None and not is_number(added):
        return None
    return next(iter(weighted)), added


TABLE: Table = {
    "loss_type": by(loss, "preference.loss", "preference.sft_weight", "preference.label_smoothing"),
    "beta": of("preference.beta", *ON_PREFERENCES),
    "desirable_weight": of("preference.desirable_weight", "kto"),
    "undesirable_weight": of("preference.undesirable_weight", "kto"),
    "rpo_alpha": of("preference.sft_weight", "dpo"),
    "label_smoothing": by(smoothing, "preference.label_smoothing"),
    "loss_weights": needless("taken with loss_type"),
    **each("f_divergence_type f_alpha_divergence_coef", by(divergence)),
    "ld_alpha": same_as(1.0, "so here", "each token of an answer counts the same (no LD-DPO)"),
    "use_weighting": missing("pairs all weigh the same (no WPO)"),
    "discopop_tau": needless("of loss_type: discopop"),
    "reference_free": missing(REFERENCE),
    "sync_ref_model": missing(REFERENCE),
    **each("ref_model_mixup_alpha ref_model_sync_steps", by(of_synced)),
    **each("ref_model ref_model_name_or_path ref_model_path ref_model_id", by(reference)),
    **each("ref_model_revision ref_model_init_kwargs ref_adapter_name force_use_ref_model", missing(REFERENCE)),
    **each("precompute_ref_log_probs precompute_ref_batch_size", needless("the reference is computed once, always")),
    **each("max_prompt_length max_completion_length max_target_length", needless("only model.max_length limits a row")),
    **each(
        "padding_value label_pad_token_id use_logits_to_keep use_num_logits_to_keep",
        needless(f"{ANSWERS}, and no padding is computed"),
    ),
    **each("model_adapter_name base_model_attribute_name", needless("names within the model there")),
    "disable_dropout": needless("method.dropout is that of an adapter, and off by default"),
    "generate_during_eval": needless(f"{EVALUATED}, and answers are scored on test rows"),
    "is_encoder_decoder": missing("causal models are trained"),
}
