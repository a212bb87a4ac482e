"""Definition of each name in the suite: a few Great Expectations expectations on columns of a frame.

There are three frames. The rows' frame has the columns of the row table without `messages`, and those that columns.py
derives from the messages. The set's frame has one line, with a column for each measure of profile.py. A class of the
team's may name any column of the rows' frame, and the texts themselves: `answer` is the last answer, and `prompt` the
turns before it, joined by line breaks.

To add a built-in: derive its columns in columns.py, name it in suite.py, define it here.
"""
# pyright: reportPrivateImportUsage=false
# Great Expectations does not mark its public names as exported.

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from great_expectations import expectations as gxe

from tunewright.data_checks.answers import MIN_PROSE, length_cap
from tunewright.data_checks.own import TEXTS, looks_at_texts, own_expectation
from tunewright.data_checks.profile import Measure
from tunewright.data_checks.rules import Expected, Rule, between, expected, matches, nothing
from tunewright.data_checks.suite import BUILT_IN, Entry
from tunewright.privacy.excerpts import clipped, in_a_line

ANSWER = "assistant(?: tool(?: tool)* assistant)*"  # with the results of the tools that it calls on its way
ROLES_IN_ORDER = rf"^(?:system )?user(?: {ANSWER} user)*(?: {ANSWER})?$"
ANYTHING = ""
ENDS_WITH_ANSWER = r"(?:^| )assistant$"
REJECTED = "rejected or undesirable answer"
RARE_LABELS = 3  # that are named
LABEL_CHARS = 40  # of each


def row_expectations(suite: Sequence[Entry], frame: pd.DataFrame) -> list[Expected]:
    """Return the expectations on the rows of `frame`, in the suite's order, without those on texts or on the set."""
    return [
        each
        for entry in suite
        if entry.own or entry.name in ROW_RULES
        for each in ([own_expectation(entry)] if entry.own else expected(entry, ROW_RULES[entry.name](entry, frame)))
        if not looks_at_texts(each)
    ]


def conflict_expectations(suite: Sequence[Entry]) -> list[Expected]:
    """Return the expectations on rows beside each other, known once rows that fail by themselves are quarantined."""
    return [
        each
        for entry in suite
        if entry.name in CONFLICT_RULES
        for each in expected(entry, CONFLICT_RULES[entry.name](entry.arguments))
    ]


def set_expectations(suite: Sequence[Entry], measures: Mapping[str, Measure]) -> list[Expected]:
    """Return the expectations on the measures of the set, in the suite's order."""
    return [
        each
        for entry in suite
        if entry.name in SET_RULES
        for each in expected(entry, SET_RULES[entry.name](entry.arguments, measures))
    ]


def _length_out_of_bounds(entry: Entry, _: pd.DataFrame) -> list[Rule]:
    a: Any = entry.arguments
    prompt, least, most = a.max_prompt_chars, a.min_answer_chars, a.max_answer_chars
    answer, rejected = (f"{said} has {{value}} characters" for said in ("an answer", f"the {REJECTED}"))
    over = f"the prompt has {{value}} characters, more than max_prompt_chars={prompt}"
    return [
        between(over, "prompt_chars", most=prompt),
        between(f"{answer}, fewer than min_answer_chars={least}", "min_answer_chars", least=least),
        between(f"{answer}, more than max_answer_chars={most}", "max_answer_chars", most=most),
        between(f"{rejected}, more than max_answer_chars={most}", "rejected_chars", most=most),
    ]


def _language(entry: Entry, frame: pd.DataFrame) -> list[Rule]:
    a: Any = entry.arguments
    accepted = list(a.languages)
    if not accepted:
        counts = pd.concat([frame["prompt_language"], frame["answer_language"]]).value_counts()
        least = min(a.min_share * counts.sum(), counts.max() if len(counts) else 0)
        accepted = sorted(counts.index[counts >= least])
    return [
        Rule(
            f"the {part} seems not to be in {' or '.join(accepted)}: {{value}}",
            gxe.ExpectColumnValuesToBeInSet(column=f"{part}_language", value_set=accepted),
        )
        for part in TEXTS
    ]


def _cut_off_answer(_: Entry, frame: pd.DataFrame) -> list[Rule]:
    rules = [nothing("an answer looks cut off: {value}", "cut_off")]
    lengths, numbers = np.unique(frame["max_answer_chars"].dropna().to_numpy(dtype=np.int64), return_counts=True)
    cap = length_cap(dict(zip(lengths.tolist(), numbers.tolist(), strict=True)))
    if cap is not None and cap >= MIN_PROSE:  # below, many answers may be the same label
        fault = "an answer has {value} characters, the length at which many are cut off"
        at_cap = gxe.ExpectColumnValuesToNotBeInSet(column="max_answer_chars", value_set=[cap])
        rules.append(Rule(fault, at_cap))
    return rules


def _no_json_answer(entry: Entry, frame: pd.DataFrame) -> list[Rule]:
    a: Any = entry.arguments
    share = frame["no_json"].isna().mean() if len(frame) else 1.0
    fault = "an answer is no JSON, as nearly all others are: {value}"
    return [nothing(fault, "no_json") if share >= a.min_share else matches(fault, "no_json", ANYTHING)]


def _of_kinds(fault: str, column: str, entry: Entry) -> list[Rule]:
    """A column tells one of each kind: "IBAN DE…00, phone number +4…18"."""
    kinds: list[str] = entry.given["kinds"]
    if not kinds:
        return [nothing(fault, column)]
    named = rf"(?:^|, )(?:{'|'.join(map(re.escape, kinds))}) "
    return [Rule(fault, gxe.ExpectColumnValuesToNotMatchRegex(column=column, regex=named))]


def _share(fault: str, column: str, most: float) -> Rule:
    return between(f"{fault}, over max_share={most:g}", column, most=most)


def _rare_labels(measure: Measure, least: int) -> str:
    counts = measure.counts or {}
    rare = sorted((name for name in counts if counts[name] < least), key=lambda name: (counts[name], name))
    names = [clipped(in_a_line(name), LABEL_CHARS).replace("{", "{{").replace("}", "}}") for name in rare[:RARE_LABELS]]
    fewer = f"fewer than min_rows={least} rows"
    if len(rare) > 1:
        more = f" and {len(rare) - len(names)} more" if len(rare) > len(names) else ""
        return f"{len(rare)} answers ({', '.join(names)}{more}) have {fewer}, the rarest {{value:.0f}}"
    return f"the rarest answer{f' ({names[0]})' if names else ''} has {fewer}: {{value:.0f}}"


def _drift(**columns: str) -> Callable[[Any, Mapping[str, Measure]], list[Rule]]:
    def rules(a: Any, measures: Mapping[str, Measure]) -> list[Rule]:
        # Never less than what two samples of the same rows differ by.
        allowed = {column: max(a.max_psi, measures[column].noise) for column in columns}
        fault = "are not those of the last accepted version: population stability index {value:.2f}, over"
        return [
            between(f"{words} {fault} {allowed[column]:.2f}", column, most=allowed[column])
            for column, words in columns.items()
        ]

    return rules


ROW_RULES: dict[str, Callable[[Entry, pd.DataFrame], list[Rule]]] = {
    "roles_out_of_order": lambda *_: [
        matches(
            "the roles do not alternate between user and assistant after one optional system: {value}",
            "roles",
            ROLES_IN_ORDER,
        )
    ],
    "last_not_assistant": lambda *_: [matches("the last turn is not an answer: {value}", "roles", ENDS_WITH_ANSWER)],
    "empty_prompt": lambda *_: [between("a user turn is empty or only white space", "shortest_user_turn", least=1)],
    "empty_answer": lambda *_: [between("an answer is empty or only white space", "shortest_answer", least=1)],
    "empty_rejected": lambda *_: [between(f"the {REJECTED} is empty or only white space", "rejected_chars", least=1)],
    "identical_pair": lambda *_: [
        nothing("the rejected answer is the chosen one, but for white space: {value}", "identical")
    ],
    "placeholder_answer": lambda *_: [nothing("an answer is nothing but a placeholder: {value}", "placeholder")],
    "length_out_of_bounds": _length_out_of_bounds,
    "special_token": lambda *_: [nothing("a text holds a special token of the model: {value}", "special_token")],
    "replacement_character": lambda *_: [
        between(
            "a text has replacement characters (U+FFFD), left by wrong decoding: {value}",
            "num_replacement_characters",
            most=0,
        )
    ],
    "mojibake": lambda *_: [
        nothing("a text was decoded wrongly (data.repair=[mojibake] repairs it): {value}", "mojibake")
    ],
    "decomposed_characters": lambda *_: [
        nothing("a text has accents as characters of their own (data.repair=[nfc] joins them): {value}", "decomposed")
    ],
    "language": _language,
    "secrets": lambda entry, _: _of_kinds("a text holds a secret: {value}", "secret", entry),
    "personal_data": lambda entry, _: _of_kinds("a text holds personal data: {value}", "personal", entry),
    "refusal": lambda *_: [nothing("an answer is a refusal: {value}", "refusal")],
    "cut_off_answer": _cut_off_answer,
    "no_json_answer": _no_json_answer,
}

CONFLICT_RULES: dict[str, Callable[[Any], list[Rule]]] = {
    "conflicting_answers": lambda a: [
        between(
            f"the prompt has {{value}} different answers, more than max_answers={a.max_answers}",
            "num_answers",
            most=a.max_answers,
        )
    ],
    "rejected_elsewhere": lambda _: [
        nothing(
            f"the {REJECTED} is the chosen one of another row with this prompt: {{value}}",
            "contradicted_by",
        )
    ],
    "label_spelling": lambda _: [
        nothing("the answer is a label in another spelling than most rows have: {value}", "usual_label")
    ],
}

SET_RULES: dict[str, Callable[[Any, Mapping[str, Measure]], list[Rule]]] = {
    "source_balance": lambda a, _: [
        _share("one of several sources has {value:.1%} of the rows", "largest_source_share", a.max_share)
    ],
    "label_balance": lambda a, measures: [
        _share("one of the answers has {value:.1%} of the rows", "largest_label_share", a.max_share),
        between(_rare_labels(measures["smallest_label_rows"], a.min_rows), "smallest_label_rows", least=a.min_rows),
    ],
    "length_bias": lambda a, _: [
        between(
            f"the {longer} answer is the longer one in {{value:.1%}} of the pairs of different lengths, over "
            f"max_share={a.max_share:g}: the model may learn length in place of quality",
            f"{longer}_longer_share",
            most=a.max_share,
        )
        for longer in ("chosen", "rejected")
    ],
    "duplicate_rows": lambda a, _: [
        _share("{value:.1%} of the rows equal an earlier one", "duplicate_share", a.max_share)
    ],
    "length_drift": _drift(prompt_length_psi="lengths of prompts", answer_length_psi="lengths of answers"),
    "language_drift": _drift(prompt_language_psi="languages of prompts", answer_language_psi="languages of answers"),
    "source_drift": _drift(source_psi="sources"),
    "label_drift": _drift(label_psi="answers"),
    "rows_changed": lambda a, _: [
        _share(
            "rows added to and removed from the last accepted version are {value:.1%} of it",
            "changed_share",
            a.max_share,
        )
    ],
}

assert {*ROW_RULES, *CONFLICT_RULES, *SET_RULES} == set(BUILT_IN)
