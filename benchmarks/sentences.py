"""Text for benchmarks: walks along the word pairs of real sentences, and sentences with blanks in several languages.

A walk has the words and the rhythm of the real sentences, but hardly ever much in common with them or another walk.
Names and numbers are drawn anew, names from an open vocabulary with a heavy tail: more text brings more words, as in
real text (Heaps' law), and near duplicates by chance stay rare.
"""

import json
import re
import tomllib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

OWN_SENTENCES = 20_000
NAME, NUMBER = "\ue000", "\ue001"  # stand in a text for what is drawn anew
BLANK = re.compile(f"[{NAME}{NUMBER}]")
FIELD = re.compile(r"{(\w+)}")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
WRITTEN_NUMBER = re.compile(r"\d[\d.,:]*\d|\d")
WRITTEN_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+\b")
COMMON_NAMES, TAIL = 50, 0.65
MORE_WORDS = 12  # a walk may be so many longer than asked for, to end with a sentence


def heavy_tailed(random: Random, common: int) -> int:
    """A rank from 0 on, of a Lomax distribution: of n ranks in the order of n ** TAIL are different."""
    return int(common * ((1 - random.random()) ** (-1 / TAIL) - 1))


def number(random: Random) -> str:
    """A number of one to five digits, small ones more often."""
    return str(int(10 ** (5 * random.random() ** 1.5)))


class Language:
    """Sentences with blanks, and what fills them."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.between: str = table["between"]
        self.syllables: list[str] = table["syllables"].split()
        words = {blank: text.split() for blank, text in table.items() if isinstance(text, str)}
        choices = {blank: [word.replace("_", " ") for word in found] for blank, found in words.items()}
        choices |= {"name": [NAME], "number": [NUMBER]}
        self.sentences = [
            [choices[part] if i % 2 else [part] for i, part in enumerate(FIELD.split(sentence))]
            for sentence in table["sentences"]
        ]
        self.common_names = [self._spelt(rank) for rank in range(20 * COMMON_NAMES)]

    def text(self, random: Random, num_sentences: int) -> str:
        """So many sentences, with NAME and NUMBER where one is to be drawn."""
        draw = random.random
        chosen = [self.sentences[int(draw() * len(self.sentences))] for _ in range(num_sentences)]
        return self.between.join("".join([part[int(draw() * len(part))] for part in parts]) for parts in chosen)

    def name(self, random: Random) -> str:
        """A coined name of two to six syllables; a few names are frequent, most are rare."""
        rank = heavy_tailed(random, COMMON_NAMES)
        return self.common_names[rank] if rank < len(self.common_names) else self._spelt(rank)

    def _spelt(self, rank: int) -> str:
        rest, parts = rank + len(self.syllables), []
        while rest and len(parts) < 6:
            rest, part = divmod(rest, len(self.syllables))
            parts.append(self.syllables[part])
        return "".join(parts).capitalize()

    def filled(self, text: str, random: Random) -> str:
        """The text with names and numbers drawn."""
        return BLANK.sub(lambda blank: self.name(random) if blank[0] == NAME else number(random), text)


def read_languages() -> dict[str, Language]:
    """The languages of sentences.toml by name."""
    tables = tomllib.loads(Path(__file__).with_name("sentences.toml").read_text(encoding="utf-8"))
    return {name: Language(table) for name, table in tables.items()}


class Chain:
    """The word pairs of sentences, and walks along them."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.starts: list[str] = []
        self.after: dict[str, list[str]] = {}
        for sentence in sentences:
            words = WRITTEN_NAME.sub(NAME, WRITTEN_NUMBER.sub(NUMBER, sentence)).split()
            self.starts.append(words[0])
            for word, following in pairwise(words):
                self.after.setdefault(word, []).append(following)

    def text(self, random: Random, num_words: int) -> str:
        """A walk that ends with the first sentence end from `num_words` on, at the latest MORE_WORDS later."""
        draw, after, starts = random.random, self.after, self.starts
        words: list[str] = []
        following = starts
        for length in range(1, num_words + MORE_WORDS + 1):
            word = following[int(draw() * len(following))]
            words.append(word)
            if length >= num_words and word[-1] in ".?!":
                break
            following = after.get(word, starts)
        return " ".join(words)


def read_sentences(files: Iterable[Path]) -> list[str]:
    """The different sentences of four words or more in the texts of JSONL records; JSON inside of them is left out."""
    found: dict[str, None] = {}
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                texts = (text for text in json.loads(line).values() if isinstance(text, str))
                for text in texts:
                    if not text.startswith(("{", "[")):
                        found.update(dict.fromkeys(SENTENCE_END.split(text)))
    return [sentence for sentence in found if len(sentence.split()) >= 4]


def own_sentences(english: Language) -> list[str]:
    """Sentences that stand in for real ones."""
    random = Random(0)
    return [english.text(random, 1) for _ in range(OWN_SENTENCES)]
