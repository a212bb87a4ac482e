"""An edit runs again the stages that reach it, and no others."""

import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunewright.config import STAGES
from tunewright.store import code_hashes
from tunewright.store.code_hashes import fingerprints, syntax_tree

STAGE = '''
"""A stage."""
import json
import house.plain
from house import tools, words as w
from house.settings import Mine
from house.shop import sold

LIMIT = 3

def stage(settings: Mine) -> int:
    """What it does."""
    return tools.reached(LIMIT) + house.plain.used() + sold() + len(w.TEXT) + len(json.dumps(settings.size))
'''
TOOLS = '''
"""Tools."""
STEP = 1  # a step

def reached(number):
    """Reached by its name."""
    return beyond(number) + STEP

def beyond(number):
    return number

def apart(number):
    return number

class Elsewhere:
    pass
'''
FILES = {
    "__init__.py": "",
    "stage.py": STAGE,
    "tools.py": TOOLS,
    "words.py": "TEXT = 'a'\nTEXT += 'b'\nOTHER = 'c'\n",
    "plain.py": "def used():\n    return 1\n\ndef unused():\n    return 2\n",
    "settings.py": "class Mine:\n    size = 1\n\nclass Other:\n    size = 2\n",
    "shop/__init__.py": "from house.shop.goods import sold\n\n__all__ = ['sold']\n",
    "shop/goods.py": "def sold():\n    return 1\n\ndef unsold():\n    return 2\n",
}
Edit = Callable[[str, str, str], list[str]]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of first-party code with the stage house.stage."""
    for name, source in FILES.items():
        file = tmp_path / "house" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(code_hashes, "FIRST_PARTY", "house")
    importlib.invalidate_caches()
    code_hashes._file.cache_clear()
    yield tmp_path / "house"
    code_hashes._file.cache_clear()


@pytest.fixture
def edit(house: Path) -> Edit:
    """Replaces a text in a file, and returns what of the stage's fingerprint is another one then."""

    def edited(name: str, before: str, after: str) -> list[str]:
        file, first = house / name, fingerprints("house.stage")
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
        code_hashes._file.cache_clear()
        second = fingerprints("house.stage")
        return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))

    return edited


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("stage.py", '"""A stage."""', '"""Another."""'),
        ("stage.py", '"""What it does."""', '"""What else it does."""'),
        ("stage.py", "LIMIT = 3\n", "# A comment\n\nLIMIT    =    3  # and one more\n"),
        ("tools.py", '    """Reached by its name."""\n', ""),
        ("tools.py", "  # a step", ""),
    ],
)
def test_words_and_layout_change_nothing(edit: Edit, name: str, before: str, after: str) -> None:
    assert edit(name, before, after) == []


@pytest.mark.parametrize(
    ("name", "before", "after", "changed"),
    [
        ("stage.py", "LIMIT = 3", "LIMIT = 4", "house.stage:LIMIT"),
        ("tools.py", "return beyond(number) + STEP", "return beyond(number) - STEP", "house.tools:reached"),
        ("tools.py", "STEP = 1", "STEP = 2", "house.tools:STEP"),
        (
            "tools.py",
            "def beyond(number):\n    return number",
            "def beyond(number):\n    return 0",
            "house.tools:beyond",
        ),
        ("plain.py", "return 1", "return 3", "house.plain:used"),
        ("settings.py", "size = 1", "size = 3", "house.settings:Mine"),
        ("words.py", "TEXT = 'a'", "TEXT = 'z'", "house.words:TEXT"),
        ("words.py", "TEXT += 'b'", "TEXT += 'z'", "house.words:TEXT"),
        ("shop/goods.py", "return 1", "return 3", "house.shop.goods:sold"),
    ],
)
def test_what_the_stage_reaches_counts_however_indirectly(
    edit: Edit, name: str, before: str, after: str, changed: str
) -> None:
    assert edit(name, before, after) == [changed]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("tools.py", "def apart(number):\n    return number", "def apart(number):\n    return 0"),
        ("tools.py", "class Elsewhere:", "class Renamed:"),
        ("settings.py", "size = 2", "size = 3"),
        ("words.py", "OTHER = 'c'", "OTHER = 'z'"),
        ("plain.py", "return 2", "return 3"),
        ("shop/goods.py", "return 2", "return 3"),
    ],
)
def test_what_the_stage_does_not_reach_does_not_count(edit: Edit, name: str, before: str, after: str) -> None:
    assert edit(name, before, after) == []


@pytest.mark.parametrize(
    "use",
    [
        "getattr(tools, 'reached')(LIMIT)",  # by a name made at run time
        "tools.made_elsewhere(LIMIT)",  # defined by no statement that names it
    ],
)
def test_a_module_counts_whole_where_names_cannot_follow(edit: Edit, house: Path, use: str) -> None:
    (house / "stage.py").write_text(STAGE.replace("tools.reached(LIMIT)", use))
    assert edit("tools.py", "class Elsewhere:\n    pass", "class Elsewhere:\n    size = 1") == ["house.tools:Elsewhere"]


@pytest.mark.parametrize(
    ("imported", "use"),
    [
        ("from house import shop", "shop.goods.sold()"),
        ("import house.shop", "house.shop.goods.sold()"),
        ("import house.shop as shop", "shop.goods.sold()"),
        ("from .shop import sold", "sold()"),
        ("from . import shop", "shop.sold()"),
        ("from .shop.goods import sold as bought", "bought()"),
    ],
)
def test_every_way_to_import_is_followed(edit: Edit, house: Path, imported: str, use: str) -> None:
    source = STAGE.replace("from house.shop import sold", imported).replace("+ sold()", f"+ {use}")
    (house / "stage.py").write_text(source)
    assert "house.shop.goods:sold" in edit("shop/goods.py", "return 1", "return 3")


def test_what_a_module_does_when_it_is_imported_counts_with_anything_of_it(edit: Edit, house: Path) -> None:
    with (house / "tools.py").open("a") as file:
        file.write("print(apart(1))\n")
    assert edit("tools.py", "print(apart(1))", "print(apart(2))") == ["house.tools:on import"]
    assert edit("tools.py", "def apart(number):\n    return number", "def apart(n):\n    return n") == [
        "house.tools:apart"
    ]


def test_an_import_that_only_begins_like_ours_is_not_ours(edit: Edit, house: Path) -> None:
    (house / "stage.py").write_text(STAGE.replace("import json", "import json\nimport house_of_others"))
    assert edit("stage.py", "LIMIT = 3", "LIMIT = 4") == ["house.stage:LIMIT"]


def test_a_stage_reaches_its_own_section_of_the_settings_and_no_other() -> None:
    reached = fingerprints("tunewright.tasks.dedupe").keys()
    assert {
        "tunewright.tasks.dedupe:dedupe",
        "tunewright.config.data:Dedupe",
        "tunewright.artifacts:UniqueRows",
    } <= reached
    assert (
        not {"tunewright.config.training:Training", "tunewright.config.gate:Gate", "tunewright.artifacts:Adapter"}
        & reached
    )


@pytest.mark.parametrize("stage", STAGES)
def test_how_artifacts_are_kept_is_no_part_of_a_stage(stage: str) -> None:
    module = f"tunewright.tasks.{'train.stage' if stage == 'train' else stage}"
    reached = {name.partition(":")[0] for name in fingerprints(module)}
    assert module in reached
    assert not {"tunewright.store.caching", "tunewright.store.code_hashes"} & reached


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("check", "data_checks.report:report.html"),
        ("dedupe", "data_checks.duplicates:duplicates.html"),
        ("forgetting", "tasks.forgetting:suite.jsonl"),
        ("render", "tasks.render.report:report.html"),
        ("scan", "tasks.scan:report.html"),
        ("verdict_page", "tasks.verdict_page:page.html"),
    ],
)
def test_templates_and_data_count_once_with_the_module_that_reads_them(stage: str, file: str) -> None:
    reached = fingerprints(f"tunewright.tasks.{stage}")
    assert [name for name in reached if name.endswith((".html", ".jsonl"))] == [f"tunewright.{file}"]


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """The fingerprints as a process that has just begun finds them."""

    def found() -> dict[str, str]:
        code_hashes._file.cache_clear()
        code_hashes._parsed.cache_clear()
        monkeypatch.setattr(code_hashes, "_known", {})
        return fingerprints("house.stage")

    return found


def test_another_process_parses_nothing_and_finds_the_same(
    house: Path, anew: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = anew()
    assert (house / "__pycache__" / f"tools.{sys.implementation.cache_tag}.parts.json").exists()
    parsed: list[str] = []
    monkeypatch.setattr(code_hashes, "syntax_tree", lambda source: parsed.append(source) or syntax_tree(source))
    assert anew() == first
    assert not parsed
    (house / "tools.py").write_text(TOOLS.replace("STEP = 1", "STEP = 2"))
    assert anew() != first
    assert [*map(str.strip, parsed)] == [TOOLS.replace("STEP = 1", "STEP = 2").strip()]


def test_a_name_that_is_a_module_by_now_is_followed_though_the_module_that_imports_it_is_as_it_was(
    house: Path, anew: Callable[[], dict[str, str]]
) -> None:
    assert "house.shop.goods:sold" in anew()
    (house / "shop" / "sold.py").write_text("COUNT = 1\n")
    assert "house.shop.sold:COUNT" in anew()


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"key": '])
def test_without_what_was_kept_or_a_place_to_keep_it_the_module_is_parsed(
    damage: str, house: Path, anew: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = anew()
    for file in (house / "__pycache__").glob("*.json"):
        file.write_text(damage)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert anew() == first
    assert {file.read_text() for file in (house / "__pycache__").glob("*.json")} == {damage}


class _LetsOthersRun:
    """Garbage whose collection, which a parser may be in the midst of, is where another thread goes on."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(0)


def test_threads_that_parse_at_once_disturb_nothing() -> None:
    source, before = Path(code_hashes.__file__).read_text(), (gc.get_threshold(), sys.getswitchinterval())

    def parse(depth: int) -> None:
        if depth:
            return parse(depth - 1)
        for _ in range(100):  # Python 3.11 fails in about one of ten
            _LetsOthersRun()
            syntax_tree(source)
        return None

    gc.set_threshold(10)
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(parse, (5, 60))) == [None, None]
    finally:
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])
