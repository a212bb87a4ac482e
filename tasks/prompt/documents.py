"""A team's own documents in passages, the most similar of which stand before a question (retrieval augmentation)."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel

from tunewright.artifacts import MESSAGES
from tunewright.config import outside
from tunewright.errors import ConfigError
from tunewright.machine import globs
from tunewright.tools.conversation import Conversation, Message, tools_of

SETTING = "evaluation.documents"
MOST_BYTES = 50_000_000  # of all documents
PASSAGE = 1_000  # characters, and a heading
PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
# Also of Arabic, Urdu and Ethiopic; of Hindi, Burmese and Khmer; and without a space of Chinese and Japanese.
SENTENCE_END = re.compile(r"(?<=[.!?\u061f\u06d4\u1362\u0964\u104b\u17d4])(?=\s)|(?<=[\u3002\uff01\uff1f])")
LONGEST = PASSAGE // 2 - 2  # characters of a part of a paragraph; a passage has room for two, with blank lines
HEADING = re.compile(r"#{1,6} .*")
OPENING = "Passages that may help:"


class TextFile(BaseModel, frozen=True):
    """A text file, by what it holds."""

    name: str
    sha256: str
    path: Path


@dataclass(frozen=True)
class PassagePool:
    """The passages of all documents, as what can stand before a question."""

    texts: list[str]
    names: list[str]  # such as "handbook.md 12"

    @property
    def rows(self) -> pa.Table:
        """The passages as questions, in the column that retrievers compare."""
        turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": ""}] for text in self.texts]
        return pa.table({"messages": pa.array(turns, MESSAGES)})

    def ids(self, chosen: Sequence[int]) -> list[str]:
        """The names of some passages."""
        return [self.names[at] for at in chosen]

    def before(self, chosen: Sequence[int], messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with some passages before the last question."""
        last = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is None or not chosen:
            return messages
        said = "\n\n---\n\n".join([OPENING, *(self.texts[at] for at in chosen), messages[last]["content"]])
        asked = [*messages[:last], messages[last] | {"content": said}, *messages[last + 1 :]]
        return Conversation(asked, tools_of(messages)) if isinstance(messages, Conversation) else asked


def documents(patterns: Sequence[str]) -> tuple[TextFile, ...]:
    """The files that evaluation.documents names, in order. Raises ConfigError for one that is missing or no text."""
    named = [(f"{SETTING}[{number}]", path) for number, each in enumerate(patterns) for path in _matches(number, each)]
    size = sum(path.stat().st_size for _, path in named)
    if size > MOST_BYTES:
        raise ConfigError(f"{SETTING}: {size:,} bytes in {len(named):,} files; accepted: at most {MOST_BYTES:,} bytes")
    found: list[TextFile] = []
    for setting, path in named:
        content = path.read_bytes()
        _stop_unless_text(f"{setting}={path}", content)
        found.append(TextFile(name=path.name, sha256=hashlib.sha256(content).hexdigest(), path=path))
    return tuple({document.sha256: document for document in reversed(found)}.values())[::-1]


def _matches(number: int, pattern: str) -> list[Path]:
    """The files that one entry names. Raises ConfigError where there are none, or one that may not be read."""
    setting, given = f"{SETTING}[{number}]", Path(pattern).expanduser()
    try:
        paths = [given] if given.is_file() else [*map(Path, globs.matches(str(given)))]
    except ValueError as error:
        raise ConfigError(f"{setting}={pattern}: {error}") from error
    files = [path for path in paths if path.is_file()]
    if not files:
        what = "a folder" if given.is_dir() else "no such file"
        raise ConfigError(f"{setting}={pattern}: {what}; accepted: text files, or globs such as docs/*.md")
    for path in files:
        outside.check_path(setting, str(path))  # a glob may match a link that leads elsewhere
    return files


def _stop_unless_text(place: str, content: bytes) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{place}: byte {error.start:,} is not UTF-8; accepted: text or Markdown in UTF-8, not PDF or Word"
        ) from None
    if not text.strip():
        raise ConfigError(f"{place}: the file is empty; accepted: text or Markdown in UTF-8")


def read(files: Sequence[TextFile]) -> PassagePool:
    """Divide the documents into passages."""
    named = [(f"{file.name} {n}", text) for file in files for n, text in enumerate(passages(_text(file)), start=1)]
    return PassagePool([text for _, text in named], [name for name, _ in named])


def _text(file: TextFile) -> str:
    content = file.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ConfigError(f"{SETTING}: {file.path} changed while the run read it; start the run again")
    return content.decode("utf-8-sig").replace("\r\n", "\n")


def passages(text: str) -> Iterator[str]:
    """Yield paragraphs put together to about PASSAGE characters; each begins with the heading that it stands under."""
    heading, held = "", ""
    for paragraph in _paragraphs(text):
        is_heading = HEADING.fullmatch(paragraph)
        if held and (is_heading or len(held) - len(heading) + len(paragraph) + 2 > PASSAGE):
            if held != heading:
                yield held
            held = "" if is_heading else heading
        heading = paragraph if is_heading else heading
        held = f"{held}\n\n{paragraph}" if held else paragraph
    if held:
        yield held


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs, each heading as one of its own, long ones divided at sentences, lines or words, or anywhere."""
    for block in PARAGRAPH_END.split(text):
        lines = block.strip().split("\n")
        while lines and HEADING.fullmatch(lines[0].strip()):
            yield lines.pop(0).strip()
        held = ""
        for sentence in SENTENCE_END.split("\n".join(lines)):
            for piece in _pieces(sentence):
                if held.strip() and len(held) + len(piece) > LONGEST:
                    yield held.strip()
                    held = ""
                held += piece
        if held.strip():
            yield held.strip()


def _pieces(sentence: str) -> Iterator[str]:
    """Yield the sentence in pieces of at most LONGEST characters."""
    while len(sentence) > LONGEST:
        ends = (sentence.rfind(blank, 1, LONGEST) for blank in "\n ")
        end = next((end for end in ends if end > 0), LONGEST)
        yield sentence[:end]
        sentence = sentence[end:]
    yield sentence
