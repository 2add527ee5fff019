"""Expressions of a data set's columns, such as `width >= 200 and class != 'tench'`: parsed, and checked to be harmless.

The grammar is Python's: comparisons, `and`, `or`, `not`, `in`, arithmetic, `a if condition else b`, and a few
functions of texts. `AND`, `OR`, `NOT`, `IN`, `IS NULL` and `=` are taken as SQL means them.
"""

import ast
import io
import tokenize
from functools import lru_cache

from pipeline.core.errors import RecipeError

CLASS = "class"
_CLASS_NAME = "class_"  # `class` is a word of Python's own
FUNCTIONS = ("startswith", "endswith", "contains")
_SQL = {
    "AND": "and", "OR": "or", "NOT": "not", "IN": "in", "IS": "is", "NULL": "None", "null": "None", "=": "==",
    CLASS: _CLASS_NAME,
}  # fmt: skip
_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.Mod, ast.Pow, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In,
    ast.NotIn, ast.Is, ast.IsNot, ast.IfExp, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple, ast.Call,
)  # fmt: skip
_WORDS = "comparisons, and, or, not, in, is null, + - * / % **, if else"


@lru_cache(maxsize=64)
def parse_expression(field_name: str, text: str) -> ast.expr:
    """Returns the syntax tree of an expression that holds nothing but columns, constants and operators.

    field_name: for messages. Raises RecipeError with the field, the text and what is wrong.
    """
    try:
        tree = ast.parse(_as_python(text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        reason = str(error.args[0]).partition(" (")[0] if error.args else "too deep"
        raise RecipeError(f'{field_name}={text!r}: no expression ({reason}); write it as "width >= 200"') from error
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            raise RecipeError(f"{field_name}={text!r}: {_said(node)} has no place in it; there are {_WORDS}")
        if isinstance(node, ast.Call):
            _check_call(field_name, text, node)
        if isinstance(node, ast.Constant) and not isinstance(node.value, int | float | str | None):
            raise RecipeError(f"{field_name}={text!r}: {node.value!r} is no number and no text")
    return tree.body


def column_names(tree: ast.expr) -> list[str]:
    """Returns the names of the columns in an expression, each once, in order of the first mention."""
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions]
    return list(dict.fromkeys(column_name(node) for node in nodes))


def column_name(node: ast.Name) -> str:
    """Returns the name of the column that a node stands for."""
    return CLASS if node.id == _CLASS_NAME else node.id


def _as_python(text: str) -> str:
    """Returns the expression in Python's words. Raises SyntaxError or TokenError if it has none."""
    words: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(" ".join(text.split("\n")).strip()).readline):
        if token.string == ">" and words and words[-1][1] == "<":
            words[-1] = (tokenize.OP, "!=")  # SQL's <>
        else:
            words.append((token.type, _SQL.get(token.string, token.string)))
    return tokenize.untokenize(words).strip()


def _check_call(field_name: str, text: str, node: ast.Call) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS:
        raise RecipeError(
            f"{field_name}={text!r}: {name or _said(node.func)} is no function here; there are {', '.join(FUNCTIONS)}"
        )
    if len(node.args) != 2 or node.keywords:
        raise RecipeError(f"{field_name}={text!r}: {name} takes a column and a text, as {name}(key, 'abc')")


def _said(node: ast.AST) -> str:
    try:
        return f"`{ast.unparse(node)}`"
    except (ValueError, AttributeError, RecursionError):
        return type(node).__name__
