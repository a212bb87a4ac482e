"""Every command of the docs runs as it stands there, page by page, on a tiny model, and every link leads somewhere."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from conftest import Harness, Once
from prefect.settings import PREFECT_API_URL
from test_cli import ROWS
from trained import done_once
from typer.testing import CliRunner

from tunewright.artifacts import Base
from tunewright.cli.main import app
from tunewright.config import Settings

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
SMALL: dict[str, Any] = {
    "training": {"learning_rate": 0.01, "max_steps": 2, "batch": 4},
    "compute": {"threads": 1},
    "gate": {"metric": "perplexity", "confidence": 0.8},  # so that two steps of training are seen on few rows
}


class Page:
    """The files that a page shows, and its commands in their order."""

    def __init__(self, file: Path) -> None:
        blocks = BLOCK.findall(file.read_text(encoding="utf-8"))
        self.files = {name: text for _, name, text in blocks if name}
        shell = "".join(text for kind, _, text in blocks if kind == "sh").replace("\\\n", " ")
        self.commands = [parts for line in shell.splitlines() if (parts := shlex.split(line, comments=True))]


FIRST = Page(DOCS / "first-fine-tune.md")  # its data and settings are those of the pages that show none


def small(text: str, base: Base) -> str:
    """Settings of a page with the tiny model in place of the real one, trained for two steps."""
    settings = yaml.safe_load(text)
    for deployment in settings["deployments"]:
        parameters = deployment["parameters"]
        parameters["model"] = {"base": base.reference, "max_length": 128}
        for section, values in SMALL.items():
            parameters[section] = parameters.get(section, {}) | values
        parameters["evaluation"] = {"max_new_tokens": 4} | parameters.get("evaluation", {})
    return yaml.safe_dump(settings)


@pytest.fixture(scope="module", autouse=True)
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


def follow(page: Page, base: Base, folder: Path, once: Once, mlflow_database: Path) -> None:
    """Makes the files of a page in a folder, and runs its commands there."""
    (folder / "data").mkdir(parents=True)
    for name, text in (FIRST.files | page.files).items():
        (folder / name).write_text(small(text, base) if name.endswith(".yaml") else text)
    rows = [json.loads(line) for line in FIRST.files["data/mine.jsonl"].splitlines()]
    rows = [row | {"input": ROWS[i]["instruction"]} for i in range(len(ROWS)) for row in [rows[i % len(rows)]]]
    (folder / "data" / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "home").mkdir(exist_ok=True)
    shutil.copy(mlflow_database, folder / "home")
    with pytest.MonkeyPatch.context() as patched:
        done_once(once, patched)
        patched.chdir(folder)
        patched.setattr(logging.getLogger("tunewright"), "handlers", [])
        patched.setenv("TUNEWRIGHT_HOME", str(folder / "home"))
        patched.setenv("PREFECT_API_URL", PREFECT_API_URL.value() or "")  # as after `tunewright up`
        for program, *arguments in page.commands:
            if program == "export":
                name, _, value = arguments[0].partition("=")
                if name != "PREFECT_API_URL":  # that of the tests' server is set
                    patched.setenv(name, value)
                    patched.syspath_prepend(value)
            elif program == "prefect":
                subprocess.run([sys.executable, "-m", program, *arguments], check=True, capture_output=True)
            elif arguments != ["up"]:  # which runs until somebody ends it: tests/test_up.py
                assert program == "tunewright"
                with patch.dict(os.environ):  # what a command sets for its process is undone
                    result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, (arguments, result.output)


@pytest.fixture(scope="module")
def followed(tiny_base: Base, once: Once, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of whoever followed the first page, up to the evaluation: other pages train the same models."""
    folder = tmp_path_factory.mktemp("first")
    follow(FIRST, tiny_base, folder, once, mlflow_database)
    for stage in ("decide", "verdict_page", "register"):  # of which each page makes its own
        shutil.rmtree(folder / "home" / "artifacts" / stage)
    return folder / "home" / "artifacts"


@pytest.mark.parametrize("page", [each for each in PAGES if Page(each).commands], ids=lambda file: file.stem)
def test_the_commands_of_a_page_run(
    page: Path, tiny_base: Base, followed: Path, once: Once, mlflow_database: Path, tmp_path: Path
) -> None:
    if page.stem != "first-fine-tune":
        shutil.copytree(followed, tmp_path / "home" / "artifacts")
        follow(Page(page), tiny_base, tmp_path, once, mlflow_database)


@pytest.mark.parametrize("page", PAGES, ids=lambda file: file.stem)
def test_the_settings_of_a_page_are_accepted(page: Path) -> None:
    needed: dict[str, Any] = {"data": {"sources": [{"path": "rows.jsonl"}]}, "model": {"base": "bases/ours"}}
    for kind, _, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        shown = yaml.safe_load(text) if kind == "yaml" else {}
        for deployment in shown.get("deployments", [{"parameters": shown}]):
            parameters = deployment.get("parameters", {})
            if parameters.keys() <= Settings.model_fields.keys():  # else it is a part of a deployment
                sections = {name: needed.get(name, {}) | parameters.get(name, {}) for name in needed | parameters}
                Settings.model_validate(sections)


@pytest.mark.parametrize("page", PAGES, ids=lambda file: file.stem)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (DOCS / link).is_file(), link


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (DOCS.parent / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (link.startswith("https://") or (DOCS.parent / link).exists())] == []


def test_the_pages_are_built_and_fetch_nothing(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("mkdocs")), "build", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr  # strict: a page that no menu has, a link that leads nowhere
    fetched = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//')
    assert [page.name for page in tmp_path.glob("*.html") if fetched.search(page.read_text(encoding="utf-8"))] == []
