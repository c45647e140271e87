"""
What the database and its sidecar have: versions, the model, and the dimensions that it may be searched by.

In:  a connection      Out: a `Model` and its `Server`, or why there can be no evaluation
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nv_embed.evaluation.errors import EvaluationFailed
from nv_embed.evaluation.statements import Connection, plain


@dataclass(frozen=True)
class Server:
    postgres: str
    pgvector: str
    nv_embed: str


@dataclass(frozen=True)
class Model:
    """The model that embeds.

    Attributes:
        trained_dims: its own.
        declared_dims: those that the sidecar's operator allows beside them.
    """

    name: str
    revision: str
    native_dim: int
    trained_dims: Sequence[int]
    declared_dims: Sequence[int]
    max_tokens: int
    device: str
    precision: str

    @property
    def dims(self) -> list[int]:
        """All that may be searched by, widest first."""
        return sorted({self.native_dim, *self.trained_dims, *self.declared_dims}, reverse=True)


def find_server(connection: Connection) -> Server:
    """Look at the server, and put the functions that are called in sight."""
    postgres, pgvector, extension, schemas = connection.execute(plain("server")).fetchall()[0]
    if extension is None:
        raise EvaluationFailed(
            "this database lacks the extension nv_embed, which embeds in SQL: `nv-embed install` (the library install cannot do it)"
        )
    connection.execute("SELECT set_config('search_path', %s, false)", [schemas])
    return Server(postgres, pgvector, extension)


def find_model(connection: Connection, name: str | None) -> Model:
    """The model of this name, or the sidecar's default."""
    rows = connection.execute(plain("models")).fetchall()
    for *facts, is_default in rows:
        if is_default if name is None else facts[0] == name:
            return Model(*facts)
    raise EvaluationFailed(f"the sidecar serves no model {name}, only {', '.join(row[0] for row in rows)}: `nv-embed up --model {name}`")


def check_dims(model: Model, dims: Sequence[int]) -> list[int]:
    """The dimensions to measure, widest first: those asked for, else all that the model has."""
    for dim in dims:
        if not 1 <= dim <= model.native_dim:
            raise EvaluationFailed(f"{model.name} makes vectors of {model.native_dim} dimensions, so they cannot be searched by {dim}")
    refused = sorted(set(dims) - set(model.dims), reverse=True)
    if refused:
        declared = ",".join(map(str, sorted({*model.declared_dims, *refused}, reverse=True)))
        raise EvaluationFailed(
            f"{model.name} was not trained for {_listed(refused)} dimensions, only for {_listed(model.trained_dims)}; "
            f"to measure them all the same, start the sidecar with `nv-embed up -- --dims {declared}`, or `nv-embed serve --dims {declared}`"
        )
    return sorted(set(dims), reverse=True) or model.dims


def _listed(dims: Sequence[int]) -> str:
    return ", ".join(map(str, dims))
