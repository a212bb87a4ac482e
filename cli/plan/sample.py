"""Rows as a plan takes them before render has made any: some conversations, rendered where the base is here."""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import Artifact, Base, Rows, Splits
from tunewright.config import Checks, Model, Settings, Split
from tunewright.cost_model import shapes, work
from tunewright.data_checks.suite import LengthArguments, suite
from tunewright.modeling import chat_templates
from tunewright.modeling.chat import Chat, Tokenized, tokenize, tokenize_rejected
from tunewright.modeling.models import TOKENIZER_FILES, load_tokenizer
from tunewright.reports.pages import counted
from tunewright.serving import package_file, reading_gguf
from tunewright.similarity.prompts import hashed_conversations
from tunewright.tasks.ingest.sampling import MOST_BYTES, Sample, repeated_share
from tunewright.tasks.render import bound_of, lengths_in_words
from tunewright.tools.conversation import (
    Message,
    conversation_of,
    is_undesirable,
    prompt_and_answer,
    rejected_of,
    texts_of,
    tools_of,
)

MOST_LOOKED_AT = 1_000  # rows that ingest made
MOST_CHARACTERS_A_TOKEN = 6  # of a row; English has about 4


class Sampled(NamedTuple):
    """Rows that train, as far as some of them tell; and in words what they are of, and which are too long."""

    source: work.Source
    num_rows: int
    num_validation: int
    num_test: int
    rows: Sequence[work.Row]
    said: str
    too_long: str = ""
    is_too_long: bool = False  # all of them
    is_all: bool = False  # whether all rows were looked at, and not the first of them
    is_refused: bool = False  # by render, for certain: it stops at rows that are too long
    independent: float = 1.0  # groups for each row that may test
    repeated: float = 0.0  # share of exact duplicates, of the rows before dedupe


def sampled(settings: Settings, base: Base | None, made: Artifact | None, first: Sample | None) -> Sampled | None:
    """Some of the rows that split or ingest made, or the `first` of the sources; None without any.

    Raises ConfigError where they have tools that the base's chat template leaves out.
    """
    given: Mapping[str, float] = {}
    repeated, alone, before = 0.0, 1.0, 1.0
    if isinstance(made, Splits):
        looked_of, conversations = work.conversations_in(made.path("train.parquet"))
        train, num_validation, num_test, source = looked_of, made.num_validation, made.num_test, "split"
    else:
        if isinstance(made, Rows) and made.num_rows:
            drawn, given, conversations, alone = _of_ingest(made.path("rows.parquet"))
            repeated = round(drawn * _repeated_of_ingest(made.path("rows.parquet")), 3)
            source = "ingest"
        elif first is not None:
            drawn, given, conversations, repeated = first.drawn, first.given, first.conversations, first.repeated
            alone = first.independent
            source = "sample"
        else:
            return None
        looked_of = drawn + given.get("train", 0) + given.get("replay", 0)
        train, num_validation, num_test = _shared(settings.split, drawn - repeated, given)
        before = max(1.0, looked_of)
    num_looked_at = len(conversations)
    if source != "split":
        conversations = _checked(conversations, settings.checks)
    is_all = first.is_all if source == "sample" and first else num_looked_at >= looked_of
    row = "training row" if source == "split" else "row"
    rows_of = f"{row} of" if num_looked_at == 1 else f"{num_looked_at:,} {row}s of"
    which = f"{'the' if is_all else 'the first'} {rows_of} {'the sources' if source == 'sample' else source}"
    if source == "sample" and first and first.num_files > 1 and not is_all:
        which = f"the first rows of each file of the sources ({num_looked_at:,} in all)"
    limit = settings.data.limit
    is_drawn = source == "sample" and limit is not None and num_looked_at > looked_of
    draws = f"data.limit draws {looked_of:,.0f} from all rows" if is_drawn else ""
    own = [f"{given[split]:,.0f} with use_as: {split}" for split in ("validation", "test") if given.get(split)]
    refused = _quarantined(first) if source == "sample" and first else ""
    out_of_bounds = _out_of_bounds(num_looked_at - len(conversations))
    besides = f"besides these, {' and '.join(own)}" if own else ""
    notes = [draws, besides, refused, out_of_bounds, _left_out(round(repeated))]
    rest = "".join(f"; {note}" for note in notes if note)
    with tempfile.TemporaryDirectory() as folder:
        if base is None and any(map(tools_of, conversations)):
            base = _unpacked(settings.model, Path(folder))
        rows = _rendered(conversations, base, settings.model)
        bound = bound_of(base, settings.model) if base and rows else None
    numbers, user_provided = (train, num_validation, num_test), {each.use_as for each in settings.data.sources}
    among = f"{'{:,} of ' if num_looked_at > 1 else ''}{which}{f' ({draws})' if draws else ''}"
    if not rows or not bound:
        guessed = [_guessed(messages, settings.model) for messages in conversations]
        said = f"from {which}, by the length of their texts{rest}"
        left = _left(numbers, len(conversations) / max(1, num_looked_at), user_provided)
        too_long = _probably_too_long(conversations, among, settings.model, is_certain=source == "split")
        more = {"independent": alone, "is_all": is_all, "repeated": repeated / before}
        return Sampled(source, *left, guessed, said, too_long, **more)
    long = [len(row["input_ids"]) for row in rows if len(row["input_ids"]) > bound.limit]
    kept = [row for row in rows if len(row["input_ids"]) <= bound.limit]
    too_long = ""
    stops_for_some = source == "split" and settings.model.on_long == "error"  # what check or dedupe removes is no row
    is_refused = bool(long) and (stops_for_some or (is_all and not kept))
    if long:
        lengths, cure = lengths_in_words(long), bound.cure(max(long), settings.model.on_long)
        ends = _ends(len(long), settings.model.on_long, is_certain=is_refused)
        too_long = _too_long(len(long), among, f"longer than {bound}", ends, lengths, cure)
    said = f"from {which}, rendered{rest}"
    num_left = len(kept) if kept and settings.model.on_long == "quarantine" else len(rows)
    return Sampled(
        source,
        *_left(numbers, num_left / num_looked_at, user_provided),
        kept or rows,
        said,
        too_long,
        is_too_long=not kept,
        independent=alone,
        is_all=is_all,
        is_refused=is_refused,
        repeated=repeated / before,
    )


def _ends(number: int, on_long: str, *, is_certain: bool) -> str:
    """Say what render does with so many rows that are too long; only where it is certain does no stage remove them."""
    them = "it" if number == 1 else "them"
    if on_long == "quarantine":
        return f"render will quarantine {them}"
    return "render will stop" + ("" if is_certain else f", unless check, dedupe or split removes {them}")


def _probably_too_long(conversations: Sequence[list[Message]], among: str, model: Model, *, is_certain: bool) -> str:
    """Say which rows hardly any tokenizer writes in model.max_length tokens, by their characters; empty for none."""
    lengths = [sum(len(text["content"]) for text in _as_texts(messages, model)) for messages in conversations]
    long = [length for length in lengths if length > MOST_CHARACTERS_A_TOKEN * model.max_length]
    if not long:
        return ""
    than = f"probably longer than model.max_length={model.max_length} tokens"
    ends, cure = _ends(len(long), model.on_long, is_certain=is_certain), "raise model.max_length to train on them"
    if model.on_long != "quarantine":
        cure += ", or set model.on_long=quarantine to quarantine such rows"
    return _too_long(len(long), among, than, ends, f"{lengths_in_words(long)} characters", cure)


def _too_long(number: int, among: str, than: str, ends: str, lengths: str, cure: str) -> str:
    be, have = ("is", "it has") if number == 1 else ("are", "they have")
    return f"{among.format(number)} {be} {than}, so {ends}: {have} {lengths}; {cure}"


def _left(numbers: tuple[int, int, int], share: float, user_provided: Collection[str | None]) -> tuple[int, int, int]:
    """Return the training, validation and test rows that are left of `numbers`, by the `share` that is left of some.

    Nothing is known of the rows of a user-provided split. A split that has a row is not said to be empty.
    """
    left = (
        number if name in user_provided else max(min(1, number), round(share * number))
        for name, number in zip(("validation", "test"), numbers[1:], strict=True)
    )
    num_validation, num_test = left
    return max(1, round(share * numbers[0])), num_validation, num_test


def _checked(conversations: Sequence[list[Message]], checks: Checks) -> list[list[Message]]:
    """The conversations whose lengths check does not quarantine; all of them where none would be left."""
    bounds = [
        entry.arguments
        for entry in suite(checks.expectations)
        if isinstance(entry.arguments, LengthArguments) and entry.severity == "warning"
    ]
    return [each for each in conversations if all(_is_within(each, its) for its in bounds)] or [*conversations]


def _is_within(messages: Sequence[Message], bounds: LengthArguments) -> bool:
    turns = texts_of(messages)
    prompt, _ = prompt_and_answer(turns)
    answers = [len(turn["content"]) for turn in turns if turn["role"] == "assistant"] + [
        len(rejected_of(messages) or "")
    ]
    is_prompt_within = sum(len(turn["content"]) for turn in prompt) <= bounds.max_prompt_chars
    return is_prompt_within and max(answers) <= bounds.max_answer_chars


def _out_of_bounds(number: int) -> str:
    """Say how many of the rows check will quarantine for their length; "" where there are none."""
    of_rows = "one row is" if number == 1 else f"{number:,} rows are"
    said = f"{of_rows} left out, as check will quarantine {'it' if number == 1 else 'them'} (length_out_of_bounds)"
    return said if number else ""


def _shared(split: Split, drawn: float, given: Mapping[str, float]) -> tuple[int, int, int]:
    """Return the numbers of training, validation and test rows; a user-provided split has its own rows.

    A share is rounded, as split fills its splits where each row is a cluster of its own.
    Replay rows come on top of those that train, as many as split.replay allows.
    """
    validation, test = (
        0.0 if given.get(name) else share for name, share in (("validation", split.validation), ("test", split.test))
    )
    train = (1 - validation - test) * drawn + given.get("train", 0)
    most = split.replay * train / (1 - split.replay) if split.replay < 1 else inf
    num_train = int(train + min(given.get("replay", 0), most))
    num_validation, num_test = (
        int(given.get(name, 0) or share * drawn + 0.5) for name, share in (("validation", validation), ("test", test))
    )
    return num_train, num_validation, num_test


def _of_ingest(file: Path) -> tuple[int, dict[str, int], list[list[Message]], float]:
    """Return the number of rows to draw, of rows by use_as, some that may train, and the independent share.

    The independent share is the number of groups per row that may test, 0 to 1.
    """
    parquet, conversations = pq.ParquetFile(file), list[list[Message]]()
    columns = parquet.read(columns=["use_as", "group"])
    numbers = {each["values"]: each["counts"] for each in columns["use_as"].value_counts().to_pylist()}
    may_test = pc.field("use_as") == "test" if "test" in numbers else pc.field("use_as").is_null()
    groups = columns.filter(may_test)["group"]
    num_independent = groups.null_count + len(groups.drop_null().unique())
    for batch in parquet.iter_batches(1_000, columns=["use_as", "messages", "chat"]):
        may_train = pc.field("use_as").is_null() | ~pc.field("use_as").isin(["validation", "test"])
        conversations += map(conversation_of, batch.filter(may_train).to_pylist())
        if len(conversations) >= MOST_LOOKED_AT:
            break
    alone = num_independent / len(groups) if len(groups) else 1.0
    num_drawn, given = numbers.pop(None, 0), {use: n for use, n in numbers.items() if use}
    return num_drawn, given, conversations[:MOST_LOOKED_AT], alone


def _repeated_of_ingest(file: Path) -> float:
    """Return the share of exact duplicates among the rows to draw, told from the first where the file is large."""
    hashes, num_bytes = [np.empty(0, np.uint64)], 0
    for batch in pq.ParquetFile(file).iter_batches(10_000, columns=["use_as", "messages", "chat"]):
        drawn = batch.filter(pc.field("use_as").is_null())
        hashes += [hashed_conversations(drawn["messages"], drawn["chat"])[2][:, 0]] if len(drawn) else []
        num_bytes += batch.nbytes
        if num_bytes > MOST_BYTES:
            break
    return repeated_share(np.concatenate(hashes))


def _left_out(repeated: int) -> str:
    """Say how many exact duplicates are not counted; "" where there are none."""
    is_one = repeated == 1
    return f"about {counted(repeated, 'exact duplicate')} {'is' if is_one else 'are'} left out" if repeated else ""


def _quarantined(first: Sample) -> str:
    """Say how many records ingest will quarantine, which are not counted; "" where there are none."""
    number = ceil(first.refused)
    about = "" if first.is_all and number == first.refused else "about "
    return f"{about}{counted(number, 'record')} will be quarantined by ingest" if number else ""


def base_here(settings: Settings, made: Artifact | None) -> Base | None:
    """The base as a folder: as the stage made it, or where the settings name one."""
    if isinstance(made, Base):
        return made.model_copy(update={"chat_template": chat_templates.text(settings.model.chat_template)})
    folder = Path(settings.model.base).expanduser()
    return _base_in(folder, settings.model) if folder.is_dir() else None


def _base_in(folder: Path, model: Model) -> Base:
    return Base(
        folder=folder.absolute(),
        reference=model.base,
        revision=model.revision,
        location=Path(),
        weights_digest="",
        chat_template=chat_templates.text(model.chat_template),
    )


def _unpacked(model: Model, folder: Path) -> Base | None:
    """The base without weights: its tokenizer from a GGUF file, made in `folder`, or from the hub's cache if there.

    It takes seconds, so only rows with tools are worth it: the template alone knows how it writes them.
    """
    if model.base.startswith("package:"):
        from transformers import AutoConfig, AutoTokenizer

        file = package_file(model.base)
        with reading_gguf():
            for kind in (AutoConfig, AutoTokenizer):
                kind.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True).save_pretrained(folder)
        return _base_in(folder, model)
    cached = shapes.folder_of(model.base, model.revision)
    return _base_in(cached, model) if any((cached / name).is_file() for name in TOKENIZER_FILES) else None


def _as_texts(messages: Sequence[Message], model: Model) -> list[dict[str, str]]:
    """The messages as role and text, with tools and reasoning where a chat template writes about as much of them."""
    texts = texts_of(messages)
    if tools := tools_of(messages):
        texts = [{"role": "system", "content": json.dumps(tools, ensure_ascii=False)}, *texts]
    if model.reasoning != "dropped":
        thoughts = [message.get("reasoning_content") or "" for message in messages]
        texts[-len(thoughts) :] = [
            text | {"content": thought + text["content"]}
            for text, thought in zip(texts[-len(thoughts) :], thoughts, strict=True)
        ]
    return texts


def _guessed(messages: Sequence[Message], model: Model) -> work.Row:
    row, rejected = work.guessed(_as_texts(messages, model)), rejected_of(messages)
    row = {**row, "undesirable": is_undesirable(messages)}
    if rejected is None:
        return row
    other = work.guessed([{"role": "assistant", "content": rejected}])
    return {**row, "rejected_ids": other["input_ids"][other["prompt_length"] :]}


def _rendered(conversations: Sequence[Sequence[Message]], base: Base | None, model: Model) -> list[work.Row] | None:
    """The conversations that can be trained as tokens; None where that cannot be said without the base."""
    if base is None:
        return None
    try:
        chat = Chat(load_tokenizer(base), base.weights)
    except (OSError, ValueError):  # of the tokenizer's files; the run says what is wrong with them
        return None
    if any(map(tools_of, conversations)):
        chat.require_tools(model.chat_template)
    made = tokenize(chat, conversations, last_only=False, reasoning=model.reasoning)
    rejected = tokenize_rejected(chat, conversations, model.reasoning)
    rows: list[work.Row] = []
    for at, each in enumerate(made):
        if isinstance(each, Tokenized):
            row = {"input_ids": each.input_ids, "labels": each.labels, "prompt_length": each.prompt_length}
            row["undesirable"] = is_undesirable(conversations[at])
            other = rejected.get(at)
            rows.append(row | ({"rejected_ids": other.answer_ids} if isinstance(other, Tokenized) else {}))
    return rows or None
