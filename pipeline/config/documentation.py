"""Documentation of dataclass fields, read from the string literal below each field (PEP 258, attribute docstrings).

Python throws these strings away, so they are read from the source. The documentation pages (mkdocstrings) read the
same strings, and so does the help of the command-line flags that set the fields.
"""

import ast
import inspect
import textwrap
from functools import cache


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Returns {field: docstring} of a class, inherited fields included, in the order of definition.

    Line breaks are replaced by spaces. A field without a docstring is left out.
    """
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        if base is not object:
            docs |= field_docs(base)
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for node, below in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            docs[node.target.id] = " ".join(below.value.value.split())
    return docs


def field_help(cls: type, name: str) -> str:
    """Returns the first sentence of a field's docstring without its full stop, as a command-line flag's help.

    Raises KeyError if the field has no docstring.
    """
    text = field_docs(cls)[name]
    sentence, found, _ = text.partition(". ")
    return sentence if found else text.removesuffix(".")
