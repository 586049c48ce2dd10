"""Formulas of costs, conditions and rules: arithmetic on choices, for many networks at once, and nothing else.

They are parsed, checked, and then computed by simpleeval cut down to five kinds of nodes over NumPy's functions: no calls, attributes,
subscripts, and/or, conditionals or chained comparisons, which a formula of a cost does not need. ``*`` is and.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from simpleeval import SimpleEval  # type: ignore[import-untyped]

from llmpp_core.space.choice import Choice, meant, show

_LONGEST, _MOST_NODES = 1000, 300
_ALLOWED = "allowed are numbers, names, + - * / // % ** and comparisons"


def _as_number(compare: np.ufunc) -> Callable[[Any, Any], Any]:
    # Truth values of NumPy add up to true and cannot be subtracted.
    return lambda a, b: compare(a, b) * 1.0


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
    ast.Eq: _as_number(np.equal),
    ast.NotEq: _as_number(np.not_equal),
    ast.Lt: _as_number(np.less),
    ast.LtE: _as_number(np.less_equal),
    ast.Gt: _as_number(np.greater),
    ast.GtE: _as_number(np.greater_equal),
}
NODES = (ast.Constant, ast.Name, ast.BinOp, ast.UnaryOp, ast.Compare)


class Evaluator(SimpleEval):
    """simpleeval without all that formulas do not need; a formula can reach nothing but the given arrays."""

    def __init__(self, names: Mapping[str, Any]):
        super().__init__(operators=OPERATORS, functions={}, names=dict(names))
        self.nodes: Any = {node: self.nodes[node] for node in NODES}
        self.ATTR_INDEX_FALLBACK = False


class Formula:
    """A formula over the choices and constants of a space.

    Parameters
    ----------
    text : str
    known : mapping of str to Choice or None
        The names that may be used; a choice without numbers can only be compared with its values.
    refused : mapping of str to str, optional
        Names that exist but not here, and why.

    Attributes
    ----------
    names : tuple of str
        What is used, in order.

    Raises
    ------
    ValueError
        Naming what is not allowed and what is.
    """

    def __init__(self, text: Any, known: Mapping[str, Choice | None], refused: Mapping[str, str] | None = None):
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            text = repr(text)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"expected a formula, got {text!r}")
        if len(text) > _LONGEST:
            raise ValueError(f"a formula of {len(text):,} characters; at most {_LONGEST:,} are allowed")
        self.text, self._known, self._refused = text, known, refused or {}
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"{text[:80]!r} is no formula; {_ALLOWED}") from None
        if sum(1 for _ in ast.walk(tree)) > _MOST_NODES:
            raise ValueError(f"a formula of more than {_MOST_NODES} parts")
        self._found: dict[str, None] = {}
        self._tree = self._checked(tree)
        self.names = tuple(self._found)

    def __call__(self, names: Mapping[str, Any]) -> Any:
        """Return the value, for arrays an array; what cannot be computed is nan or infinite."""
        with np.errstate(all="ignore"):
            return Evaluator(names).eval(self.text, previously_parsed=self._tree)

    def _checked(self, node: ast.AST) -> ast.expr:
        """Return the node with numbers as floats and values of categories as their positions."""
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            try:
                return ast.Constant(np.float64(node.value))
            except OverflowError:
                return ast.Constant(np.float64(np.inf))
        if isinstance(node, ast.Name):
            choice = self._looked_up(node.id)
            if choice is not None and choice.numbers is None:
                raise ValueError(f"{node.id!r} is a category: compare it by == or != with one of {choice.allowed()}")
            return node
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return ast.BinOp(self._checked(node.left), node.op, self._checked(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            return ast.UnaryOp(node.op, self._checked(node.operand))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPERATORS:
            left, right = node.left, node.comparators[0]
            return self._category(left, node.ops[0], right) or self._category(right, node.ops[0], left) or self._compared(node)
        raise ValueError(f"{_described(node)} is not allowed; {_ALLOWED}")

    def _compared(self, node: ast.Compare) -> ast.expr:
        return ast.Compare(self._checked(node.left), node.ops, [self._checked(node.comparators[0])])

    def _category(self, name: ast.AST, operator: ast.cmpop, value: ast.AST) -> ast.expr | None:
        choice = self._looked_up(name.id) if isinstance(name, ast.Name) else None
        if choice is None or choice.numbers is not None or not isinstance(name, ast.Name):
            return None
        if not isinstance(operator, (ast.Eq, ast.NotEq)) or not isinstance(value, ast.Constant):
            raise ValueError(f"{name.id!r} is a category: compare it by == or != with one of {choice.allowed()}")
        if value.value not in choice.values:
            holds = "never" if isinstance(operator, ast.Eq) else "always"
            raise ValueError(
                f'"{ast.unparse(ast.Compare(name, [operator], [value]))}" {holds} holds; {name.id} is one of {choice.allowed()}'
            )
        return ast.Compare(name, [operator], [ast.Constant(np.float64(choice.values.index(value.value)))])

    def _looked_up(self, name: str) -> Choice | None:
        if name in self._refused:
            raise ValueError(self._refused[name])
        if name not in self._known:
            # What is derived, such as width_before, would make the list long.
            plain = [key for key in (*self._known, *self._refused) if not key.endswith(("_first", "_last", "_before"))]
            raise ValueError(f"unknown name {name!r}; choices and constants are {', '.join(plain)}{meant(name, self._known)}")
        self._found[name] = None
        return self._known[name]


def _described(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return f"a call ({ast.unparse(node.func)[:40]})"
    if isinstance(node, ast.Constant):
        return f"{show(node.value)[:40]}, other than beside == or != of a category,"
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        return "a chained comparison (write (1 < a)*(a < 3))"
    return f"{ast.unparse(node)[:40]!r}"
