"""Hashes of the code that a stage runs, so that an edit re-runs the stages that reach it, and no others.

A stage's own module is hashed whole. Of its first-party imports, only the definitions that it reaches, also indirectly,
and the code that runs at import are hashed; a module used in a way that names cannot follow is hashed whole. Comments,
docstrings and layout do not count: the hash is of the syntax tree.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tunewright.store import kept_code

FIRST_PARTY = "tunewright"
# How an artifact is kept and what is shown or foretold of its making, not what is in it.
PLUMBING = (
    "tunewright.store.caching",
    "tunewright.store.shared",
    "tunewright.store.stage",
    "tunewright.store.code_hashes",
    "tunewright.reports.progress",
    "tunewright.reports.curves",
    "tunewright.cost_model",
    "tunewright.tasks.train.shared_checkpoints",
)
DATA = (".html", ".jsonl")  # endings of files that count with the module that they lie beside
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")  # of a statement, where others lie
PARSE_ATTEMPTS = 50
ON_IMPORT = "on import"  # stands for the statements of a module that define nothing


class _Part(NamedTuple):
    """A hash, and what is referred to: definitions of the same module, and the (module, definition) of others."""

    digest: str
    here: set[str]
    there: set[tuple[str, str | None]]


class _Module:
    """A module's top-level definitions by name, and what each refers to; each part is read once.

    What was read is kept beside the module's bytecode (kept_code.py): to parse all that the stages reach takes a run
    one and a half seconds.
    """

    def __init__(self, name: str, source: str, file: Path | None = None) -> None:
        key = kept_code.key(name, source, FIRST_PARTY)
        known = kept_code.load(file, key) if file else None
        if known:
            self.imports = _imports(known["imported"])
            self.parts = {each: _of_json(part) for each, part in known["parts"].items()}
            if known["imports"] == _as_json(self.imports):  # else what it imports is a module now, or is none any more
                return
        read = _Syntax(name, source)
        self.imports = _imports(read.imported)  # local name -> (module, definition or None for all of it)
        self.parts = {each: _part(statements, self.imports, read.definitions) for each, statements in read.parts()}
        if file:
            parts = {each: [part.digest, [*part.here], [*part.there]] for each, part in self.parts.items()}
            made = {"imported": read.imported, "imports": _as_json(self.imports), "parts": parts}
            kept_code.save(file, key, made)


def _imports(imported: Iterable[Sequence[str]]) -> dict[str, tuple[str, str | None]]:
    found: dict[str, tuple[str, str | None]] = {}
    for local, module, inner in imported:
        name = f"{module}.{inner}" if module else inner
        found[local] = (name, None) if not module or _file(name) else (module, inner)
    return found


def _as_json(imports: dict[str, tuple[str, str | None]]) -> dict[str, list[str | None]]:
    return {local: [*imported] for local, imported in imports.items()}


def _of_json(part: Sequence[Any]) -> _Part:
    digest, here, there = part
    return _Part(digest, {*here}, {(module, definition) for module, definition in there})


class _Syntax:
    """The content of the source of a module."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        tree = syntax_tree(source)
        self.imported: list[list[str]] = []  # local name, module or "", and what is imported of it
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.loose: list[ast.stmt] = []  # statements that define nothing but do something on import
        for node in _statements(tree):
            if isinstance(node, DEFINITIONS) and ast.get_docstring(node):
                node.body = node.body[1:]
            elif isinstance(node, ast.ImportFrom | ast.Import):
                self._import(node)
        for statement in tree.body:
            names = _defined(statement)
            for defined in names:
                self.definitions.setdefault(defined, []).append(statement)
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not names and not is_text and not isinstance(statement, ast.ImportFrom | ast.Import):
                self.loose.append(statement)

    def _import(self, node: ast.ImportFrom | ast.Import) -> None:
        module = ""
        if isinstance(node, ast.ImportFrom):  # by its full name, also where it was named from this module's place
            file = _file(self.name)
            package = self.name if file and file.name == "__init__.py" else self.name.rpartition(".")[0]
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            if (module or alias.name).split(".")[0] == FIRST_PARTY:
                self.imported.append([alias.asname or alias.name, module, alias.name])

    def parts(self) -> Iterator[tuple[str, list[ast.stmt]]]:
        """Each definition, and what runs on import, with its statements."""
        yield from self.definitions.items()
        if self.loose:
            yield ON_IMPORT, self.loose


def _part(
    statements: list[ast.stmt], imports: Mapping[str, tuple[str, str | None]], definitions: Container[str]
) -> _Part:
    here: set[str] = set()
    there: set[tuple[str, str | None]] = set()
    qualified: set[int] = set()
    for node in _nodes(statements):
        if isinstance(node, ast.Attribute):
            module = imports.get(_dotted(node.value))
            if module and module[1] is None:
                there.add((module[0], node.attr))
                qualified.add(id(node.value))
        elif isinstance(node, ast.Name) and id(node) not in qualified:
            if node.id in imports:
                there.add(imports[node.id])
            elif node.id in definitions:
                here.add(node.id)
    return _Part(_digest(statements), here, there)


def syntax_tree(source: str) -> ast.Module:
    """The tree of a module's source.

    Python 3.11 may raise SystemError, "AST constructor recursion depth mismatch", where another thread parses too, as
    imports do (github.com/python/cpython/issues/106905): then it is asked again.
    """
    for _ in range(PARSE_ATTEMPTS - 1):
        with suppress(SystemError):
            return ast.parse(source)
        time.sleep(0.001)  # in which the other thread goes on
    return ast.parse(source)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, those of the outermost blocks first, and what holds blocks of them; no expressions."""
    found: list[ast.AST] = [tree]
    for node in found:
        yield node
        for block in BLOCKS:
            found += getattr(node, block, ())


def _nodes(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of the statements: several times as fast as ast.walk, as most of a program is looked through."""
    found = [*statements]
    for node in found:
        yield node
        for name in node._fields:
            value = getattr(node, name)
            if isinstance(value, list):
                found += [each for each in value if isinstance(each, ast.AST)]
            elif isinstance(value, ast.AST) and name != "ctx":
                found.append(value)


def _dotted(node: ast.expr) -> str:
    """A name with what is read of it, as in house.shop, or "" for any other expression."""
    inner: list[str] = []
    while isinstance(node, ast.Attribute):
        inner.append(node.attr)
        node = node.value
    return ".".join((node.id, *reversed(inner))) if isinstance(node, ast.Name) else ""


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, DEFINITIONS):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


@functools.cache
def _file(name: str) -> Path | None:
    """Find a module's source without importing it (torch alone takes seconds); None where there is none."""
    package, *inner = name.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not inner:
        return Path(spec.origin) if spec and spec.origin else None
    for folder in spec.submodule_search_locations or ():
        for file in (Path(folder, *inner).with_suffix(".py"), Path(folder, *inner, "__init__.py")):
            if file.is_file():
                return file
    return None


def _module(name: str) -> _Module:
    file = _file(name)
    if file is None:
        raise ModuleNotFoundError(f"no source for {name}")
    return _parsed(name, file, file.stat().st_mtime_ns)


@functools.cache
def _parsed(name: str, file: Path, written: int) -> _Module:
    """The module as it stood when the file was `written`, in nanoseconds."""
    return _Module(name, file.read_text(encoding="utf-8"), file)


def _digest(statements: list[ast.stmt]) -> str:
    return hashlib.sha256("\n".join(ast.dump(statement) for statement in statements).encode()).hexdigest()[:16]


# A module's file -> when the files that it reaches were written, and the fingerprints.
_known: dict[Path | None, tuple[dict[Path, int], dict[str, str]]] = {}


def fingerprints(module: str) -> dict[str, str]:
    """`module:definition` -> hash, for all first-party code that `module` reaches, itself whole.

    Worked out again only where one of the files changed: a stage of many cached parts asks for each of them.
    """
    written, known = _known.get(_file(module), ({}, {}))
    if not written or any(not file.exists() or file.stat().st_mtime_ns != at for file, at in written.items()):
        names, known = _fingerprints(module)
        files = [file for name in names for file in (_file(name), *_beside(name)) if file]
        _known[_file(module)] = {file: file.stat().st_mtime_ns for file in files}, known
    return dict(known)


def team_code(module: str) -> str:
    """A digest of the code of a module of the team's, which a setting names.

    It is of all Python files of the package that it lies in, or of itself alone where it lies in none; of a module of
    this project it is of the code that it reaches. Other files that it reads do not count, nor do comments.
    """
    package = module.partition(".")[0]
    if package == FIRST_PARTY:
        return hashlib.sha256(json.dumps(fingerprints(module)).encode()).hexdigest()
    top = importlib.util.find_spec(package)
    folders = sorted(map(Path, (top and top.submodule_search_locations) or ()))
    files = [(str(file.relative_to(folder)), file) for folder in folders for file in sorted(folder.rglob("*.py"))]
    alone = [(module, Path(top.origin))] if top and top.origin else []
    code = {place: _digest_of(file) for place, file in files or alone}
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def _digest_of(file: Path) -> str:
    """A digest of the code in a file, or of its bytes where it is not to be parsed."""
    content = file.read_bytes()
    try:
        return _digest(ast.parse(content).body)
    except (SyntaxError, ValueError):
        return hashlib.sha256(content).hexdigest()


def _fingerprints(module: str) -> tuple[list[str], dict[str, str]]:
    """The modules that are reached, and the hash of each definition."""
    modules: dict[str, _Module] = {}
    hashes: dict[str, str] = {}
    waiting: list[tuple[str, str | None]] = [(module, None)]
    seen: set[tuple[str, str | None]] = set()
    while waiting:
        name, definition = waiting.pop()
        if (name, definition) in seen or name in PLUMBING:
            continue
        seen.add((name, definition))
        if name not in modules:
            modules[name] = _module(name)
            waiting += [(name, ON_IMPORT)] if ON_IMPORT in modules[name].parts else []
        found = modules[name]
        if definition is None:
            waiting += [(name, inner) for inner in found.parts]
            continue
        if definition in found.imports:  # re-exported
            waiting.append(found.imports[definition])
            continue
        if _file(f"{name}.{definition}"):  # a module of this package
            waiting.append((f"{name}.{definition}", None))
            continue
        if definition not in found.parts:  # made in a way that names cannot follow
            waiting.append((name, None))
            continue
        part = found.parts[definition]
        hashes[f"{name}:{definition}"] = part.digest
        waiting += [(name, inner) for inner in part.here]
        waiting += part.there
    return list(modules), dict(sorted(hashes.items())) | {
        f"{name}:{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for name in sorted(modules)
        for file in _beside(name)
    }


def _beside(name: str) -> list[Path]:
    """The HTML templates and data that count with a module: those of its name; of a package those of no module's."""
    file = _file(name)
    if file is None or file.stem != "__init__":
        named = [file.with_suffix(ending) for ending in DATA] if file else []
        return [each for each in named if each.is_file()]
    found = (each for each in sorted(file.parent.iterdir()) if each.suffix in DATA)
    return [each for each in found if not each.with_suffix(".py").exists()]


@functools.cache
def commit() -> str:
    """The commit that this code was checked out at; empty where it was installed, or where git is not."""
    root, git = Path(__file__).parents[2], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""
    command = [git, "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
