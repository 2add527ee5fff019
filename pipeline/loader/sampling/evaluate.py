"""Values of expressions, by numpy: one for each row. A missing value fulfils no comparison but `is null`."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.expressions import column_name
from pipeline.core.errors import RecipeError

Value = npt.NDArray[Any]
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: np.true_divide, ast.Mod: np.mod,
    ast.Pow: np.power,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[[str, str], bool]] = {
    "startswith": str.startswith, "endswith": str.endswith, "contains": operator.contains,
}  # fmt: skip


def evaluate(tree: ast.expr, columns: Mapping[str, Value], said: str) -> Value:
    """Returns the value of an expression for each row: bool, numbers, or objects that are texts; 0-d for a constant.

    tree: of `parse_expression`. columns: those that it names, all [N]. said: field and text, for messages. Raises
    RecipeError if types don't go together.
    """
    return _Evaluation(columns, said).value(tree)


class _Evaluation:
    def __init__(self, columns: Mapping[str, Value], said: str) -> None:
        self._columns, self._said = columns, said

    def value(self, node: ast.expr) -> Value:
        """Returns the value of a node, by the method for its class."""
        found: Value = getattr(self, f"_{type(node).__name__.lower()}")(node)
        return found

    def _name(self, node: ast.Name) -> Value:
        return self._columns[column_name(node)]

    def _constant(self, node: ast.Constant) -> Value:
        if node.value is None:
            raise self._error("null has no value; write `COLUMN is null`")
        if isinstance(node.value, int) and not isinstance(node.value, bool) and abs(node.value) >= 2**63:
            return np.array(float(min(max(node.value, -(10**300)), 10**300)))
        return np.array(node.value, dtype=object if isinstance(node.value, str) else None)

    def _boolop(self, node: ast.BoolOp) -> Value:
        values = [self._truth(each) for each in node.values]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        result = values[0]
        for each in values[1:]:
            result = join(result, each)
        return result

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return np.logical_not(self._truth(node.operand))
        number = self._number(node.operand)
        return -number if isinstance(node.op, ast.USub) else number

    def _binop(self, node: ast.BinOp) -> Value:
        # In float64: products of sizes don't fit into 32 bits, and integers have no negative powers.
        left, right = (self._number(each).astype(np.float64) for each in (node.left, node.right))
        return np.asarray(_ARITHMETIC[type(node.op)](left, right))

    def _ifexp(self, node: ast.IfExp) -> Value:
        return np.where(self._truth(node.test), self._number(node.body), self._number(node.orelse))

    def _call(self, node: ast.Call) -> Value:
        assert isinstance(node.func, ast.Name)
        texts, part = (self.value(each) for each in node.args)
        if _kind(texts) != "text" or _kind(part) != "text" or part.ndim:
            raise self._error(f"{ast.unparse(node)}: takes a column of texts and a text")
        function = _FUNCTIONS[node.func.id]
        return self._of_texts(texts, lambda text: function(text, part.item()))

    def _compare(self, node: ast.Compare) -> Value:
        result: Value = np.array(True)
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            result = np.logical_and(result, self._one(left, op, right))
        return result

    def _one(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Value:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error("`is` is for null; use == to compare")
            missing = _missing(self.value(left))
            return missing if isinstance(op, ast.Is) else ~missing
        if isinstance(op, ast.In | ast.NotIn):
            return self._member(self.value(left), right, isinstance(op, ast.In))
        one, other = self.value(left), self.value(right)
        if (_kind(one) == "text") != (_kind(other) == "text"):
            raise self._error(f"{ast.unparse(left)} is a {_kind(one)} and {ast.unparse(right)} a {_kind(other)}")
        known = ~(_missing(one) | _missing(other)) if _kind(one) != "text" else np.array(True)
        return np.logical_and(_COMPARE[type(op)](one, other).astype(np.bool_), known)

    def _member(self, values: Value, right: ast.expr, wanted: bool) -> Value:
        if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
            raise self._error("`in` takes a list, such as class in ['cat', 'dog']")
        members = [self.value(each) for each in right.elts]
        if any(each.ndim or (_kind(each) == "text") != (_kind(values) == "text") for each in members):
            raise self._error(f"the list after `in` must hold constants, each a {_kind(values)}")
        if _kind(values) == "text":
            texts = {each.item() for each in members}
            found = self._of_texts(values, lambda text: text in texts)
        else:
            found = np.isin(values, np.array([each.item() for each in members]))
        return found if wanted else np.logical_and(~found, ~_missing(values))

    @staticmethod
    def _of_texts(texts: Value, test: Callable[[str], bool]) -> Value:
        flat = texts.ravel().tolist()
        return np.fromiter((test(text) for text in flat), dtype=np.bool_, count=len(flat)).reshape(texts.shape)

    def _truth(self, node: ast.expr) -> Value:
        value = self.value(node)
        if _kind(value) != "condition":
            raise self._error(f"{ast.unparse(node)} is a {_kind(value)}, not a condition such as width >= 200")
        return value

    def _number(self, node: ast.expr) -> Value:
        value = self.value(node)
        if _kind(value) == "text":
            raise self._error(f"{ast.unparse(node)} is a text, and a number is needed")
        return value.astype(np.int64) if _kind(value) == "condition" else value

    def _error(self, text: str) -> RecipeError:
        return RecipeError(f"{self._said}: {text.replace('class_', 'class')}")


def _kind(value: Value) -> str:
    return {"O": "text", "b": "condition"}.get(value.dtype.kind, "number")


def _missing(value: Value) -> Value:
    if value.dtype == object:
        return np.asarray(value == "").astype(np.bool_)
    return np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, dtype=np.bool_)
