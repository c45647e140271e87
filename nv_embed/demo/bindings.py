"""
What a module of Python binds: the shape that parsed sources and compiled modules share.

In:  source.py and compiled.py      Out: `Module`s, in which corpus.py looks names up
"""

from dataclasses import dataclass, field


@dataclass
class Thing:
    """A class, function, method or property.

    Attributes:
        origin: where it was defined, module and qualified name; two names with one origin are aliases.
        wraps: the function whose docstring it takes, as written in its source.
        bases: a class's bases, as written in its source or, from C, as things.
    """

    origin: tuple[str, str]
    kind: str
    signature: str
    doc: str
    wraps: str = ""
    bases: "list[str | Thing]" = field(default_factory=list)
    members: "dict[str, Thing]" = field(default_factory=dict)


@dataclass(frozen=True)
class Import:
    """`from module import name`."""

    module: str
    name: str


@dataclass(frozen=True)
class Alias:
    """`x = y` or `x = y.z`; with `instance`, `x = y()`."""

    target: str
    instance: bool = False


Binding = Thing | Import | Alias


@dataclass
class Module:
    """What a module binds at its top level.

    Attributes:
        exports: the names in `__all__` as far as they are written out; None where there is no `__all__`.
        exports_more: `__all__` is partly computed.
        stars: modules whose names it takes over by `import *`.
    """

    name: str
    doc: str
    is_package: bool = False
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    exports: set[str] | None = None
    exports_more: bool = False

    def bind(self, name: str, binding: Binding) -> None:
        self.bindings.setdefault(name, []).append(binding)
