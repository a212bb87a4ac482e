"""YAML is read as Prefect reads it, and what could be misread or explode is refused with its line."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunewright.cli.deployment_file.strict_yaml import MAX_DEPTH, MAX_NODES, parse
from tunewright.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(text, "f.yaml")
    return str(error.value)


@pytest.mark.parametrize("text", ["1e-4", "3e-5", "1.0e4", "-2E3", "+.5e1", "5.e0", "1.5", "1e+2"])
def test_numbers_with_an_exponent_are_numbers(text: str) -> None:
    assert parse(f"a: {text}", "f.yaml").value == {"a": float(text)}


@pytest.mark.parametrize("text", ["'1e-4'", "1e", "e4", "1e-4x", "2026-01-31", "=", "triage"])
def test_what_is_no_number_is_text(text: str) -> None:
    assert parse(f"a: {text}", "f.yaml").value == {"a": text.strip("'")}


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "off",
        "~",
        "",
        "0",
        "00",
        "-07",
        "08",
        "1_000",
        "0x10",
        "12:00:x",
        "1.5",
        "a b",
        "{b: [1, {c: null}]}",
        "|\n  x\n",
    ],
)
def test_all_else_is_what_prefect_reads(text: str) -> None:
    assert parse(f"a: {text}", "f.yaml").value == yaml.safe_load(f"a: {text}")


def test_each_key_and_item_has_its_line() -> None:
    lines = parse("a:\n  b: 1\nc:\n  - d: x\n  - y\n", "f.yaml").lines
    assert lines == {"": 1, "a": 1, "a.b": 2, "c": 3, "c[0]": 4, "c[0].d": 4, "c[1]": 5}


def test_a_key_that_is_not_there_has_the_place_of_what_is_around_it() -> None:
    document = parse("x: 1\na:\n  b: [1, 2]\n", "f.yaml")
    assert document.place("a.b[7].c") == "f.yaml line 3"
    assert document.place("a.z") == "f.yaml line 2"
    assert document.place("nowhere") == document.place("") == "f.yaml line 1"


def test_anchors_and_merges_give_their_values_and_the_key_at_hand_wins() -> None:
    document = parse("base: &base {x: 1, y: 2}\nnext:\n  y: 3\n  <<: *base\nlast: *base\n", "f.yaml")
    assert document.value == {"base": {"x": 1, "y": 2}, "next": {"x": 1, "y": 3}, "last": {"x": 1, "y": 2}}
    assert (document.lines["next.y"], document.lines["next.x"]) == (3, 1)
    merged = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc:\n  <<: [*a, *b]\n"
    assert parse(merged, "f.yaml").value == yaml.safe_load(merged)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml line 4 column 3: duplicate key c, first on line 3"),
        ("a: {b: 1, b: 2}", "f.yaml line 1 column 11: duplicate key b, first on line 1"),
        (
            "a: !!python/object/apply:os.system [x]",
            "f.yaml line 1 column 4: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not accepted; "
            "leave it out",
        ),
        ("a: !!str 1", "f.yaml line 1 column 4: the tag 'tag:yaml.org,2002:str' is not accepted; leave it out"),
        ("a: *b", "f.yaml line 1 column 4: found undefined alias 'b'"),
        ("a: b: c", "f.yaml line 1 column 5: found ':' where no key can stand; put text with a colon in quotes, or"),
        (
            "a: {b: c: d}",
            "f.yaml line 1 column 9: found ':' in [...] or {...}; expected: a comma or the closing bracket; put te",
        ),
        (
            "a:\n  b: 1\n c: 2",
            "f.yaml line 3 column 2: found an indentation of 1; expected, as on a line above: 0 or 2 spaces",
        ),
        (
            "a: {b: 0,001}",
            "f.yaml line 1 column 10: the key '001' is not text; accepted: a word, in quotes if",
        ),
        (
            "a:\n  - [1, 2",
            "f.yaml line 2 column 10: found the end of the file; expected: the bracket that closes the one on line 2",
        ),
        ("a:\n\tb: 1", "f.yaml line 2 column 1: found a tab; expected: spaces"),
        (
            "- a: 1\n b: 2",
            "f.yaml line 2 column 2: found an indentation of 1; expected, as on a line above: 0 or 2 spaces",
        ),
        ("a: b\n- c", "f.yaml line 2 column 1: found a list item; expected, as on the lines above: a key"),
        ("- a\nb: 1", "f.yaml line 2 column 1: found a key; expected, as on the lines above: a list item, which"),
        ("a: 'it's'", "f.yaml line 1 column 8: found text after the value; expected: the end of the line"),
        (
            'a: "x',
            "f.yaml line 1 column 6: found the end of the file; expected: the quote that closes the one on line 1",
        ),
        ("a: @x", "f.yaml line 1 column 4: found a character that no plain text begins with; put such text in quotes"),
        ("a: 010", "f.yaml line 1 column 4: 010 would be read as 8; write 8, or put the text in quotes"),
        ("a: -1_0:30", "f.yaml line 1 column 4: -1_0:30 would be read as -630; write -630, or put the text in quotes"),
        ("a: 1:30.5", "f.yaml line 1 column 4: 1:30.5 would be read as 90.5; write 90.5, or put the text in quotes"),
        ("a: 1\n---\nb: 1", "f.yaml line 2 column 1: found a second document (---); expected: one document in a file"),
        ("on: 1", "f.yaml line 1 column 1: the key 'on' is not text; accepted: a word, in quotes if"),
        ("? [a]\n: 1", "f.yaml line 1 column 3: the key that is a list or a mapping is not text"),
        ("<<: 1", "f.yaml line 1 column 5: << takes a mapping, such as *name"),
        ("a: 0b_", "f.yaml line 1 column 4: '0b_' cannot be read; put text in quotes"),
        ('a: "\\ud800"', "f.yaml line 1 column 4: '\\ud800' cannot be read"),
        ('a: "\\UFFFFFFFF"', "f.yaml: not YAML: "),
        ('\u2028": null, "0": null}', "f.yaml line 2 column 11: found text after the value"),
        ("a: x\rb: \x00", "f.yaml line 2: the character '\\x00' cannot stand in YAML"),
        ("a: x\nb: \x00", "f.yaml line 2: the character '\\x00' cannot stand in YAML"),
    ],
)
def test_a_refusal_is_one_line_with_the_place(text: str, message: str) -> None:
    said = refusal(text)
    assert said.startswith(message)
    assert len(said.splitlines()) == 1


def test_aliases_that_explode_or_contain_themselves_are_refused() -> None:
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    bomb = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *rows])
    assert f"more than {MAX_NODES} values, each alias counted" in refusal(bomb)
    for text in ("&a [*a]", "&a {b: *a}", "&a {<<: *a}"):
        assert f"nested more than {MAX_DEPTH} levels deep, or an alias that contains itself" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{a: " * 100_000,
        "- " * 200_000,
        "a: 1" + ":59" * 200_000,
        "a: " + "9" * 900_000,
        "[x]\n- " * 90_000,
    ],
)
def test_a_hostile_text_is_refused_quickly(text: str) -> None:
    started = time.monotonic()
    refusal(text)
    assert time.monotonic() - started < 5


@given(st.text(max_size=200) | st.text(alphabet="ab:{}[]-?*&!<>|'\"%@#, \n\t0.e_\\xU~=", max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse(text, "f.yaml")
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
