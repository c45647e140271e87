"""
LangChain's filters, as what nv_search filters by.

A filter is a dictionary: `{"lang": "en", "year": {"$gte": 2020}}`. It becomes a template of SQL's and its arguments, which Postgres's own `format`
puts together: names as `%I`, values as `%L`. The template has nothing in it that the caller wrote, so no key and no value can be anything but a key
and a value.

`$ne` and `$nin` are what `$eq` and `$in` leave, rows without the key among them; a key that is missing equals None. In metadata values are compared
as JSON has them, numbers with numbers and texts with texts; in columns as the column's type has them.

In:  a dictionary      Out: `Filter`, for `format(template, VARIADIC arguments)`
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nv_embed.errors import InvalidInput
from nv_embed.langchain.values import checked, plain, written

ORDERS = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
OPERATORS = ("$eq", "$ne", "$in", "$nin", *ORDERS)
CONNECTIVES = {"$and": ("AND", "true"), "$or": ("OR", "false")}

# In SQL and JSON alike these are ordered, each among its own.
KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = ((bool, "boolean"), ((int, float), "number"), (str, "string"))


@dataclass(frozen=True)
class Filter:
    """What `format` makes the text of a filter of.

    Attributes:
        template: SQL with `%1$I` and `%2$L` for the arguments.
    """

    template: str
    arguments: list[str]


def written_filter(wanted: Mapping[str, Any] | None, metadata: str | None, columns: Collection[str]) -> Filter | None:
    """A filter for a table; None where everything passes.

    Args:
        wanted: LangChain's dictionary.
        metadata: the table's jsonb column; None where it has none.
        columns: keys that have a column of their own.
    Raises:
        InvalidInput: it is no such dictionary, or asks for what the table does not have.
    """
    if not wanted:
        return None
    writer = _Writer(metadata, columns)
    return Filter(writer.everything(wanted), writer.arguments)


class _Writer:
    def __init__(self, metadata: str | None, columns: Collection[str]) -> None:
        self._metadata = metadata
        self._columns = columns
        self.arguments: list[str] = []

    def everything(self, wanted: Any) -> str:
        """All that a dictionary asks for."""
        if not isinstance(wanted, Mapping):
            raise InvalidInput(f"a filter is a {type(wanted).__name__}", hint="write it as a dictionary, {'lang': 'en', 'year': {'$gte': 2020}}")
        return _joined("AND", "true", [self._item(key, value) for key, value in wanted.items()])

    def _item(self, key: Any, value: Any) -> str:
        if key in CONNECTIVES:
            return _joined(*CONNECTIVES[key], [self.everything(each) for each in _list(key, value)])
        if not isinstance(key, str) or key.startswith("$"):
            raise InvalidInput(f"a filter has the key {key!r}", hint=f"keys are those of the metadata, or {' and '.join(CONNECTIVES)}")
        field = self._field(key)
        if not isinstance(value, Mapping) or not any(str(name).startswith("$") for name in value):
            return field.compared("$eq", value)
        return _joined("AND", "true", [field.compared(operator, operand) for operator, operand in value.items()])

    def _field(self, key: str) -> "_Field":
        if key in self._columns:
            return _Column(self._hole, key)
        if self._metadata is None:
            raise InvalidInput(f"the table has no metadata {key!r}", hint=f"it has {', '.join(self._columns) or 'none'}")
        return _Json(self._hole, key, self._metadata)

    def _hole(self, argument: str, kind: str = "L") -> str:
        self.arguments.append(checked(argument, "a filter"))
        return f"%{len(self.arguments)}${kind}"


class _Field:
    """What a key stands for.

    Attributes:
        hole: takes an argument, and has the template's text for it.
    """

    def __init__(self, hole: Callable[..., str], key: str) -> None:
        self.hole = hole
        self.key = key

    def compared(self, operator: Any, operand: Any) -> str:
        """True or not true, never left open."""
        if operator in ("$eq", "$ne"):
            found = self.equals(operand)
        elif operator in ("$in", "$nin"):
            found = _joined("OR", "false", [self.equals(value) for value in _list(operator, operand)])
        elif operator in ORDERS:
            found = self.ordered(ORDERS[operator], operand)
        else:
            raise InvalidInput(f"the filter of {self.key!r} has the operator {operator!r}", hint=f"there are {', '.join(OPERATORS)}")
        return f"({found}) IS NOT TRUE" if operator in ("$ne", "$nin") else found

    def equals(self, value: Any) -> str:
        raise NotImplementedError

    def ordered(self, operator: str, value: Any) -> str:
        raise NotImplementedError

    def unordered(self, value: Any) -> InvalidInput:
        return InvalidInput(f"the filter of {self.key!r} orders by {value!r}", hint="numbers, texts, booleans and moments have an order")


class _Column(_Field):
    """A column: literals take its type."""

    def equals(self, value: Any) -> str:
        name = self.hole(self.key, "I")
        return f"{name} IS NULL" if value is None else f"{name} = {self.hole(self._literal(value))}"

    def ordered(self, operator: str, value: Any) -> str:
        if value is None:
            raise self.unordered(value)
        return f"{self.hole(self.key, 'I')} {operator} {self.hole(self._literal(value))}"

    def _literal(self, value: Any) -> str:
        value = plain(value)
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, str | int | float):
            raise InvalidInput(
                f"the filter of {self.key!r} has a {type(value).__name__}", hint="a column is compared with a number, a text or a moment"
            )
        return str(value)


class _Json(_Field):
    """A key of the jsonb column."""

    def __init__(self, hole: Callable[..., str], key: str, metadata: str) -> None:
        super().__init__(hole, key)
        self.metadata = metadata

    def equals(self, value: Any) -> str:
        value = plain(value)
        if value is None:
            return f"coalesce({self._value()}, 'null') = 'null'"
        if isinstance(value, str | int | float):  # a GIN index of the column finds these
            return f"{self.hole(self.metadata, 'I')} @> {self.hole(self._written({self.key: value}))}::jsonb"
        return f"{self._value()} = {self.hole(self._written(value))}::jsonb"

    def ordered(self, operator: str, value: Any) -> str:
        value = plain(value)
        kind = next((name for types, name in KINDS if isinstance(value, types)), None)
        if kind is None:
            raise self.unordered(value)
        # jsonb has an order of kinds too, by which every text is below every number.
        return f"jsonb_typeof({self._value()}) = '{kind}' AND {self._value()} {operator} {self.hole(self._written(value))}::jsonb"

    def _value(self) -> str:
        return f"{self.hole(self.metadata, 'I')} -> {self.hole(self.key)}::text"

    def _written(self, value: Any) -> str:
        return written(value, f"the filter of {self.key!r}")


def _list(operator: str, operand: Any) -> Sequence[Any]:
    if isinstance(operand, str) or not isinstance(operand, Sequence | set | frozenset):
        raise InvalidInput(f"{operator} of a filter has a {type(operand).__name__}", hint="give it a list")
    return list(operand)


def _joined(connective: str, empty: str, parts: Sequence[str]) -> str:
    return f" {connective} ".join(f"({part})" for part in parts) or empty
