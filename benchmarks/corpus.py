"""Instruction rows at any scale, with planted duplicates and rows that only look like duplicates.

Short messages with a label, bookings, notices of which many share a template, problems with numbers, long questions,
chats, notes with a JSON answer, and five languages, two of them without spaces. The truth about each planted row is
written beside the rows, in <name>.truth.jsonl: its line, the line it was made from, its kind (benchmarks/plants.py).

    .venv/bin/python benchmarks/corpus.py rows.jsonl --rows 100000 --files data/*.jsonl    # no files: own sentences
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from plants import Plant, Planter, Row
from sentences import Chain, heavy_tailed, number, own_sentences, read_languages, read_sentences

PLANTED_SHARE = 0.07
FIRST_PLANT = 100  # the line before which there is too little to make rows from
NUM_LABELS = 60
COMMON_TEMPLATES = 50
OPENINGS = ("I want a table", "Reserve the back room", "Do you have space", "We need seats")


class Writer:
    """Makes fresh rows, each of a source that is drawn."""

    def __init__(self, random: Random, files: Iterable[Path]) -> None:
        self.random = random
        self.languages = read_languages()
        self.english = self.languages.pop("english")
        self.foreign_names = list(self.languages)
        self.chain = Chain(read_sentences(files) or own_sentences(self.english))
        self.templates: dict[int, str] = {}
        self.labels = [self.label() for _ in range(NUM_LABELS)]
        makers = {
            self.message: 39,
            self.booking: 8,
            self.notice: 6,
            self.problem: 10,
            self.letter: 7,
            self.chat: 10,
            self.note: 8,
            self.foreign: 12,
        }
        self.makers = [maker for maker, weight in makers.items() for _ in range(weight)]

    def fresh(self) -> Row:
        """A new row."""
        return self.random.choice(self.makers)()

    def text(self, fewest: int, most: int) -> str:
        """A text of about that many words."""
        walk = self.chain.text(self.random, fewest + int(self.random.random() * (most - fewest)))
        return self.english.filled(walk, self.random)

    def label(self) -> str:
        """Two words of the text."""
        words = [word for word in self.text(8, 9).lower().split() if word.isalpha()]
        return "_".join(words[:2]) or "other"

    def message(self) -> Row:
        """A short message and its label."""
        text = self.text(4, 24)
        if self.random.random() < 0.02:
            text += f" Call me on +1 202 555 {self.random.randrange(10_000):04}."
        instruction = f"Classify the customer's message into one of {NUM_LABELS} labels. Answer with the label only."
        return Row("message", instruction, text, self.random.choice(self.labels))

    def booking(self) -> Row:
        """Slots in a sentence, in any order, and JSON with them."""
        random, name = self.random, self.english.name(self.random)
        slots = {
            "place": name,
            "guests": random.randrange(2, 40),
            "day": f"{random.randrange(1, 13)}/{random.randrange(1, 29)}",
        }
        said = [f"at {name}", f"for {slots['guests']}", f"on {slots['day']}", f"because {self.text(4, 9)}"]
        random.shuffle(said)
        text = " ".join([random.choice(OPENINGS), *said])
        return Row("booking", "Extract the booking as JSON.", text, json.dumps(slots), slot=name)

    def notice(self) -> Row:
        """A template with a name and numbers, and JSON with some of them.

        A few templates are frequent and most are rare: the more rows, the more templates, and the more rows of each.
        """
        name, amount = self.english.name(self.random), self.random.randrange(1_000, 100_000)
        template = self.template(heavy_tailed(self.random, COMMON_TEMPLATES))
        text = f"{name} {self.english.filled(template, self.random)} {amount}."
        return Row("notice", "", text, json.dumps({"name": name, "amount": amount}), slot=name)

    def template(self, rank: int) -> str:
        """The template with this rank, with blanks; the same whenever it is asked for."""
        if rank not in self.templates:
            random = Random(rank)
            self.templates[rank] = self.chain.text(random, random.randrange(8, 20))
        return self.templates[rank]

    def problem(self) -> Row:
        """Sentences with numbers, and a worked answer."""
        told = " ".join(f"{self.text(6, 14)} {number(self.random)}." for _ in range(3))
        return Row("problem", "", f"{told} {self.text(4, 8)}", f"{self.text(15, 40)} #### {number(self.random)}")

    def letter(self) -> Row:
        """A question in prose of 60 to 150 words, and a long answer."""
        return Row("letter", "", self.text(60, 140), self.text(30, 80))

    def chat(self) -> Row:
        """Two or three questions with their answers."""
        earlier = [self.text(8, 20) for _ in range(self.random.choice([2, 4]))]
        return Row("chat", "", self.text(8, 20), self.text(12, 35), earlier=tuple(earlier))

    def note(self) -> Row:
        """A note, and JSON about it."""
        fields = {
            "title": self.text(3, 6),
            "owner": self.english.name(self.random),
            "urgent": self.random.random() < 0.3,
        }
        return Row("note", "Turn the note into JSON.", self.text(15, 45), json.dumps(fields))

    def foreign(self) -> Row:
        """Two to four sentences of a language other than English, and an answer in it."""
        name = self.random.choice(self.foreign_names)
        language = self.languages[name]
        prompt, answer = (language.text(self.random, count) for count in (self.random.randrange(2, 5), 1))
        return Row(name, "", language.filled(prompt, self.random), language.filled(answer, self.random))


def make(num_rows: int, seed: int, files: Iterable[Path] = ()) -> Iterator[tuple[Row, Plant | None]]:
    """So many rows, one after the other; the same ones for the same seed and files."""
    random = Random(seed)
    writer, planter = Writer(random, files), Planter(random)
    for line in range(1, num_rows + 1):
        planted = None
        if line > FIRST_PLANT and random.random() < PLANTED_SHARE:
            planted = planter.planted(line, writer.english.name(random))
        if planted is None:
            planted = writer.fresh(), None
            planter.keep(line, planted[0])
        yield planted


def write(path: Path, num_rows: int, seed: int = 0, files: Iterable[Path] = ()) -> Path:
    """Writes the rows to `path`, and what was planted to the file that is returned."""
    truth = path.with_suffix(".truth.jsonl")
    encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each row
    with path.open("w", encoding="utf-8") as rows, truth.open("w", encoding="utf-8") as plants:
        for row, plant in make(num_rows, seed, files):
            rows.write(encode(row.record()) + "\n")
            if plant:
                plants.write(encode(vars(plant)) + "\n")
    return truth


def main() -> None:
    """Writes a corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=Path, nargs="*", default=(), help="JSONL whose sentences the text is made from")
    arguments = parser.parse_args()
    print(write(arguments.path, arguments.rows, arguments.seed, arguments.files))


if __name__ == "__main__":
    main()
