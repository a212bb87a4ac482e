"""The model card: README.md with the front matter of the Hugging Face Hub, made of the evidence in MLflow."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tunewright.artifacts import shown
from tunewright.artifacts.payloads import OTHER_ROWS, ROWS_OF_A_SLICE, Comparison, Interval, VerdictDetails
from tunewright.export.evidence import CardEvidence
from tunewright.export.parity import Parity
from tunewright.metrics.catalogue import AT_LEAST, CONSTANT, baseline, constant_answer
from tunewright.registry.candidate import code
from tunewright.reports.pages import counted, in_part, interval, number, percent

FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
OWN = "candidate"
UNKNOWN = "unknown"  # the language of rows that are too short to tell
NAMES = {
    OWN: "this model",
    "base": "base",
    "few_shot": "base, few-shot prompt",
    "retrieval": "base, retrieval prompt",
    "documents": "base, with documents",
    "champion": "champion before",
}
EXPLAINED = {  # what a stranger cannot know by the name
    "stopped": "the share of answers that end with a stop token",
    "unparseable": "the share of answers that are no valid label",
    "length_ratio": "the length of the answers by that of the references",
    "perplexity": "of the references, the lower the better",
}
METHOD = {  # method.kind -> the settings that say how
    "lora": ("rank", "alpha", "dropout", "target", "layers", "init", "rslora", "dora"),
    "qlora": ("rank", "alpha", "dropout", "target", "layers", "bits", "rslora", "dora"),
    "full": (),
    "spectrum": ("share",),
    "osf": ("share", "target", "layers"),
}
TRAINING = ("learning_rate", "epochs", "max_steps", "batch", "schedule", "warmup", "seed")


class Gguf(NamedTuple):
    """Facts of a GGUF file for the card."""

    file: str  # name
    splits: str | None  # llama.cpp's name for how the tokenizer splits text
    has_template: bool | None = None  # whether the Modelfile has one; None where there is no Modelfile
    parity: Parity | None = None  # None until it was checked


class ExportedForm(NamedTuple):
    """Facts of an export for the card."""

    form: str
    dtype: str
    measured: str  # the precision that the version was measured in
    base: str  # in words of a stranger: a hub id, or what the base is called
    hub: tuple[str, str | None] | None  # id and revision of a base on the hub
    license: str | None
    most: int  # tokens of an answer
    context: int | None  # tokens that the base reads at once
    rows: int  # of the parity check
    same: int
    gguf: Gguf | None = None
    vllm: str = ""  # command line for vllm.yaml


def written(evidence: CardEvidence, made: ExportedForm) -> str:
    """The card as text."""
    import yaml

    verdict, params = evidence.verdict, evidence.params
    front = yaml.safe_dump(_front(evidence, made), sort_keys=False, allow_unicode=True, width=120)
    kind = params.get("method.kind", UNKNOWN)
    level = percent(2 * verdict.confidence - 1)
    is_made = params.get("training.keep_general") == "auto"  # which adds none to replay rows of the user's
    return _template().render(
        front=front,
        evidence=evidence,
        made=made,
        verdict=verdict,
        params=params,
        kind=kind,
        sources=", ".join(map(code, evidence.sources)),
        method=_settings("method", METHOD.get(kind, ()), params),
        training=_settings("training", TRAINING, params),
        general="the base's own answers to general prompts" if is_made else "from sources with use_as: replay",
        languages=_languages(verdict),
        scores=list(_scores(verdict)),
        metrics=_metrics(verdict),
        explained=_explained(verdict),
        comparisons=[_compared(each) for each in (*verdict.comparisons, *verdict.guardrails)],
        decision=shown(evidence.tags.get("verdict", verdict.decision)),
        level=level,
        limits=list(limits(evidence, made)),
        versions={name: version(name) for name in ("transformers", "peft")},
        counted=counted,
    )


def _template() -> Any:
    """The template of the card, which is Markdown: nothing of it is escaped as in a page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    return Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(TEMPLATE.name)


def _front(evidence: CardEvidence, made: ExportedForm) -> dict[str, Any]:
    """The front matter; what is not known is left out."""
    verdict = evidence.verdict
    is_adapter = made.form == "adapter"
    kind = evidence.params.get("method.kind", UNKNOWN)
    language = [each for each, _ in _languages(verdict)]
    fields = {
        "base_model": made.hub[0] if made.hub else None,
        "base_model_relation": ("adapter" if is_adapter else "finetune") if made.hub else None,
        "language": language,
        "license": made.license,
        "library_name": "gguf" if made.gguf else "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tunewright", *(["gguf"] if made.gguf else []), *([kind] if kind != UNKNOWN else [])],
        "model-index": [{"name": evidence.name, "results": [_result(evidence)]}] if verdict.own else None,
    }
    return {name: value for name, value in fields.items() if value}


def _result(evidence: CardEvidence) -> dict[str, Any]:
    own = evidence.verdict.own.get(OWN, {})
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"type": "custom", "name": f"{evidence.name} test rows", "split": "test"},
        "metrics": [{"type": name, "name": name, "value": round(mean, 4)} for name, (_, mean, _) in own.items()],
    }


def _settings(section: str, names: tuple[str, ...], params: Mapping[str, str]) -> str:
    given = [(name, params.get(f"{section}.{name}", "none")) for name in names]
    if dict(given).get("max_steps", "none") != "none":  # which overrides epochs
        given = [(name, value) for name, value in given if name != "epochs"]
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given if value not in ("none", "False"))


def _languages(verdict: VerdictDetails) -> list[tuple[str, int]]:
    """The languages of the test rows' prompts with their rows, without those of few rows, which may be mistaken.

    Older verdicts have them only where there are several.
    """
    sliced = {each.name: each.num_rows for each in verdict.slices if each.by == "language" and each.name != OTHER_ROWS}
    told = [(name, rows) for name, rows in (verdict.languages or sliced).items() if name != UNKNOWN]
    return [(name, rows) for name, rows in told if rows >= ROWS_OF_A_SLICE] or told


def _metrics(verdict: VerdictDetails) -> list[str]:
    """All that was measured, the metric that decides first."""
    found = dict.fromkeys(name for scores in verdict.own.values() for name in scores)
    return sorted(found, key=lambda name: name != verdict.metric)


def _scores(verdict: VerdictDetails) -> Iterator[tuple[str, list[str]]]:
    """One line for each contender, this model first."""
    parts = {each.opponent: each.in_part for each in (*verdict.comparisons, *verdict.beside)}
    for contender in sorted(verdict.own, key=lambda name: name != OWN):
        scores = verdict.own[contender]
        cells = [_cell(scores[name]) if name in scores else "" for name in _metrics(verdict)]
        yield in_part(NAMES.get(contender, contender), parts.get(contender, "")), cells
    for each in verdict.comparisons:
        if each.opponent == CONSTANT:
            cells = [number(each.opponent_mean, 3) if name == each.metric else "" for name in _metrics(verdict)]
            yield baseline(each.metric), cells


def _explained(verdict: VerdictDetails) -> list[str]:
    found = [f"`{name}`: {EXPLAINED[name]}" for name in _metrics(verdict) if name in EXPLAINED]
    metrics = dict.fromkeys(each.metric for each in verdict.comparisons if each.opponent == CONSTANT)
    return [*found, *(f"{baseline(metric)}: always gives {constant_answer(metric)}" for metric in metrics)]


def _cell(bounds: Interval) -> str:
    low, mean, high = bounds
    return f"{number(mean, 3)} [{number(low, 3)}, {number(high, 3)}]"


def _opponent(name: str, metric: str) -> str:
    return baseline(metric) if name == CONSTANT else NAMES.get(name, name)


def _compared(each: Comparison) -> tuple[str, str, str, str, str]:
    opponent = "the required score" if each.opponent == AT_LEAST else _opponent(each.opponent, each.metric)
    difference = interval(each.difference, signed=True, digits=each.digits)
    return each.metric, in_part(opponent, each.in_part), difference, number(each.threshold), each.finding


def limits(evidence: CardEvidence, made: ExportedForm) -> Iterator[str]:
    """Yield the limits: one sentence each."""
    verdict, params, tags = evidence.verdict, evidence.params, evidence.tags
    if verdict.decision != "promote":
        yield f"It did not pass its gate: {shown(verdict.decision)}."
    if verdict.is_poor:
        yield "It is wrong more often than right on the test rows."
    uses, most = int(tags.get("test_set_uses", "1")), params.get("gate.max_test_set_uses", "")
    yield (
        f"When this version was decided on, these test rows had been used for {counted(uses, 'candidate')}"
        + (f"; after {most}, scores on them are likely to be too good." if most else ".")
    )
    if verdict.smallest_visible is not None:
        over = f" over the {_opponent(verdict.visible_against, verdict.metric)}" if verdict.visible_against else ""
        yield (
            f"On these test rows a gain{over} of less than {number(verdict.smallest_visible)} in {verdict.metric} is "
            "likely to be missed (80 % power)."
        )
    for warning in evidence.warnings:
        yield f"{warning[0].upper()}{warning[1:].rstrip('.')}."
    changes = [
        f"{name.replace('_', ' ')} {number(verdict.general['base'][name])} -> {number(score)}"
        for name, score in verdict.general.get(OWN, {}).items()
        if name in ("general_tasks", "general_loss", "lm_eval") and name in verdict.general.get("base", {})
    ]
    if changes:
        yield f"Abilities outside of the task, base -> this model: {', '.join(changes)}."
    languages = _languages(verdict)
    measured = ", ".join(f"{name} ({counted(rows, 'test row')})" for name, rows in languages)
    if languages:
        these = "this language" if len(languages) == 1 else "these languages"
        rest = sum(verdict.languages.values()) - sum(rows for _, rows in languages)
        others = f", beside {counted(rest, 'test row')} in other languages, or too short to tell" if rest > 0 else ""
        yield f"It was measured in {these} only: {measured}{others}."
    elif verdict.languages:
        yield "The test rows are too short to tell their languages."
    else:
        yield "It is not known in which languages it was measured."
    longest = params.get("model.max_length")
    if longest:
        yield f"Conversations of more than {int(longest):,} tokens were neither trained on nor measured."
    if made.context:
        yield f"It reads at most {made.context:,} tokens at once, prompt and answer together."
    yield f"Answers were measured up to {made.most:,} tokens, by greedy decoding; sampling was not measured."
