"""
Modules from Python source: parsed, never run.

In:  a source file      Out: `Module`
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from nv_embed.demo.bindings import Alias, Import, Module, Thing

WAYS_TO_GROW = {"__all__", "__all__.append", "__all__.extend"}

WINDOWS_TESTS = {"sys.platform == 'win32'", "os.name == 'nt'", "name == 'nt'", "_mswindows", "__name__ == '__main__'"}
"""Conditions that are false here."""


def parse(name: str, file: Path, is_package: bool) -> Module:
    tree = ast.parse(file.read_bytes())
    module = Module(name, (ast.get_docstring(tree) or "").strip(), is_package)
    for statement in _executed(tree.body):
        _bind(module, statement)
    return module


def _executed(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those inside `if`, `try` and `with` too."""
    for statement in statements:
        if isinstance(statement, ast.If):
            if ast.unparse(statement.test) not in WINDOWS_TESTS:
                yield from _executed(statement.body)
            yield from _executed(statement.orelse)
        elif isinstance(statement, ast.Try):
            yield from _executed(statement.body)
            for handler in statement.handlers:
                yield from _executed(handler.body)
            yield from _executed(statement.orelse)
        elif isinstance(statement, ast.With):
            yield from _executed(statement.body)
        else:
            yield statement


def _bind(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        module.bind(statement.name, _thing_from_node(statement, module.name, ""))
    elif isinstance(statement, ast.ImportFrom):
        source = _absolute(module, statement)
        for alias in statement.names:
            if alias.name == "*":
                module.stars.append(source)
            else:
                module.bind(alias.asname or alias.name, Import(source, alias.name))
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            module.bind(alias.asname or alias.name, Import(alias.name, ""))
    else:
        _bind_assignment(module, statement)


def _bind_assignment(module: Module, statement: ast.stmt) -> None:
    """Aliases, docstrings taken from another function, and every way in which modules write `__all__`."""
    if isinstance(statement, ast.Assign):
        _bind_doc(module, statement)
        targets = [target.id for target in statement.targets if isinstance(target, ast.Name)]
        value: ast.expr = statement.value
    elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        targets, value = [statement.target.id], statement.value
    elif isinstance(statement, ast.Expr) and ast.unparse(statement).startswith("__all__."):
        targets, value = ["__all__"], statement.value
    else:
        return
    if "__all__" in targets:
        written = {node.value for node in ast.walk(value) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        module.exports = (module.exports or set()) | written
        module.exports_more |= any(isinstance(node, ast.Name | ast.Attribute) and _path(node) not in WAYS_TO_GROW for node in ast.walk(value))
        return
    is_instance = isinstance(value, ast.Call)
    path = _path(value.func if isinstance(value, ast.Call) else value)
    for target in targets:
        if path:
            module.bind(target, Alias(path, is_instance))


def _bind_doc(module: Module, statement: ast.Assign) -> None:
    """`name.__doc__ = other.__doc__`."""
    name, _, attribute = _path(statement.targets[0]).rpartition(".")
    source, _, source_attribute = _path(statement.value).rpartition(".")
    if attribute == source_attribute == "__doc__" and source:
        for binding in module.bindings.get(name, []):
            if isinstance(binding, Thing):
                binding.wraps = source


def _path(node: ast.expr) -> str:
    """`a.b.c` as text; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = _path(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.name.split(".")
    package = parts[: len(parts) - statement.level + module.is_package]
    return ".".join([*package, *([statement.module] if statement.module else [])])


def _thing_from_node(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, module: str, outer: str) -> Thing:
    qualified = f"{outer}.{node.name}" if outer else node.name
    doc = (ast.get_docstring(node) or "").strip()
    if not isinstance(node, ast.ClassDef):
        kind = _kind(node) if outer else "function"
        return Thing((module, qualified), kind, "" if kind == "property" else _signature(node, bool(outer)), doc, _wraps(node))
    members: dict[str, Thing] = {}
    for statement in _executed(node.body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            member = _thing_from_node(statement, module, qualified)
            if statement.name not in members or not members[statement.name].doc:
                members[statement.name] = member
    signature = members["__init__"].signature if "__init__" in members else ""
    bases: list[str | Thing] = [path for base in node.bases if (path := _path(base))]
    doc = doc or (members["__init__"].doc if "__init__" in members else "")
    return Thing((module, qualified), "class", signature, doc, "", bases, members)


def _kind(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = {_path(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return "property" if decorators & {"property", "cached_property", "DynamicClassAttribute"} else "method"


def _wraps(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call) and decorator.args]
    return next((_path(call.args[0]) for call in calls if _path(call.func).endswith("wraps")), "")


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> str:
    arguments = node.args
    first = [*arguments.posonlyargs, *arguments.args][:1]
    if is_method and first and first[0].arg in ("self", "cls"):
        (arguments.posonlyargs or arguments.args).pop(0)
    return f"({ast.unparse(arguments)})"
