"""The import contracts of pyproject.toml and the lists kept by hand hold every module, also one that is added later."""

import ast
import importlib.util
import re
import tomllib
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import Task

from tunewright.config import STAGES
from tunewright.data_checks.suite import BUILT_IN
from tunewright.flows import finetune
from tunewright.flows.announcing import DRIFTS
from tunewright.store.code_hashes import FIRST_PARTY, PLUMBING

ROOT = Path(__file__).parents[1]
FOLDERS = ("cli", "flows", "tasks", "data_checks")  # at the top; imported as tunewright.cli and so on
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in LINTER["contracts"]}
OF_LIBRARIES = [each for each in CONTRACTS.values() if each.get("allow_indirect_imports")]


def stages() -> dict[str, Task[..., Any]]:
    """The stages that the pipeline calls, by their names."""
    return {each.name: each for each in vars(finetune).values() if isinstance(each, Task)}


def test_the_pipeline_calls_every_stage() -> None:
    assert stages().keys() == set(STAGES)


def test_the_folder_tasks_holds_the_stages_and_nothing_else() -> None:
    modules = {each.stem for each in (ROOT / "tasks").glob("*.py")} | {
        each.parent.name for each in (ROOT / "tasks").glob("*/__init__.py")
    }
    assert modules - {"__init__"} == set(STAGES)
    assert CONTRACTS["a stage imports no other stage"]["modules"] == ["tunewright.tasks.*"]


def test_the_table_of_the_readme_names_the_file_of_every_stage() -> None:
    table = re.findall(r"^\| (\w+) \| \[(tasks/\w+)(?:\.py|/)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert table == [(stage, f"tasks/{stage}") for stage in STAGES]


def test_the_folder_flows_holds_few_files() -> None:
    assert len([*(ROOT / "flows").rglob("*.py")]) <= 17


def test_the_distribution_is_one_package_that_links_to_the_folders_at_the_top() -> None:
    links = {each.name: each.resolve() for each in (ROOT / "tunewright").iterdir() if each.is_symlink()}
    assert links == {name: ROOT / name for name in FOLDERS}
    packages = {each.parent.name for each in ROOT.glob("*/__init__.py")}
    assert packages == {"tunewright", *FOLDERS}
    assert LINTER["root_packages"] == ["tunewright"]
    assert FIRST_PARTY == "tunewright"


@pytest.mark.parametrize("contract", OF_LIBRARIES, ids=lambda each: each["name"])
def test_a_library_is_forbidden_to_whole_packages_but_for_named_modules(contract: dict[str, Any]) -> None:
    assert contract["source_modules"] == ["tunewright"]
    for exception in contract.get("ignore_imports", ()):
        module = exception.partition(" -> ")[0].removesuffix(".**")
        assert importlib.util.find_spec(module), exception


def test_what_is_no_part_of_a_key_is_a_module_that_there_is() -> None:
    assert [name for name in PLUMBING if not importlib.util.find_spec(name)] == []


def test_every_expectation_of_drift_starts_a_run_on_drift() -> None:
    assert set(DRIFTS) == {name for name in BUILT_IN if name.endswith("_drift")}


def test_a_class_name_is_defined_once() -> None:
    files = (file for folder in ("tunewright", *FOLDERS) for file in (ROOT / folder).rglob("*.py"))
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, times in names.items() if times > 1] == []


def test_a_docstring_begins_with_an_imperative_or_a_noun_phrase() -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    files = [
        file for folder in ("tunewright", "tests", "benchmarks", *FOLDERS) for file in (ROOT / folder).rglob("*.py")
    ]
    nodes = [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    texts = [(file, ast.get_docstring(node) or "") for file, node in nodes if isinstance(node, kinds)]
    assert len([text for _, text in texts if text]) > 1000  # the folders are found
    assert [(file.name, text[:60]) for file, text in texts if re.match(r"(What|Of|To|Whether it)\b", text)] == []


LIBRARY = {  # of each stage: the one that does its work
    "ingest": "pyarrow",
    "base": "transformers",
    "rehearse": "transformers",
    "check": "great_expectations",
    "dedupe": "numba",
    "split": "numba",
    "render": "transformers",
    "scan": "torch",
    "label_errors": "transformers",
    "train": "trl",
    "prefer": "trl",
    "reinforce": "trl",
    "examples": "transformers",
    "prompt": "transformers",
    "prepend": "transformers",
    "evaluate": "transformers",
    "forgetting": "transformers",
    "lm_eval": "lm_eval",
    "divergence": "torch",
    "decide": "scipy",
    "judge": "httpx",
    "verdict_page": "jinja2",
    "register": "mlflow",
}


def source_of(module: str) -> Path | None:
    """The file of a module of this project; None for any other module."""
    place = ROOT.joinpath(*module.split("."))
    found = (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())
    return next((file.resolve() for file in found if module.startswith(FIRST_PARTY)), None)


def modules_imported_by(file: Path) -> Iterator[str]:
    """The modules that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if source_of(name) else str(node.module) for name in names)


def hops(file: Path, library: str) -> int:
    """The links from the README to `library`: one to `file`, then one for each import on the shortest way."""
    waiting, seen = deque([(file.resolve(), 1)]), {file.resolve()}
    while waiting:
        file, number = waiting.popleft()
        modules = [*modules_imported_by(file)]
        if any(module.partition(".")[0] == library for module in modules):
            return number + 1
        for inner in {source for module in modules if (source := source_of(module))} - seen:
            seen.add(inner)
            waiting.append((inner, number + 1))
    raise AssertionError(f"{file} leads to no {library}")


@pytest.mark.parametrize("stage", STAGES)
def test_from_the_readme_to_the_library_that_does_the_work_are_few_hops(stage: str) -> None:
    """At most five for train, one more for the two that are its training too, and four for any other stage.

    The way begins with the first file that the README's table names for the stage, and follows imports of this project.
    """
    (named,) = re.findall(rf"^\| {stage} \| \[(tasks/\S+?)\]", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    file = ROOT / named / "__init__.py" if named.endswith("/") else ROOT / named
    assert hops(file, LIBRARY[stage]) <= {"train": 5, "prefer": 6, "reinforce": 6}.get(stage, 4)
