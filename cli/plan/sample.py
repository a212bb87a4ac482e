"""Rows as a plan takes them before render has made any: some conversations, rendered where the base is here."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tunewright.artifacts import Artifact, Base, Rows, Splits
from tunewright.config import Model, Settings
from tunewright.cost_model import work
from tunewright.modeling import chat_templates
from tunewright.modeling.chat import Chat, Message, Tokenized, tokenize
from tunewright.modeling.models import load_tokenizer
from tunewright.tasks.ingest.sampling import Sample
from tunewright.tasks.render import bound_of, lengths_in_words


class Sampled(NamedTuple):
    """Rows that train, as far as some of them tell; and in words what they are of, and which are too long."""

    source: work.Source
    num_rows: int
    num_validation: int
    rows: Sequence[work.Row]
    said: str
    too_long: str = ""
    is_too_long: bool = False  # all of them


def sampled(settings: Settings, base: Base | None, made: Artifact | None, first: Sample | None) -> Sampled | None:
    """Some of the rows that split or ingest made, or the `first` of the sources; None without any."""
    share, validation = 1 - settings.split.validation - settings.split.test, settings.split.validation
    if isinstance(made, Splits):
        number, conversations = work.conversations_in(made.path("train.parquet"))
        train, num_validation, source = number, made.num_validation, "split"
    elif isinstance(made, Rows) and made.num_rows:
        number, conversations = work.conversations_in(made.path("rows.parquet"))
        train, num_validation, source = int(share * number), int(number * validation), "ingest"
    else:
        if first is None:
            return None
        number, conversations = first.drawn + first.train, first.conversations
        train, num_validation = int(share * first.drawn + first.train), int(validation * first.drawn)
        source = "sample"
    which = _which(source, len(conversations), number, first, settings.data.limit)
    rows = _rendered(conversations, base, settings.model)
    if rows is None:
        guessed = [work.stand_in(work.guessed(messages), at) for at, messages in enumerate(conversations)]
        return Sampled(source, max(1, train), num_validation, guessed, f"from the texts of {which}")
    assert base
    bound = bound_of(base, settings.model)
    long = [len(row["input_ids"]) for row in rows if len(row["input_ids"]) > bound.limit]
    kept = [row for row in rows if len(row["input_ids"]) <= bound.limit]
    too_long = ""
    if long:
        ends = "render will stop" if settings.model.on_long == "error" else "render will drop them"
        too_long = (
            f"{len(long):,} of {which} are longer than {bound}, so {ends}: they have {lengths_in_words(long)}; "
            f"{bound.cure(max(long))}"
        )
    said = f"from {which}, rendered"
    return Sampled(source, max(1, train), num_validation, kept or rows, said, too_long, is_too_long=not kept)


def _which(source: work.Source, looked: int, number: float, first: Sample | None, limit: int | None) -> str:
    """Which rows were looked at, and of how many."""
    of = "the sources" if source == "sample" else source
    is_all = first.is_all if source == "sample" and first else looked >= number
    which = f"{'the' if is_all else 'the first'} {looked:,} rows of {of}"
    is_drawn = source == "sample" and limit is not None and looked > number
    return f"{which}, of which data.limit draws {number:,.0f}" if is_drawn else which


def base_here(settings: Settings, made: Artifact | None) -> Base | None:
    """The base as a folder: as the stage made it, or where the settings name one."""
    template = chat_templates.text(settings.model.chat_template)
    if isinstance(made, Base):
        return made.model_copy(update={"chat_template": template})
    folder = Path(settings.model.base).expanduser()
    if not folder.is_dir():
        return None
    return Base(
        folder=folder.absolute(),
        reference=settings.model.base,
        revision=None,
        location=Path(),
        weights_digest="",
        chat_template=template,
    )


def _rendered(conversations: Sequence[Sequence[Message]], base: Base | None, model: Model) -> list[work.Row] | None:
    """The conversations that can be trained as tokens; None where that cannot be said without the base."""
    if base is None:
        return None
    try:
        chat = Chat(load_tokenizer(base), base.weights)
    except (OSError, ValueError):  # of the tokenizer's files; the run says what is wrong with them
        return None
    made = tokenize(chat, conversations, last_only=False)
    rows: list[work.Row] = [
        {"input_ids": each.input_ids, "labels": each.labels} for each in made if isinstance(each, Tokenized)
    ]
    return rows or None
