"""The syntax that a row_condition may have: pandas would run any Python in it, also a command of the shell.

Settings may be those of whoever can fill in a form, so a condition compares columns and does nothing else. A class of
the team is code, and its own condition may say anything.
"""

import ast
from typing import Any

from great_expectations.expectations.row_conditions import (
    AndCondition,
    ComparisonCondition,
    NullityCondition,
    OrCondition,
    PassThroughCondition,
)

from tunewright.accepted import shown
from tunewright.data_checks.suite import Entry, SuiteError

METHODS = ("between", "endswith", "isin", "isna", "isnull", "len", "lower", "notna", "notnull", "startswith", "strip")
NODES = (
    *(ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop),
    *(ast.BitAnd, ast.BitOr, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple, ast.Call),
)


def stop_on_code(entry: Entry, condition: Any) -> None:
    """Raises SuiteError where the condition that an entry gives does more than to compare columns."""
    given = entry.given["row_condition"]
    if "`" in f"{given}" or not _only_compares(condition):  # pandas and Python divide a text with backticks otherwise
        said = f"={shown(given)} does more than to compare columns"
        how = f"accepted: comparisons, with and, or, not and in, of columns and of their methods {', '.join(METHODS)}"
        raise SuiteError(f"{entry.key}.arguments.row_condition", f"{said}; {how}")


def _only_compares(condition: Any) -> bool:
    if isinstance(condition, AndCondition | OrCondition):
        return all(map(_only_compares, condition.conditions))
    if isinstance(condition, ComparisonCondition | NullityCondition):
        return condition.column.name.isidentifier()  # any other is put between backticks
    text = condition.pass_through_filter if isinstance(condition, PassThroughCondition) else condition or "True"
    try:
        nodes = [*ast.walk(ast.parse(text.strip(), mode="eval"))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # also of @
        return False
    return len(text.splitlines()) == 1 and all(map(_is_harmless, nodes))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("str", *METHODS)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitAnd | ast.BitOr)
    return isinstance(node, NODES) and not (isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute))
