"""The import contracts of pyproject.toml and the lists kept by hand hold every module, also one that is added later."""

import ast
import importlib.util
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prefect import Task

from data_checks.suite import BUILT_IN
from flows import finetune
from flows.announcing import DRIFTS
from tasks.config import STAGES
from tasks.fingerprint import FIRST_PARTY, PLUMBING

ROOT = Path(__file__).parents[1]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in LINTER["contracts"]}
OF_LIBRARIES = [each for each in CONTRACTS.values() if each.get("allow_indirect_imports")]


def stages() -> dict[str, Task[..., Any]]:
    """The stages that the pipeline calls, by their names."""
    return {each.name: each for each in vars(finetune).values() if isinstance(each, Task)}


def test_the_pipeline_calls_every_stage() -> None:
    assert stages().keys() == set(STAGES)


def test_every_stage_is_in_the_contract_that_keeps_stages_apart() -> None:
    modules = {
        ".".join(task.fn.build.__module__.split(".")[:2])  # pyright: ignore[reportFunctionMemberAccess]
        for task in stages().values()
    }
    assert set(CONTRACTS["a stage imports no other stage"]["modules"]) == modules


def test_layers_hold_all_packages_and_the_distribution_has_no_other() -> None:
    packages = {each.parent.name for each in ROOT.glob("*/__init__.py")} - {"tests"}
    (layers,) = (each["layers"] for each in CONTRACTS.values() if each["type"] == "layers")
    assert set(LINTER["root_packages"]) == set(layers) == packages
    assert {*FIRST_PARTY, "flows"} == packages, "whose code is part of a key, but for what runs stages"


@pytest.mark.parametrize("contract", OF_LIBRARIES, ids=lambda each: each["name"])
def test_a_library_is_forbidden_to_whole_packages_but_for_named_modules(contract: dict[str, Any]) -> None:
    assert set(contract["source_modules"]) <= set(LINTER["root_packages"])
    for exception in contract.get("ignore_imports", ()):
        module = exception.partition(" -> ")[0].removesuffix(".**")
        assert importlib.util.find_spec(module), exception


def test_what_is_no_part_of_a_key_is_a_module_that_there_is() -> None:
    assert [name for name in PLUMBING if not importlib.util.find_spec(name)] == []


def test_every_expectation_of_drift_starts_a_run_on_drift() -> None:
    assert set(DRIFTS) == {name for name in BUILT_IN if name.endswith("_drift")}


def test_a_class_name_is_defined_once() -> None:
    files = (file for package in LINTER["root_packages"] for file in (ROOT / package).rglob("*.py"))
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, times in names.items() if times > 1] == []
