"""
The corpus: what Python's standard library says of itself.

Every machine that runs the demo has these texts, so none is copied into the repository. Pure-Python modules are parsed, not imported, because an
import runs code (some modules open browsers or print). Only C modules are imported, since their docstrings live nowhere else, and two modules that
make their public names at run time.

Both kinds become the same small `Module` of bindings. Public names are then looked up in them as the interpreter would: through `__all__`,
re-exports, star imports and aliases. A thing with several names keeps the one it is known by: `random.choice`, not `random.Random.choice`;
`os.path.join`, not `posixpath.join`.

In:  the running interpreter's library      Out: `Entry`s, sorted by name
"""

import pkgutil
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nv_embed.demo.bindings import Alias, Binding, Import, Module, Thing
from nv_embed.demo.compiled import describe, import_compiled, runtime_things
from nv_embed.demo.source import parse

PUBLIC_NAMES = {"builtins": "", "posixpath": "os.path", "_collections_abc": "collections.abc"}
"""Modules that people know by another name."""

SKIPPED = {
    "antigravity", "this",  # jokes
    "idlelib", "pydoc_data", "test", "turtledemo",  # programs, not a library
    "aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr", "imp", "lib2to3", "mailcap", "msilib",
    "nis", "nntplib", "ossaudiodev", "pipes", "smtpd", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib",  # gone in newer versions
    "tkinter", "turtle",  # need a display
    "nt", "ntpath", "nturl2path", "posix", "genericpath",  # what `os` and `os.path` are made of
    "readline",  # writes to the terminal when imported
}  # fmt: skip

SKIPPED_SUBMODULES = {"__main__", "test", "tests", "idle_test"}

GENERATED_SUBMODULES = {"encodings"}
"""Packages whose submodules are tables made by a program."""

RUNTIME_NAMES = {"hashlib", "multiprocessing"}
"""Modules that make public names at run time; harmless to import."""


@dataclass(frozen=True)
class Entry:
    """One documented public name.

    Attributes:
        name: as one would write it after the imports, `json.dumps`.
        kind: module, class, function, method or property.
        signature: `(a, b=1)`; empty where it is not cheaply had.
        doc: the docstring, cleaned of its indentation; never empty.
    """

    name: str
    kind: str
    signature: str
    doc: str


def read() -> list[Entry]:
    """Every documented public name of the running interpreter's standard library, sorted by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules say so when they are read
        library = Library(Path(sysconfig.get_path("stdlib")))
        return sorted(library.entries(), key=lambda entry: entry.name)


class Library:
    """The modules under one directory, each read when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules: dict[str, Module | None] = {}

    def entries(self) -> Iterator[Entry]:
        modules = [module for name in self._public_modules() if (module := self.module(name)) is not None]
        for module in modules:
            if " " in module.doc:
                yield Entry(PUBLIC_NAMES.get(module.name) or module.name, "module", "", module.doc)
        yield from _one_name_each(self._named_things(modules))

    def module(self, name: str) -> Module | None:
        """The module, or None where this machine does not have it."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def resolve(self, module: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Thing | None:
        """What a module means by a name: its own definition, else what it imported, the documented one first."""
        if (module.name, name) in seen:
            return None
        seen |= {(module.name, name)}
        found = [thing for binding in module.bindings.get(name, []) if (thing := self._follow(module, binding, seen)) is not None]
        for star in module.stars:
            source = self.module(star)
            if source is not None and not found:
                thing = self.resolve(source, name, seen)
                found += [thing] if thing is not None else []
        for thing in found:
            if thing.wraps and not thing.doc:
                wrapped = self._dotted(module, thing.wraps, seen)
                thing.doc = wrapped.doc if wrapped is not None else ""
        return next((thing for thing in found if thing.doc), found[0] if found else None)

    def bases(self, module: Module, thing: Thing) -> list[Thing]:
        home = self.module(thing.origin[0]) or module
        found = [self._dotted(home, base, frozenset()) if isinstance(base, str) else base for base in thing.bases]
        return [base for base in found if base is not None and base is not thing]

    def member(self, module: Module, thing: Thing, name: str) -> Thing | None:
        if name in thing.members:
            return thing.members[name]
        return next((found for base in self.bases(module, thing) if (found := self.member(module, base, name)) is not None), None)

    def _public_modules(self) -> Iterator[str]:
        for name in sorted(sys.stdlib_module_names):
            if name in PUBLIC_NAMES or not (name.startswith("_") or name in SKIPPED):
                yield name
                if name not in GENERATED_SUBMODULES:
                    yield from self._submodules(name)

    def _submodules(self, package: str) -> Iterator[str]:
        for info in pkgutil.iter_modules([str(self._root.joinpath(*package.split(".")))]):
            if not info.name.startswith(("_", "windows")) and info.name not in SKIPPED_SUBMODULES:
                name = f"{package}.{info.name}"
                if name not in PUBLIC_NAMES.values():
                    yield name
                if info.ispkg:
                    yield from self._submodules(name)

    def _named_things(self, modules: list[Module]) -> Iterator["Named"]:
        top = [(module, name, thing) for module in modules for name, thing in self._public_things(module)]
        public = {thing.origin for _, name, thing in top if not _is_renamed(name, thing)}
        for module, name, thing in top:
            prefix = PUBLIC_NAMES.get(module.name, module.name)
            full_name = f"{prefix}.{name}" if prefix else name
            kind = "function" if thing.kind == "method" else thing.kind
            yield Named(full_name, kind, module.name, 0, thing)
            start = 2 if _is_renamed(name, thing) else 0
            for member_name, member, hops in self._members(module, thing, public, start):
                yield Named(f"{full_name}.{member_name}", member.kind, module.name, hops, member)

    def _public_things(self, module: Module) -> Iterator[tuple[str, Thing]]:
        exports = module.exports or set()
        for name in sorted(self._names(module) | exports):
            if name.startswith("_"):
                continue
            thing = self.resolve(module, name) or (self._lazy_thing(module, name) if name in exports else None)
            if thing is not None and self._is_public(module, name, thing):
                yield name, thing
        if module.name in RUNTIME_NAMES:
            yield from runtime_things(module.name)

    def _names(self, module: Module, seen: frozenset[str] = frozenset()) -> set[str]:
        names = set(module.bindings)
        for star in module.stars:
            source = self.module(star)
            if source is not None and star not in seen:
                inner = self._names(source, seen | {star})
                names |= inner & source.exports if source.exports else inner
        return names

    def _is_public(self, module: Module, name: str, thing: Thing) -> bool:
        """Whether a module means a name it binds for its users, rather than having imported it for itself."""
        if module.exports is not None and (name in module.exports or not module.exports_more):
            return name in module.exports
        bindings = module.bindings.get(name, [])
        if any(isinstance(binding, Thing) for binding in bindings):
            return module.exports is None or self._is_from_star(module, name)
        source = next((binding.module for binding in bindings if isinstance(binding, Import)), thing.origin[0])
        is_own = module.is_package and source.startswith(module.name + ".")
        is_alias = any(isinstance(binding, Alias) for binding in bindings)
        return is_own or is_alias or _is_hidden(source) or (not bindings and self._is_from_star(module, name))

    def _is_from_star(self, module: Module, name: str) -> bool:
        sources = [source for star in module.stars if (source := self.module(star)) is not None and self.resolve(source, name) is not None]
        return any(module.is_package or _is_hidden(source.name) for source in sources)

    def _members(self, module: Module, thing: Thing, public: set[tuple[str, str]], hops: int) -> Iterator[tuple[str, Thing, int]]:
        """A class's public members. What it has from a base without a public name is its own in its users' eyes."""
        for name, member in thing.members.items():
            if not name.startswith("_"):
                yield name, member, hops
        bases = self.bases(module, thing)
        public_bases = [base for base in bases if base.origin in public]
        for base in bases:
            if base.origin not in public:
                for name, member, distance in self._members(module, base, public, hops + 1):
                    if name not in thing.members and all(self.member(module, known, name) is None for known in public_bases):
                        yield name, member, distance

    def _lazy_thing(self, module: Module, name: str) -> Thing | None:
        """A name that a package takes from one of its submodules when it is first used."""
        if not module.is_package:
            return None
        for submodule in self._submodules(module.name):
            source = self.module(submodule)
            thing = self.resolve(source, name) if source is not None else None
            if thing is not None:
                return thing
        return None

    def _follow(self, module: Module, binding: Binding, seen: frozenset[tuple[str, str]]) -> Thing | None:
        if isinstance(binding, Thing):
            return binding
        if isinstance(binding, Import):
            source = self.module(binding.module)
            return self.resolve(source, binding.name, seen) if source is not None else None
        thing = self._dotted(module, binding.target, seen)
        # An instance has the class's methods, but is not the class.
        return None if binding.instance else thing

    def _dotted(self, module: Module, path: str, seen: frozenset[tuple[str, str]]) -> Thing | None:
        head, *rest = path.split(".")
        thing = self._instance_class(module, head, seen) if rest else None
        thing = thing or self.resolve(module, head, seen)
        if thing is None and rest:
            source = self._imported_module(module, head)
            return self._dotted(source, ".".join(rest), seen) if source is not None else None
        if thing is None and not rest and head not in module.bindings:
            builtins = self.module("builtins")
            return self.resolve(builtins, head, seen) if builtins is not None else None
        for name in rest:
            thing = self.member(module, thing, name) if thing is not None else None
        return thing

    def _instance_class(self, module: Module, name: str, seen: frozenset[tuple[str, str]]) -> Thing | None:
        alias = next((b for b in module.bindings.get(name, []) if isinstance(b, Alias) and b.instance), None)
        return self._dotted(module, alias.target, seen) if alias is not None else None

    def _imported_module(self, module: Module, name: str) -> Module | None:
        for binding in module.bindings.get(name, []):
            if isinstance(binding, Import):
                path = f"{binding.module}.{binding.name}" if binding.name else binding.module
                return self.module(path)
        return None

    def _read(self, name: str) -> Module | None:
        path = self._root.joinpath(*name.split("."))
        for file, is_package in ((path / "__init__.py", True), (path.with_name(path.name + ".py"), False)):
            if file.is_file():
                return parse(name, file, is_package)
        if "." in name:
            return None
        compiled = None if name in SKIPPED - {"posix"} else import_compiled(name)
        return describe(name, compiled) if compiled is not None else None


@dataclass(frozen=True)
class Named:
    """A thing under one of its names.

    Attributes:
        hops: how many bases up the class it was found.
    """

    name: str
    kind: str
    module: str
    hops: int
    thing: Thing

    def rank(self) -> tuple[bool, bool, int, int, str]:
        """Lowest for the name a thing is best known by."""
        is_elsewhere = self.module != "builtins" and not f"{self.thing.origin[0]}.".startswith(f"{self.module}.")
        return _is_renamed(self.name, self.thing), is_elsewhere, self.hops, self.name.count("."), self.name


def _is_hidden(module: str) -> bool:
    return module in SKIPPED or any(part.startswith("_") for part in module.split("."))


def _is_renamed(name: str, thing: Thing) -> bool:
    return name.rpartition(".")[2] != thing.origin[1].rpartition(".")[2]


def _one_name_each(names: Iterable[Named]) -> Iterator[Entry]:
    best: dict[tuple[str, str], Named] = {}
    for named in names:
        known = best.get(named.thing.origin)
        if known is None or named.rank() < known.rank():
            best[named.thing.origin] = named
    given: set[str] = set()
    for named in sorted(best.values(), key=Named.rank):
        if " " in named.thing.doc and named.name not in given:  # one word is no documentation
            given.add(named.name)
            yield Entry(named.name, named.kind, named.thing.signature, named.thing.doc)
