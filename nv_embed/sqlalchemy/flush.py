"""
Objects get their vectors at the flush that writes them.

Before a flush writes anything, the texts of its new and changed objects are rendered as the database would render them, and embedded in one call for
each model. The vectors are set on the objects, so they are written with their rows, and the triggers have nothing left to do.

What cannot be told here is left to the database, as everything is that no flush writes: a text that a default of the server's or a generated column
goes into, a value that Postgres writes in a way of its own, an embedding that is not as metadata say. So is a row whose text an event changes after
it was embedded. A changed row's other columns may be newer in the database than in the session: they are read again, and the row is locked.

In:  a session about to flush      Out: vectors set on its objects
"""

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import CHAR, Column, Enum, Integer, String, Table, Uuid, inspect, select, tuple_, update
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.attributes import set_attribute, set_committed_value
from sqlalchemy.types import TypeDecorator, TypeEngine

from nv_embed.errors import EmbedError
from nv_embed.sqlalchemy.column import Embedded
from nv_embed.sqlalchemy.embedding import Embedding, declared, relation_name, source_columns
from nv_embed.sqlalchemy.held import Held, hold

MISSING = object()


class Made(list[float]):
    """A vector that a flush has set on an object.

    It is the row's once that is written. Until then it is nobody's: the object may be rolled back and keep it, and come again with another text. That
    is told by the value, since it goes along where an object is merged, pickled or added to another session.
    """


Embed = Callable[[Sequence[str], Held], Sequence[list[float]]]
"""Texts, and what makes their vectors."""


@dataclass(frozen=True)
class Place:
    """Where a mapped class has a vector.

    Attributes:
        key: the attribute's.
        table: whose column it is.
        attributes: by the names of that table's columns.
    """

    mapper: Mapper[Any]
    key: str
    table: Table
    embedding: Embedding
    attributes: Mapping[str, str] = field(hash=False)


@dataclass
class Row:
    """An object that awaits its vector.

    Attributes:
        changed: of one that the database has, which attributes are written; None of a new one.
        stored: what the database has in its source columns, by their names.
        seen: the source attributes when its text was rendered: what each may be now, unless an event has set it.
    """

    place: Place
    state: InstanceState[Any]
    changed: Set[str] | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)
    seen: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def look(self, held: Held) -> dict[str, tuple[Any, ...]]:
        """The source attributes as they are now. One that is not there yet may be loaded while its row is written."""
        keys = {name: key for name, key in self.place.attributes.items() if name in held.columns}
        values = self.state.dict
        return {key: (values[key],) if key in values else (MISSING, self.stored.get(name, MISSING)) for name, key in keys.items()}


def embed(session: Session, call: Embed) -> list[Row]:
    """Set the vectors of what is about to be flushed; returns the rows that got one.

    Raises:
        EmbedError: nothing was set, and nothing is flushed.
    """
    _take_back(session)
    texts: dict[tuple[Any, ...], tuple[Held, list[tuple[Row, str]]]] = {}
    blank: list[Row] = []
    for row, held, text in _texts(session):
        row.seen = row.look(held)
        if text:
            texts.setdefault((held.model, held.revision, held.dim, held.truncate), (held, []))[1].append((row, text))
        elif row.changed is not None:
            blank.append(row)
    vectors = [pair for held, found in texts.values() for pair in _embedded(held, found, call)]
    for row, vector in vectors:
        set_attribute(row.state.obj(), row.place.key, Made(vector))
    for row in blank:
        set_attribute(row.state.obj(), row.place.key, None)
    return [row for row, _ in vectors]


def mend(session: Session, rows: Iterable[Row]) -> None:
    """Have the database embed the rows whose texts were changed by events while they were flushed."""
    for row in rows:
        if any(row.state.dict.get(key, MISSING) not in values for key, values in row.seen.items()):
            place = row.place
            matches = [column == row.state.dict[place.attributes[column.name]] for column in place.table.primary_key]
            statement = update(place.table).where(*matches).values({place.table.columns[place.embedding.target]: None})
            session.execute(statement, bind_arguments={"mapper": place.mapper})
            set_committed_value(row.state.obj(), place.key, None)


def _take_back(session: Session) -> None:
    """Take away what an earlier flush has set and not written, or not for good."""
    for state, place in _flushed(session):
        if isinstance(state.dict.get(place.key), Made):
            if not state.persistent:
                set_attribute(state.obj(), place.key, None)
            elif _is_written(state, place.key):
                session.expire(state.obj(), [place.key])


def _texts(session: Session) -> Iterator[tuple[Row, Held, str]]:
    """The rows whose texts can be told here; a text is empty where it has no content."""
    for place, rows in _awaiting(session).items():
        held = hold(session, relation_name(place.table), place.embedding.target, {"mapper": place.mapper})
        if held is None or not _is_ours(place, held):
            continue
        sources = {name: place.attributes.get(name) for name in held.columns if name is not None}
        written = [row for row in rows if row.changed is None or any(key in row.changed for key in sources.values())]
        for row in _read_again(session, place, sources, written):
            text = _rendered(row, held)
            if text is not None and (row.changed is None or text != _rendered(replace(row, changed=frozenset()), held)):
                yield row, held, text


def _awaiting(session: Session) -> dict[Place, list[Row]]:
    """New objects without a vector, and changed ones whose sources, as metadata have them, are written and their vector is not."""
    found: dict[Place, list[Row]] = {}
    for state, place in _flushed(session):
        if not state.persistent:
            if state.dict.get(place.key) is None:
                found.setdefault(place, []).append(Row(place, state))
        elif not _is_written(state, place.key):
            changed = {key for key in _sources(place) if _is_written(state, key)}
            if changed:
                found.setdefault(place, []).append(Row(place, state, changed))
    return found


def _flushed(session: Session) -> Iterator[tuple[InstanceState[Any], Place]]:
    """What is about to be flushed, and where it has vectors."""
    places: dict[Mapper[Any], list[Place]] = {}
    for state in [*map(inspect, session.new), *map(inspect, session.dirty)]:
        if state.mapper not in places:
            places[state.mapper] = list(_places(state.mapper))
        for place in places[state.mapper]:
            yield state, place


def _places(mapper: Mapper[Any]) -> Iterator[Place]:
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        if isinstance(column, Column) and isinstance(column.type, Embedded) and isinstance(column.table, Table):
            attributes = {
                each.name: other.key for other in mapper.column_attrs for each in other.columns if getattr(each, "table", None) is column.table
            }
            yield Place(mapper, attribute.key, column.table, declared(column.table)[column.name], attributes)


def _sources(place: Place) -> Iterator[str]:
    """The attributes that are embedded, as metadata have it."""
    return (place.attributes[name] for name in source_columns(place.embedding.source) if name in place.attributes)


def _is_written(state: InstanceState[Any], key: str) -> bool:
    return state.attrs[key].history.has_changes()


def _is_ours(place: Place, held: Held) -> bool:
    """Whether flushes embed for this column. A worker does where metadata say async, or the session; what is declared is for what SQL writes."""
    is_waited_for = held.mode != "off" and held.session_mode in (None, "sync") and place.embedding.mode in (None, "sync")
    return is_waited_for and (held.dim, held.storage) == (place.embedding.dim, place.embedding.storage)


def _read_again(session: Session, place: Place, names: Collection[str], rows: list[Row]) -> list[Row]:
    """Read what changed rows were embedded from, and keep it from being changed by others."""
    changed = {_identity(row): row for row in rows if row.changed is not None}
    columns = [column for column in place.table.columns if column.name in names]
    if not changed:
        return rows
    keys = list(place.table.primary_key)
    statement = select(*keys, *columns).where(tuple_(*keys).in_(list(changed))).order_by(*keys).with_for_update(key_share=True)
    for found in session.execute(statement, bind_arguments={"mapper": place.mapper}):
        changed[tuple(found[: len(keys)])].stored = dict(zip((column.name for column in columns), found[len(keys) :], strict=True))
    return [row for row in rows if row.changed is None or row.stored]


def _identity(row: Row) -> tuple[Any, ...]:
    """The primary key that the row has in the database."""
    mapper, identity = row.place.mapper, row.state.identity or ()
    values = {mapper.get_property_by_column(column).key: value for column, value in zip(mapper.primary_key, identity, strict=True)}
    return tuple(values[row.place.attributes[column.name]] for column in row.place.table.primary_key)


def _rendered(row: Row, held: Held) -> str | None:
    """A row's text, empty where it has no content; None where it cannot be told here."""
    parts: list[str] = []
    content = ""
    for literal, name in zip(held.literals, held.columns, strict=True):
        value = "" if name is None else _value(row, name)
        if value is None:
            return None
        parts += [literal, value]
        content += value
    if content.strip():
        return "".join(parts)
    return "" if set(content) <= set(" \t\n\v\f\r") else None


def _value(row: Row, name: str) -> str | None:
    """A source column's text; None where it cannot be told here."""
    place = row.place
    column = next((each for each in place.table.columns if each.name == name), None)
    if column is None or name not in place.attributes or column.computed is not None:
        return None
    key = place.attributes[name]
    if row.changed is None and key not in row.state.dict:
        return None if _is_filled_in(column) else ""
    if row.changed is None or key in row.changed:
        return _text(row.state.dict[key], column)
    return None if column.onupdate is not None or column.server_onupdate is not None else _text(row.stored[name], column)


def _is_filled_in(column: Column[Any]) -> bool:
    """Whether a column that an object leaves out gets a value as its row is written."""
    return bool(column.primary_key or column.foreign_keys) or column.default is not None or column.server_default is not None


def _text(value: Any, column: Column[Any]) -> str | None:
    """A value as Postgres writes it, for the types for which that is plain."""
    kind = _plain(column.type)
    if value is None:
        return ""
    if type(value) is str and isinstance(kind, String) and not isinstance(kind, CHAR | Enum):
        return value
    if (type(value) is int and isinstance(kind, Integer)) or (isinstance(value, uuid.UUID) and isinstance(kind, Uuid)):
        return str(value)
    return None


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type that a decorated one is written as, where the decoration does not change what is written."""
    if isinstance(kind, TypeDecorator) and type(kind).process_bind_param is TypeDecorator.process_bind_param and not kind._has_bind_expression:
        return kind.impl_instance
    return kind


def _embedded(held: Held, found: Sequence[tuple[Row, str]], call: Embed) -> Iterator[tuple[Row, list[float]]]:
    texts = list(dict.fromkeys(text for _, text in found))
    try:
        vectors = dict(zip(texts, call(texts, held), strict=True))
    except EmbedError as error:
        if error.position is not None:
            row = next(row for row, text in found if text == texts[error.position])
            error.message, error.position = f"{_named(row)}: {error.message}", None
        raise
    for row, text in found:
        yield row, vectors[text]


def _named(row: Row) -> str:
    """An object in words: its class, and its primary key as far as it has one."""
    mapper = row.place.mapper
    keys = (mapper.get_property_by_column(column).key for column in mapper.primary_key)
    has = ", ".join(f"{key}={row.state.dict[key]!r}" for key in keys if row.state.dict.get(key) is not None)
    return f"{mapper.class_.__name__}({has})"
