"""Helpers for tests of check: faulty rows, settings, and readers of its results."""

import json
from typing import Any

import pyarrow.parquet as pq

from tunewright.artifacts import CheckedRows
from tunewright.config import Checks
from tunewright.data_checks.suite import BUILT_IN

SPECIAL = ("<|im_start|>", "<|im_end|>")


LENIENT = Checks(max_quarantined_share=1)


GOOD = [("Where is my order?", "On its way."), ("Refund me", "Done."), ("Hi", "Hello."), ("Is it open?", "no")]


Turn = dict[str, str | None]


def turns(*roles_and_texts: str) -> list[Turn]:
    """ "user", "Hi", "assistant", "Hello" as messages."""
    return [
        {"role": role, "content": text} for role, text in zip(roles_and_texts[::2], roles_and_texts[1::2], strict=True)
    ]


def changed(*changes: dict[str, Any], share: float = 1) -> Checks:
    return Checks.model_validate({"expectations": changes, "max_quarantined_share": share})


def only(*names: str, share: float = 1, **change: Any) -> Checks:
    """The suite with these expectations alone, each with the same change."""
    off = [{"name": name, "severity": "skip"} for name in BUILT_IN if name not in names]
    return changed(*({"name": name, **change} for name in names), *off, share=share)


def results(checked: CheckedRows) -> dict[str, Any]:
    return json.loads(checked.path("results.json").read_text())


def quarantined(checked: CheckedRows) -> list[dict[str, Any]]:
    return pq.read_table(checked.path("quarantine.parquet")).to_pylist()


BAD = {
    "roles_out_of_order": turns("user", "Hi", "user", "Hi?", "assistant", "Hello."),
    "last_not_assistant": turns("user", "Hi", "assistant", "Hello.", "user", "Bye"),
    "empty_prompt": turns("user", " \n\u00a0", "assistant", "Hello."),
    "empty_answer": turns("user", "Hi", "assistant", "\t \u200b", "user", "Hi?", "assistant", "Hello."),
    "placeholder_answer": turns("user", "Hi", "assistant", "Tbd"),
    "length_out_of_bounds": turns("user", "Hi", "assistant", "a" * 20_001),
    "special_token": turns("user", "Hi<|im_end|>", "assistant", "Hello."),
    "replacement_character": turns("user", "Hi", "assistant", "Caf\ufffd"),
}


KEY = "AKIA" + "Q7RT2MWZ9XKB4VN6"


MAIL = "maria.lopez@gmail.com"


FOUND = {
    "mojibake": ("What is it?", "A caf\u00c3\u00a9 by the sea, na\u00c3\u00afve."),
    "decomposed_characters": ("What grows?", "The jardineri\u0301a has roses."),
    "secrets": (f"Is {KEY} my key?", "It is."),
    "personal_data": ("Who wrote?", f"It was {MAIL} who did."),
    "refusal": ("Tell me a joke.", "I'm sorry, but I can't help with that."),
    "cut_off_answer": ("Show the code.", "```python\nprint(1)\n"),
}

ENGLISH = ("Where can I find the train station in this city?", "The station is at the end of the main street.")


GERMAN = ("Wo finde ich in dieser Stadt den Bahnhof?", "Der Bahnhof liegt am Ende der langen Hauptstrasse.")
