"""The columns of a batch: what each detector sees in which turns, alike however the rows are batched."""

import pickle
from functools import partial

import pandas as pd

from tunewright.data_checks.columns import Columns, Turn, derive


def said(*texts: str, system: str = "") -> list[Turn]:
    turns: list[Turn] = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def one(turns: list[Turn], column: str) -> object:
    value = derive([turns], ("<|im_end|>",))[column][0]
    return None if pd.isna(value) else value


ENGLISH, GERMAN = "Where is the parcel that I ordered?", "Das Paket wurde gestern an Sie verschickt."


def test_the_languages_are_those_of_the_last_question_and_the_last_answer() -> None:
    turns = said(GERMAN, ENGLISH, ENGLISH, GERMAN, system=GERMAN)
    assert (one(turns, "prompt_language"), one(turns, "answer_language")) == ("en", "de")
    unclear_at_the_end = said(GERMAN, ENGLISH, "ok?", "yes")
    assert [one(unclear_at_the_end, f"{part}_language") for part in ("prompt", "answer")] == ["de", "en"]
    assert one(said(ENGLISH, "card_arrival"), "answer_language") is None
    assert one(said(ENGLISH), "answer_language_confidence") is None


def test_the_language_of_a_prompt_is_that_of_its_input_and_not_of_an_instruction_that_all_rows_have() -> None:
    assert one(said(f"Classify the message of the customer.\n\n{GERMAN}", "x"), "prompt_language") == "de"
    assert one(said('Extract the slots of this request.\n\n{"a": 1}', "x"), "prompt_language") == "en"


def test_secrets_and_personal_data_are_seen_in_every_turn_and_told_masked() -> None:
    turns = said("a", "b", system="Reach Ann under ann.lee@bluewin.ch, api_key=9fQz77LmWx")
    assert one(turns, "personal") == "e-mail address a\u2026@b\u2026.ch"
    assert one(turns, "secret") == "Password or Key 9\u2026"
    assert one(said("ann.lee@bluewin.ch", "or +41 44 668 18 00"), "personal") == (
        "e-mail address a\u2026@b\u2026.ch, phone number +4\u202600"
    )


def test_refusals_and_cut_offs_are_seen_in_answers_alone() -> None:
    refused, cut = "I'm sorry, but I can't help with that.", '{"a": ['
    assert one(said("q", refused, "q", "fine"), "refusal") == "I'm sorry, but I can't help with"
    assert one(said("q", "fine", "q", cut), "cut_off") == "its JSON is left open"
    assert one(said(refused, "fine"), "refusal") is one(said(cut, "fine"), "cut_off") is None


def test_mojibake_is_seen_in_every_turn() -> None:
    assert one(said("Is the cafÃ© open?", "yes"), "mojibake") == "cafÃ© for café"


def test_only_the_wanted_columns_are_derived_and_are_the_same() -> None:
    rows = [said(ENGLISH, GERMAN), said("a", "TODO"), [], None]
    everything = derive(rows, ())
    assert list(everything) == list(Columns._fields)
    wanted = ("cut_off", "answer_language_confidence", "placeholder")
    some = derive(rows, (), wanted)
    assert set(some) == set(wanted)
    pd.testing.assert_frame_equal(some, everything[list(some)])


def test_a_batch_can_be_derived_in_another_process_and_alone() -> None:
    rows = [said(ENGLISH, GERMAN), said("ann.lee@bluewin.ch", "TODO"), said("<|im_end|>", "x")]
    work = pickle.loads(pickle.dumps(partial(derive, special_tokens=("<|im_end|>",))))
    together = work(rows)
    alone = pd.concat([work([row]) for row in rows], ignore_index=True)
    assert together.astype(object).fillna("-").equals(alone.astype(object).fillna("-"))
