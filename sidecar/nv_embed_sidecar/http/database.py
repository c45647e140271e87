"""
The seam to a database that the page shows.

The sidecar knows no database: what knows one is another package's, and is found by its entry point. So a sidecar runs where no driver is installed,
and shows a database where one is.

In:  a URL      Out: a `Database`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from nv_embed.errors import EmbedError

GROUP = "nv_embed_sidecar.database"

Row = Mapping[str, Any]
"""Of values that JSON has."""


class NoDatabase(EmbedError):
    """No database is to be shown, or none can be."""

    http_status = 404


@dataclass(frozen=True)
class Asked:
    """A search of an embedding's rows, the same at several widths.

    Attributes:
        relation, target: the embedding, as `Database.overview` names it.
        model, revision, dim: of the vectors that it had when the question was embedded.
        vector: the question's, as wide as they are.
        dims: the widths to search at, widest first.
        rescore: whether the stored vectors rank what a width has found.
    """

    relation: str
    target: str
    model: str
    revision: str
    dim: int
    vector: Sequence[float]
    dims: Sequence[int]
    rescore: bool


class Database(Protocol):
    """A database with embeddings. Any thread may ask it; each answer comes with the rights of the role that the URL names.

    Every method raises `EmbedError`s, which can be shown.
    """

    def overview(self) -> Mapping[str, Sequence[Row]]:
        """Rows of `embeddings` and of `reembeddings`."""

    def model_of(self, relation: str, target: str) -> tuple[str, str, int]:
        """Model, revision and width of an embedding's vectors."""

    def search(self, asked: Asked) -> Sequence[Row]:
        """For each width: `dim`, and `ms`, `vector_bytes` and `hits` (`key`, `score`, `text`; no score is None), or `error`."""

    def close(self) -> None:
        """When nothing is asked any more."""


def find_database(url: str) -> Database:
    """The database at a URL, by the first package that offers to show one. It is connected to when it is asked.

    Raises:
        NoDatabase: there is no such package, or not what it needs.
        InvalidInput: it is no URL.
    """
    for entry in entry_points(group=GROUP):
        try:
            opened: Database = entry.load()(url)
        except ImportError as error:
            raise NoDatabase(f"--ui-database-url needs {error.name}, which is not installed here", hint=f"pip install {error.name}") from None
        return opened
    raise NoDatabase("nothing here can show a database", hint="install nv_embed beside the sidecar: pip install nv-embed")
