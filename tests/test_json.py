"""The keys that docs/json.md lists are those that the commands print with --json, and have the types that it says."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import Harness, Once
from make_keys import write_keys
from prefect.settings import PREFECT_API_URL
from test_cli import ROWS, write_files
from trained import done_once, reproduce_here
from typer.main import get_command
from typer.testing import CliRunner

from tunewright.artifacts import Artifact, Base, Judged
from tunewright.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
TRAINED = (
    "--set",
    "gate.metric=perplexity",
    "--set",
    "gate.confidence=0.8",
    "--set",
    "gate.approval=true",
    "--set",
    "operation.prices={cpu: 0.4}",
)
STOPPED = ("--set", "data.sources=[{path: bad.jsonl}]", "--set", "registry.name=bad")
COMMANDS = [  # heading of the page -> a call
    ("run", "run tiny.yaml", *TRAINED),
    ("plan", "plan tiny.yaml", *TRAINED),
    ("plan", "plan tiny.yaml --set training.learning_rate=0.02", *TRAINED),
    ("plan", "plan tiny.yaml --until split"),
    ("compare", "compare tiny.yaml --vary training.learning_rate=0.01,0.02"),
    ("data", "data tiny.yaml", *TRAINED),
    ("error", "run tiny.yaml --until split", *STOPPED),
    ("data", "data tiny.yaml", *STOPPED),
    ("data, one row", "data tiny.yaml --line rows.jsonl:3", *TRAINED),
    ("data, one row", "data tiny.yaml --line rows.jsonl:1", *TRAINED),
    ("data, one row", "data tiny.yaml --line rows.jsonl:73", *TRAINED),
    ("data, one row", "data tiny.yaml --line rows.jsonl:74", *TRAINED),
    ("data, one row", "data tiny.yaml --line bad.jsonl:1", *STOPPED),
    ("data, several rows", "data tiny.yaml --text parcel", *TRAINED),
    ("settings", "settings"),
    ("import", "import theirs.json --base acme/open"),
    ("deploy", "deploy tiny.yaml"),
    ("deploy --remove", "deploy --remove tiny"),
    ("doctor", "doctor"),
    ("release history", "release history tiny"),
    ("release", "release approve tiny --reason good"),
    ("release history", "release history tiny"),
    ("release", "release withdraw tiny --reason bad"),
    ("release", "release promote tiny 1 --reason good"),
    ("predict", "predict tiny rows.jsonl"),
    ("predict", "predict tiny rows.jsonl --version 1 --overwrite"),
    ("export", "export tiny exported --to adapter --sign-with keys/private.pem"),
    ("verify", "verify tiny"),
    ("verify, a signed folder", "verify exported --public-key keys/public.pem"),
    ("reproduce", "reproduce tiny"),
    ("clean", "clean --keep-runs 1"),
    ("clean", "clean --keep-runs 1 --yes"),
    ("home backup", "home backup backup.tar"),
    ("home restore", "home restore backup.tar"),
]

ELSEWHERE = {"review write", "review"}  # headings of calls in tests/test_review.py, as these answers are all the same

# Keys that no call above prints, and when they are there.
SELDOM = {
    "run": {
        "stages[].note",  # with gate.rotate
        "rotation",  # the same
        *("answered_in_part", "answered_in_part.<contender>"),  # of a prompt that is ended
        *("answered_in_part.<contender>.num_rows", "answered_in_part.<contender>.num_unanswered"),
        *("preference", "preference.method"),  # with preference.method (tests/test_preference_flow.py)
        *(
            "grpo",
            "grpo.method",
            "grpo.best_by",
            "grpo.best_validation_loss",
        ),  # with grpo.rewards (tests/test_reward_flow.py)
        *(
            "label_errors",
            "label_errors.num_folds",
            "label_errors.num_rows",
            "label_errors.num_same",
        ),  # with checks.label_error_folds
        *("label_errors.num_likely", "label_errors.page", "label_errors.rows"),
        *("examples", "examples.number", "examples.chosen", "examples.file"),  # of tests/test_few_shot.py
        *("divergence", "divergence.reference", "divergence.num_rows"),  # with preference.method
        *("divergence.per_token", "divergence.per_answer"),
        *("judged", "judged.model", "judged.num_rows"),  # with a judge
        *("judged.preferred", "judged.preferred.<opponent>"),
        *("judged.agreement", "judged.agreement.<opponent>"),
        *("judged.unreadable", "judged.unreadable.<opponent>"),
    },
    "plan": {
        *("stages[].note", "unknown"),  # the base is not here, or cannot be read
        "notes",  # with method.kind=few_shot (tests/test_few_shot.py)
        *("training.preference", "training.grpo"),  # with preference.method and grpo.rewards
    },
    "deploy": {"tested", "not_sent"},  # with --test-message
    "export": {"pushed.url", "pushed.is_public", "pushed.removed"},  # with --push
    "data, one row": {
        "asked_line",  # of a record of several lines
        *("life[].findings[].finding", "life[].findings[].detail"),  # of a row with findings
        "life[].answer",  # with checks.label_error_folds (tests/test_label_errors.py)
        *("versions[].version", "versions[].split", "versions[].because"),  # from the second version on
    },
}
WHOLE = {  # objects and items whose keys stand in the meaning, or in the settings
    *(
        "preference",
        "grpo",
        "training.preference",
        "training.grpo",
        "training.methods[].computed_with",
        "deployments[].operation",
        "deployments[].automations",
    ),
    *("versions[].rows", "versions[].checked", "versions[].unique", "versions[].splits", "versions[].replaced"),
    *("outdated", "life[].partner", "life[].inherited_from", "life[].also_in_cluster", "removed"),
}
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "list": list}
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+?) \| ([^|]*?) ?\| ([^|]+?) \|$", re.M)


@pytest.fixture(scope="module")
def printed(
    tiny_base: Base,
    prefect_harness: Harness,
    once: Once,
    mlflow_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, list[Any]]]:
    """Heading of the page -> what calls of the command print."""
    folder = tmp_path_factory.mktemp("json")
    write_files(tiny_base, folder)
    with (folder / "rows.jsonl").open("a") as rows:
        rows.write(f"{json.dumps(ROWS[0])}\n{{\n")
    (folder / "bad.jsonl").write_text("{\n")
    (folder / "theirs.json").write_text('{"model": "m", "training_file": "rows.jsonl", "seed": 1, "metadata": null}')
    write_keys(folder / "keys")
    file = folder / "tiny.yaml"
    file.write_text(f"{file.read_text().replace('1e-2', '0.01')}    schedules: [{{cron: 0 3 * * *}}]\n")
    old = folder / "home" / "work" / "prompt" / "old"  # for clean, since nobody touched it for a week
    old.mkdir(parents=True)
    (old / "left").touch()
    shutil.copy(mlflow_database, folder / "home")
    os.utime(old / "left", (0, 0))
    found: dict[str, list[Any]] = {}
    with pytest.MonkeyPatch.context() as patched, prefect_harness():
        done_once(once, patched)
        reproduce_here(patched)
        patched.chdir(folder)
        patched.setattr(logging.getLogger("tunewright"), "handlers", [])
        patched.setenv("TUNEWRIGHT_HOME", str(folder / "home"))
        patched.setenv("PREFECT_API_URL", PREFECT_API_URL.value() or "")
        for heading, call, *options in COMMANDS:
            home = "other" if heading == "home restore" else "home"
            with patch.dict(os.environ, {"TUNEWRIGHT_HOME": str(folder / home)}):
                result = CliRunner().invoke(app, [*call.split(), *options, "--json"])
            found.setdefault(heading, []).append(json.loads(result.stdout.splitlines()[-1]))
    yield found


def documented() -> dict[str, dict[str, str]]:
    """Heading -> key -> type, as the page has them."""
    sections = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    found = {
        heading: {key: kind for key, kind, _, _ in ROW.findall(text)}
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }
    for heading, text in zip(sections[::2], sections[1::2], strict=True):
        assert len(found[heading]) == text.count("\n| `"), (
            f"{heading}: a line that is no row of the table, or a key twice"
        )
    return found


def is_of(value: Any, kind: str) -> bool:
    """Whether a value has a type of the page: "string or null", "list of number", "any"."""
    if kind == "any":
        return True
    if " or " in kind:
        return any(is_of(value, each) for each in kind.split(" or "))
    if kind == "null":
        return value is None
    if kind.startswith("list of "):
        return isinstance(value, list) and all(is_of(each, kind.removeprefix("list of ")) for each in value)
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def faults(value: Any, place: str, keys: dict[str, str], seen: set[str]) -> Iterator[str]:
    """Yield the keys printed below a place that are missing from the page or have another type there."""
    if isinstance(value, list):
        for each in value:
            yield from faults(each, f"{place}[]", keys, seen)
    elif isinstance(value, dict):
        start = f"{place}." if place else ""
        free = next((key for key in keys if re.fullmatch(rf"{re.escape(start)}<[^<>.]+>", key)), "")
        for name, inner in value.items():
            key = f"{start}{name}" if f"{start}{name}" in keys else free
            if not key:
                yield f"{start}{name} is not on the page"
                continue
            seen.add(key)
            if not is_of(inner, keys[key]):
                yield f"{start}{name} is not {keys[key]}: {inner!r}"
            if key not in WHOLE and keys[key] != "any":
                yield from faults(inner, key, keys, seen)


@pytest.mark.parametrize("heading", dict.fromkeys(heading for heading, *_ in COMMANDS))
def test_the_page_has_the_keys_that_a_command_prints_and_no_others(heading: str, printed: dict[str, list[Any]]) -> None:
    keys, seen = documented()[heading], set[str]()
    assert [fault for value in printed[heading] for fault in faults(value, "", keys, seen)] == []
    assert keys.keys() - seen == SELDOM.get(heading, set())


def test_the_page_has_every_command_that_prints_json(printed: dict[str, list[Any]]) -> None:
    headings = [heading for heading in documented() if heading not in ELSEWHERE]
    assert headings == ["error", *(heading for heading in printed if heading != "error")]
    group: Any = get_command(app)
    leaves = {name: [name, *getattr(command, "commands", {})] for name, command in group.commands.items()}
    with_json = {
        " ".join(dict.fromkeys((name, each)))
        for name, all_of_it in leaves.items()
        for each in all_of_it
        if any(
            "--json" in option.opts
            for option in getattr(group.commands[name], "commands", {}).get(each, group.commands[name]).params
        )
    }
    called = {re.match(r"(?:(?:release|home) )?[a-z]+", call)[0] for _, call, *_ in COMMANDS}  # pyright: ignore[reportOptionalSubscript]
    reviews = {f"review {each}" for each in ("write", "record", "queue", "collect", "show")}
    of_other_states = {
        "release rollback",
        "release reject",
    }  # as the other decisions, of two versions and one that waits
    assert with_json - called - reviews == of_other_states


def test_the_keys_of_a_judge_are_those_of_its_artifact() -> None:
    of_page = {key.split(".")[1] for key in documented()["run"] if key.startswith("judged.")}
    assert of_page == Judged.model_fields.keys() - Artifact.model_fields.keys()


def test_a_key_that_the_page_lacks_and_one_of_another_type_are_found() -> None:
    keys = {"name": "string", "counts": "object", "counts.<name>": "integer", "more": "list", "more[].x": "integer"}
    value = {"name": 1, "counts": {"a": 1, "b": True}, "other": 1, "more": [{"x": None}, {"y": 1}]}
    assert list(faults(value, "", keys, set())) == [
        "name is not string: 1",
        "counts.b is not integer: True",
        "other is not on the page",
        "more[].x is not integer: None",
        "more[].y is not on the page",
    ]
