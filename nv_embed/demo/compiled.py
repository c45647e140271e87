"""
Modules from C, and the few whose public names are made at run time: imported and asked.

In:  a module's name      Out: `Module`
"""

import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from nv_embed.demo.bindings import Module, Thing


def import_compiled(name: str) -> ModuleType | None:
    """The module if it is compiled; Python source is never run."""
    if name not in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
        is_compiled = spec is not None and (spec.origin == "built-in" or isinstance(spec.loader, importlib.machinery.ExtensionFileLoader))
        return importlib.import_module(name) if is_compiled else None
    except (ImportError, ValueError):
        return None


def describe(name: str, compiled: ModuleType) -> Module:
    module = Module(name, _doc_of(compiled))
    for key, value in sorted(vars(compiled).items()):
        if inspect.isclass(value) or inspect.isroutine(value):
            module.bind(key, _thing_from_object(value, name, key))
    return module


def runtime_things(name: str) -> Iterator[tuple[str, Thing]]:
    module = importlib.import_module(name)
    for key in sorted(module.__all__):
        value = getattr(module, key, None)
        function = getattr(value, "__func__", value)
        if inspect.isroutine(function):
            yield key, _thing_from_object(function, name, key)


def _thing_from_class(cls: type[Any]) -> Thing:
    thing = Thing((cls.__module__, cls.__qualname__), "class", _signature_of(cls), _doc_of(cls))
    thing.bases = [_thing_from_class(base) for base in cls.__bases__ if base is not object]
    for key, value in sorted(vars(cls).items()):
        if key.startswith("_"):
            continue
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isroutine(function):
            kind = "method"
        elif inspect.isdatadescriptor(function):
            kind = "property"
        else:
            continue
        signature = _signature_of(function) if kind == "method" else ""
        thing.members[key] = Thing((cls.__module__, f"{cls.__qualname__}.{key}"), kind, signature, _doc_of(function))
    return thing


def _thing_from_object(value: Any, module: str, name: str) -> Thing:
    if inspect.isclass(value):
        return _thing_from_class(value)
    origin = getattr(value, "__module__", None) or module, getattr(value, "__qualname__", name)
    return Thing(origin, "function", _signature_of(value), _doc_of(value))


def _doc_of(value: Any) -> str:
    doc = value.__doc__
    return inspect.cleandoc(doc).strip() if isinstance(doc, str) else ""


def _signature_of(value: Any) -> str:
    """As C code states it, without the `$self` or `$module` in front. `inspect.signature` evaluates the defaults, which fails for some."""
    text = getattr(value, "__text_signature__", None)
    return re.sub(r"^\(\$\w+(, /)?(, )?", "(", text) if isinstance(text, str) else ""
