"""Why a stage would run, in the words of the deployment file: what sets a call of it apart from an earlier one.

The ingredients of a key bear the names of the stage's arguments. Which setting, file or stage each of them stands for
is said here, and nowhere else; flows/finetune.py is where the arguments are given.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import Artifact, Rows
from tunewright.config import STAGES
from tunewright.store.cache_key import Ingredients, differing
from tunewright.store.manifest import is_whole

SETTINGS = {  # stage and argument, or a part of it -> the setting that it is; any other has the name of its section
    "base.reference": "model.base",
    "rehearse.share": "split.replay",
    "rehearse.untrained": "split.validation + split.test",
    "base.revision": "model.revision",
    "dedupe.settings": "dedupe",
    "split.settings": "split",
    "render.max_quarantined_share": "checks.max_quarantined_share",
    "scan.share": "method.share",
    "label_errors.num_folds": "checks.label_error_folds",
    "prefer.training.learning_rate": "preference.learning_rate",
    "prefer.training.epochs": "preference.epochs",
    "prefer.training.max_steps": "preference.max_steps",
    "reinforce.training.learning_rate": "grpo.learning_rate",
    "reinforce.training.epochs": "grpo.epochs",
    "reinforce.training.max_steps": "grpo.max_steps",
    "reinforce.training.batch": "grpo.batch",
    "reinforce.schema": "evaluation.json_schema",
    "examples.kind": "method.kind",
    "examples.shots": "evaluation.shots",
    "examples.max_new_tokens": "evaluation.max_new_tokens",
    "examples.embedding_model": "dedupe.semantic_model",
    "prompt.contenders": "evaluation.contenders",
    "prompt.shots": "evaluation.shots",
    "prompt.max_new_tokens": "evaluation.max_new_tokens",
    "prompt.embedding_model": "dedupe.semantic_model",
    "evaluate.contender.api": "evaluation.api_models",
    "forgetting.precision": "evaluation.precision",
    "lm_eval.precision": "evaluation.precision",
    "evaluate.evaluation.metrics": "evaluation.metrics, with those of gate",
    "judge.url": "judge.url",
    "judge.model": "judge.model",
    "judge.rows": "judge.rows",
    "verdict_page.run.name": "registry.name",
    "verdict_page.price": "operation.prices",
    "verdict_page.num_devices": "compute.devices",
    "verdict_page.run.approval": "gate.approval",
    "register.candidate.run.name": "registry.name",
    "register.candidate.run.approval": "gate.approval",
    "register.candidate.settings": "",
}
SENTENCES = {  # stage and argument, or a part of it -> what its change says
    "ingest.needs": "split.by, split.stratify: rows need other fields",
    "base.identity": "model.base: its files changed",
    "base.chat_template": "model.chat_template: the template changed",
    "check.own": "checks.expectations: the code of a class of yours is new or changed",
    "check.special_tokens": "model.base: its special tokens changed",
    "check.before": "the last accepted version, for comparison, changed",
    "check.before_number": "the last accepted version, for comparison, changed",
    "reinforce.own": "grpo.rewards: the code of a function of yours is new or changed",
    "dedupe.embedding": "dedupe.semantic_model: its files changed",
    "dedupe.earlier": "the last accepted version, whose boilerplate is kept, changed",
    "train.begins_as": "model.start: the weights that the training begins with changed",
    "split.earlier": "the last accepted version, whose splits are kept, changed",
    "evaluate.contender.model_digest": "the evaluated weights changed",
    "evaluate.contender.prompts_digest": "the prompts changed",
    "evaluate.own": "evaluation.metrics: the code of a class of yours is new or changed",
    "evaluate.schema": "evaluation.json_schema: the file changed",
    "examples.embedding": "dedupe.semantic_model: its files changed",
    "prompt.embedding": "dedupe.semantic_model: its files changed",
    "prompt.documents": "evaluation.documents: the files changed",
    "prepend.contender.model_digest": "the examples changed",
    "prepend.contender.version": "the champion changed",
    "evaluate.contender.version": "the champion changed",
    "evaluate.rule": "evaluation.complete changed",
    "evaluate.rule.candidate": "the candidate's answers changed",
    "evaluate.rule.metric": "the deciding metric changed",
    "evaluate.rule.tolerance": "gate.tolerance changed",
    "evaluate.rule.confidence": "gate.confidence changed, or the test rows were used once more",
    "forgetting.contender.model_digest": "the evaluated weights changed",
    "lm_eval.contender.model_digest": "the evaluated weights changed",
    "divergence.candidate.model_digest": "the evaluated weights changed",
    "divergence.reference.model_digest": "the weights that the last training began from changed",
    "divergence.reference.name": "preference.after_sft or grpo.after_sft changed",
    "lm_eval.identity": "lm_eval.tasks: the definition of a task changed",
    "decide.alpha_share": "the test rows were used once more",
    "verdict_page.run.test_set_uses": "the test rows were used once more",
    "verdict_page.run.warnings": "gate.max_test_set_uses: the warning about test-set uses changed",
    "register.candidate.run.test_set_uses": "the test rows were used once more",
    "register.candidate.run.warnings": "gate.max_test_set_uses: the warning about test-set uses changed",
    "register.candidate.challenged": "the champion changed",
    "register.candidate.lineage": "data.sources: the content of files changed",
    "register.candidate.data_version": "the version number of the data changed",
}
OPTIONAL = {  # stage and argument -> the setting by which it is there or not
    "prompt.documents": "evaluation.documents",
    "prompt.asks_apis": "evaluation.api_models",
}
NAMED_BY = {  # stage and argument, the content of what a setting names -> the ingredient that is this setting
    "base.identity": "reference",
    "dedupe.embedding": "settings.semantic_model",
    "examples.embedding": "embedding_model",
    "prompt.embedding": "embedding_model",
}
FOLLOWS = {  # what of these can only change where another stage runs, or one of two
    "check.special_tokens": "base",
    "train.begins_as": "render or base",
    "evaluate.contender.model_digest": "train or prefer",
    "forgetting.contender.model_digest": "train or prefer",
    "lm_eval.contender.model_digest": "train or prefer",
    "divergence.candidate.model_digest": "train or prefer",
    "divergence.reference.model_digest": "train or prefer",
    "prepend.contender.model_digest": "examples",
    "evaluate.contender.prompts_digest": "prompt",
    "evaluate.rule.metric": "evaluate",
    "evaluate.rule.confidence": "evaluate",
    "decide.alpha_share": "evaluate",
    "verdict_page.run.test_set_uses": "decide",
    "verdict_page.run.warnings": "decide",
    "register.candidate.run.test_set_uses": "decide",
    "register.candidate.run.warnings": "decide",
    "register.candidate.lineage": "ingest",
    "register.candidate.data_version": "ingest",
}
MADE = re.compile(rf"({'|'.join(STAGES)}) ([0-9a-f]{{64}}|unmade_[\w.-]+)")  # an artifact; one that is still to be made
ITEM = re.compile(r"(.+\[\d+\])\.(.+)")  # a field of an item of a list
NAMED = re.compile(r"(.+)\[(\d+)\]\.(path|name)")  # what an item of a list is known by
GONE = 1_000_000  # is added to the number of an item that has no place in the other list
LISTED = re.compile(r"(.+\[)\d+\]")  # an item of a list that has no fields
PART = re.compile(r"\.?[^.\[]+|\[\d+\]")
MOST_DEFINITIONS = 3  # of code, that are named
CHUNK = 1 << 20


class InputFile(NamedTuple):
    """A file that ingest reads, as its key has it."""

    setting: str
    digest: str
    grows: bool  # by lines at its end


def causes(
    stage: str, before: Ingredients, now: Ingredients, made: Artifact | None = None, waits: Collection[str] = ()
) -> list[str]:
    """Describe the differences between two keys, each once, except those that `waits`, stages run first, will cause.

    `made` is the artifact of the earlier call.
    """
    before = _renumbered(before, now)
    made_by = {name: MADE.fullmatch(str(now.get(name) or before.get(name))) for name in _changing(before, now)}
    names = [
        name
        for name, found in made_by.items()
        if not {*(found[1] if found else FOLLOWS.get(f"{stage}.{name}", "")).split(" or ")} & {*waits}
        and NAMED_BY.get(f"{stage}.{name}") not in made_by  # another name is cause enough
    ]
    needed = [name for name in names if f"{stage}.{name}" not in NAMED_BY or (before.get(name) and now.get(name))]
    names = needed or names  # what one call does without is no change of its own: another setting needs it or not
    said = [*_files(before, now, made), *_sections(stage, names, before, now)]
    if code := [name.removeprefix("code ") for name in names if name.startswith("code ")]:
        rest = f" and {len(code) - MOST_DEFINITIONS} more" if len(code) > MOST_DEFINITIONS else ""
        said.append(f"code {', '.join(code[:MOST_DEFINITIONS])}{rest} changed")
    return list(dict.fromkeys(said)) or ([] if waits else ["the order of its inputs changed"])


def _renumbered(before: Ingredients, now: Ingredients) -> Ingredients:
    """`before` with each item of a list under the number that the item of the same path or name has `now`.

    One without such an item keeps its number if what has this number now is new as well, or else is GONE.
    """
    old, new = _named_items(before), _named_items(now)
    numbers = dict[str, str]()
    for place, items in old.items():
        free = dict(new.get(place, {}))
        for number, name in items.items():
            there = number if free.get(number) == name else next((at for at in free if free[at] == name), None)
            if there is not None:
                del free[there]
                numbers[f"{place}[{number}]"] = f"{place}[{there}]"
        for number in items:
            own = number if number in free else GONE + number
            numbers.setdefault(f"{place}[{number}]", f"{place}[{own}]")
    found = dict[str, Any]()
    for name, value in before.items():
        item = ITEM.fullmatch(name)
        same = f"{numbers[item[1]]}.{item[2]}" if item and item[1] in numbers else name
        found[same] = numbers.get(value, value) if isinstance(value, str) and name.endswith(".setting") else value
    return found


def _named_items(ingredients: Ingredients) -> dict[str, dict[int, str]]:
    """Each list -> the number and the path, or without one the name, of its items, in their order."""
    found: dict[str, dict[int, str]] = {}
    for name in sorted(ingredients):  # of an item its name before its path
        if item := NAMED.fullmatch(name):
            found.setdefault(item[1], {})[int(item[2])] = str(ingredients[name])
    return {place: dict(sorted(items.items())) for place, items in found.items()}


def _changing(before: Ingredients, now: Ingredients) -> list[str]:
    """The names that set two calls apart; of a record that one of them lacks its own name, and not its fields."""
    names = differing(before, now)
    records = {name.partition(".")[0] for name in names if "." in name}
    one_sided = {name for name in records if (name in before) != (name in now)}  # None in the other
    return sorted(one_sided | {name for name in names if name.partition(".")[0] not in one_sided})


def _sections(stage: str, names: list[str], before: Ingredients, now: Ingredients) -> Iterator[str]:
    """Settings, artifacts and versions."""
    for name in names:
        if name.startswith(("files[", "code ")):
            continue
        if any(other.startswith(f"{name}[") for other in before | now):  # the empty list, which has items on a side
            continue
        parts = [match[0] for match in PART.finditer(name)]  # the argument and, in a record, fields in it
        wholes = [("".join(parts[:end]), "".join(parts[end:])) for end in range(len(parts), 0, -1)]
        sentence = _came_or_went(stage, parts[0], before, now)
        sentence = sentence or next((said for whole, _ in wholes if (said := SENTENCES.get(f"{stage}.{whole}"))), "")
        setting, rest = next(
            ((SETTINGS[f"{stage}.{whole}"], rest) for whole, rest in wholes if f"{stage}.{whole}" in SETTINGS),
            (name, ""),
        )
        yield sentence or _changed(f"{setting}{rest}".lstrip("."), name, before, now)


def _came_or_went(stage: str, argument: str, before: Ingredients, now: Ingredients) -> str:
    """Say that what a setting names is there only now, or no longer; empty of an argument that is in both, or neither.

    One that is empty or false is not there.
    """
    if not (setting := OPTIONAL.get(f"{stage}.{argument}")):
        return ""
    parts = re.compile(rf"{argument}\b")
    was, there = (any(value and parts.match(name) for name, value in each.items()) for each in (before, now))
    if was == there:
        return ""
    return f"{setting}: there are some now" if there else f"{setting}: there are none any more"


def _changed(key: str, name: str, before: Ingredients, now: Ingredients) -> str:
    old, new = before.get(name), now.get(name)
    made = MADE.fullmatch(str(new or old))
    if made and (listed := LISTED.fullmatch(name)):  # one that is left out moves those behind it
        was, there = ({v for k, v in each.items() if k.startswith(listed[1])} for each in (before, now))
        if was <= there or there <= was:
            how = "the order of its inputs changed" if was == there else ""
            return how or f"an output of {made[1]} is {'no longer' if there < was else 'now'} read"
    earlier = MADE.fullmatch(str(old)) if new else None
    if made and earlier and earlier[1] != made[1]:
        return f"it reads the output of {made[1]} in place of {earlier[1]}"
    if made:
        return f"the output of {made[1]} {'changed' if old and new else 'is now read' if new else 'is no longer read'}"
    item = ITEM.fullmatch(name)
    if item and (name in before) != (name in now):
        there = now if name in now else before
        what = there.get(f"{item[1]}.path") or there.get(f"{item[1]}.name")
        if what and not any(other.startswith(f"{item[1]}.") for other in (before if there is now else now)):
            place = re.sub(r"\d+(?=\]$)", lambda number: str(int(number[0]) % GONE), key.removesuffix(f".{item[2]}"))
            return f"{place}: {what} is {'new' if there is now else 'gone'}"
    return f"{key}: {_shown(old)} -> {_shown(new)}"


def _files(before: Ingredients, now: Ingredients, made: Artifact | None) -> Iterator[str]:
    """List the files of ingest that changed, came or went; those of another path by their setting."""
    old, new = _by_path(before), _by_path(now)
    changed = [path for path in sorted(old.keys() & new.keys()) if old[path].digest != new[path].digest]
    whole = made if changed and isinstance(made, Rows) and is_whole(made) else None  # others can keep pyarrow waiting
    for path in changed:
        lines = _num_appended(path, old[path], whole) if whole else None
        how = f" ({lines:,} {'line' if lines == 1 else 'lines'} appended)" if lines else ""
        yield f"{new[path].setting}: {path} changed{how}"
    for there, other, word in ((new, old, "new"), (old, new, "gone")):
        for path in sorted(there.keys() - other.keys()):
            path_of_source = f"{there[path].setting}.path"
            if before.get(path_of_source) == now.get(path_of_source):
                yield f"{there[path].setting}: {path} is {word}"


def _by_path(ingredients: Ingredients) -> dict[str, InputFile]:
    files: dict[str, dict[str, Any]] = {}
    for name, value in ingredients.items():
        if name.startswith("files[") and (item := ITEM.fullmatch(name)):
            files.setdefault(item[1], {})[item[2]] = value
    return {
        file["path"]: InputFile(
            file["setting"], file["digest"], file["format"] == "jsonl" and not file.get("compression")
        )
        for file in files.values()
    }


def _num_appended(path: str, earlier: InputFile, made: Rows) -> int | None:
    """Count the lines appended to a local file, known by where its last record began; or None."""
    if not earlier.grows or not Path(path).is_file():
        return None
    begins = []
    for table in ("rows.parquet", "quarantine.parquet"):
        column = pq.read_table(made.path(table), columns=["byte"], filters=pc.field("file") == path)["byte"]
        begins.append(pc.max(column).as_py() or 0)  # pyright: ignore[reportAttributeAccessIssue]
    return num_lines_after(Path(path), max(begins), earlier.digest)


def num_lines_after(file: Path, last: int, sha256: str) -> int | None:
    """Count the lines after the one that begins at byte `last`, if all up to there has this hash; or None.

    That line may have had no end before.
    """
    with file.open("rb") as opened:
        seen = hashlib.sha256()
        while last and (chunk := opened.read(min(last, CHUNK))):
            seen.update(chunk)
            last -= len(chunk)
        while chunk := opened.readline(CHUNK):
            seen.update(chunk.removesuffix(b"\n"))
            if chunk.endswith(b"\n"):
                break
        without_end = seen.hexdigest()
        seen.update(b"\n")
        if sha256 not in (without_end, seen.hexdigest()):
            return None
        number, end = 0, b"\n"
        while chunk := opened.read(CHUNK):
            number, end = number + chunk.count(b"\n"), chunk[-1:]
        return number + (end != b"\n")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}…"
