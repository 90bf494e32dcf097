"""Whether a function only reads a list, dict or set, by what it says.

Where that is so, what such a thing holds is as good as a constant. What cannot be told counts as
changed: one that is handed to a function, kept under another name, or asked for a method that is
not known to leave it alone.
"""

from __future__ import annotations

import ast

_METHODS = {"copy", "count", "get", "index", "items", "keys", "values"}
_METHODS |= {"difference", "intersection", "isdisjoint", "issubset", "issuperset", "union"}
_BUILTINS = {"all", "any", "dict", "enumerate", "filter", "frozenset", "len", "list", "map", "max"}
_BUILTINS |= {"min", "repr", "reversed", "set", "sorted", "str", "sum", "tuple", "zip"}


def only_reads(tree: ast.AST, name: str) -> bool:
    """Whether all that a function does with what a name holds leaves it as it is.

    What is in it is taken to be constants: whoever gets one of them cannot change it.

    Args:
        tree: of the function's own lines.
        name: of a variable.
    """
    above = {inner: outer for outer in ast.walk(tree) for inner in ast.iter_child_nodes(outer)}
    own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return all(
        _leaves_alone(node, above[node], own)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name
    )


def _leaves_alone(name: ast.Name, user: ast.AST, own: set[str]) -> bool:
    """Whether what stands around a name reads what it holds; `own`: names set in the function."""
    match user:
        case ast.Subscript(value=inner, ctx=ast.Load()) if inner is name:
            return True
        case ast.Attribute(value=inner, attr=attr):
            return inner is name and attr in _METHODS
        case ast.For(iter=inner) | ast.comprehension(iter=inner):
            return inner is name
        case ast.Call(func=ast.Name(id=function)):
            return function in _BUILTINS - own and user.func is not name
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join")):
            return True
        case ast.Dict(keys=keys, values=values):
            return keys[values.index(name)] is None
        case ast.keyword(arg=None) | ast.Compare() | ast.BinOp() | ast.FormattedValue():
            return True
        case ast.Starred():
            return isinstance(name.ctx, ast.Load)
        case ast.AugAssign(value=inner) | ast.If(test=inner) | ast.IfExp(test=inner):
            return inner is name
        case ast.While(test=inner):
            return inner is name
        case ast.UnaryOp(op=ast.Not()):
            return True
    return False
