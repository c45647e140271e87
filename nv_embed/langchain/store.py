"""
`NvVectorStore`: a table that the database keeps embedded, as LangChain's `VectorStore`.

Adding documents is an INSERT, and the table's triggers embed them; a search is a call of nv_search, which embeds the question. So documents come and
go by SQL as well, and the store finds them all. A store with a sidecar of its own embeds with that instead, by the model that the database declares.

In:  documents, questions      Out: statements over one table, and documents of its rows
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy
import orjson
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from nv_embed.errors import EmbedError, InvalidInput
from nv_embed.langchain.embeddings import NvEmbeddings
from nv_embed.langchain.filters import written_filter
from nv_embed.langchain.held import Held, hold
from nv_embed.langchain.operation import Call, Database, Operation, Runner
from nv_embed.langchain.schema import Declaration, create
from nv_embed.langchain.table import OPTIONS, Asking, Row, Table, written_vector

PAGE_DOCUMENTS = 1000
"""How many documents a statement writes: each is a parameter of some megabytes at most."""

Metadata = Mapping[str, Any]
Found = tuple[Document, float, list[float]]
"""A document, its score and, where it was asked for, its vector."""


class NvVectorStore(VectorStore):
    """Documents in a table that `nv_embed.auto_embed` keeps embedded.

    Each method is one transaction, or a savepoint within one of the caller's. What the sidecar refuses raises one of `nv_embed.errors`, and then
    nothing is written; what Postgres refuses raises `psycopg.Error`. The database is not asked for anything before the first call.

    Args:
        connection: a DSN (connections are then opened at need, and kept until `close`), a `psycopg.Connection`, a `psycopg_pool.ConnectionPool`, or
            one of psycopg's two asynchronous kinds, for the methods that are awaited. With the synchronous kinds these run in threads.
        table: its name; `schema`, where `search_path` does not find it.
        embedding: a sidecar to embed documents and questions with, by the model of the table's vectors. Without it the database embeds both, which
            the library install cannot.
        id_column: the primary key, or a unique column, of any type; documents that bring no id get the column's default.
        content_column: the documents' text.
        metadata_column: of type jsonb; None where the table has none.
        metadata_columns: keys of the metadata that have a column of their own name.
        target: which of the table's embeddings is searched.
    """

    def __init__(
        self,
        connection: Database,
        table: str,
        *,
        schema: str | None = None,
        embedding: NvEmbeddings | None = None,
        id_column: str = "id",
        content_column: str = "content",
        metadata_column: str | None = "metadata",
        metadata_columns: Sequence[str] = (),
        target: str = "embedding",
    ) -> None:
        _check_embedding(embedding)
        self._runner = Runner(connection)
        self._embedding = embedding
        self._table = Table(table, schema, id_column, content_column, metadata_column, tuple(metadata_columns), target)

    @property
    def embeddings(self) -> Embeddings | None:
        """What this store embeds with; None where the database does."""
        return self._embedding

    @classmethod
    def create(
        cls,
        connection: Database,
        table: str,
        *,
        schema: str | None = None,
        embedding: NvEmbeddings | None = None,
        model: str | None = None,
        dim: int | None = None,
        mode: str | None = None,
        storage: str = "halfvec",
        truncate: str | None = None,
        index: bool = True,
    ) -> Self:
        """Make the table, declare its embedding and build the index, as far as they are not there; what is there stays as it is.

        The table has `id text`, `content text`, `metadata jsonb` and `embedding`.

        Args:
            model, dim, truncate: as `nv_embed.auto_embed` takes them; those of `embedding` unless given.
            mode: `sync`, so that what was added is found at once, or `async`, for a worker to embed. None is the first, and in the library install
                the other.
            storage: of the vectors, halfvec or vector.
            index: whether to build an HNSW index of the whole vectors now. After a bulk load it is built quicker: by `create` again.
        Raises:
            InvalidInput: an option is not among those that there are.
            psycopg.Error: of the role's rights, for instance.
        """
        store = cls(connection, table, schema=schema, embedding=embedding)
        store._runner.run(create(store._table, _declaration(embedding, model, dim, mode, storage, truncate), index=index))
        return store

    @classmethod
    async def acreate(
        cls,
        connection: Database,
        table: str,
        *,
        schema: str | None = None,
        embedding: NvEmbeddings | None = None,
        model: str | None = None,
        dim: int | None = None,
        mode: str | None = None,
        storage: str = "halfvec",
        truncate: str | None = None,
        index: bool = True,
    ) -> Self:
        """`create`, awaited."""
        store = cls(connection, table, schema=schema, embedding=embedding)
        await store._runner.arun(create(store._table, _declaration(embedding, model, dim, mode, storage, truncate), index=index))
        return store

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """`create`, which takes the options, and `add_texts`.

        Args:
            embedding: an `NvEmbeddings`, or None to have the database embed.
        """
        store = cls.create(embedding=_check_embedding(embedding), **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """`from_texts`, awaited."""
        store = await cls.acreate(embedding=_check_embedding(embedding), **options)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    def close(self) -> None:
        """Close the connections that this store has opened for a DSN."""
        self._runner.close()

    def add_texts(
        self, texts: Iterable[str], metadatas: Sequence[Metadata] | None = None, *, ids: Sequence[str | None] | None = None, **_: Any
    ) -> list[str]:
        """Write documents; one whose id is there already takes its place. Returns their ids, in order.

        Of several with the same id the last one stays. The database does not embed a text again that stays the same; a store with an `embedding`
        embeds all that it is given.

        Args:
            metadatas, ids: as many as texts; where an id is None the database makes one.
        Raises:
            InvalidInput: a text is too long for the model, or metadata have no place in the table.
            EmbedError: another of `nv_embed.errors`; nothing was written.
        """
        return self._runner.run(self._add(texts, metadatas, ids))

    async def aadd_texts(
        self, texts: Iterable[str], metadatas: Sequence[Metadata] | None = None, *, ids: Sequence[str | None] | None = None, **_: Any
    ) -> list[str]:
        """`add_texts`, awaited."""
        return await self._runner.arun(self._add(texts, metadatas, ids))

    def delete(self, ids: Sequence[str] | None = None, **_: Any) -> bool:
        """Delete documents, where they are there; without ids, all that this role may see."""
        return self._runner.run(self._delete(ids))

    async def adelete(self, ids: Sequence[str] | None = None, **_: Any) -> bool:
        """`delete`, awaited."""
        return await self._runner.arun(self._delete(ids))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids, in their order; ids that are not there are passed over."""
        return self._runner.run(self._get(ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """`get_by_ids`, awaited."""
        return await self._runner.arun(self._get(ids))

    def similarity_search(self, query: str, k: int = 4, filter: Metadata | None = None, *, hybrid: bool = False, **options: Any) -> list[Document]:
        """The k documents that are nearest to a question, best first; arguments and errors as for `similarity_search_with_score`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, hybrid=hybrid, **options)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Metadata | None = None, *, hybrid: bool = False, **options: Any
    ) -> list[Document]:
        """`similarity_search`, awaited."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, filter, hybrid=hybrid, **options)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Metadata | None = None, *, hybrid: bool = False, **options: Any
    ) -> list[tuple[Document, float]]:
        """The k documents that are nearest to a question, best first, each with its score.

        Args:
            filter: what their metadata must be: `{"lang": "en", "year": {"$gte": 2020}}`, with `$eq $ne $in $nin $lt $lte $gt $gte $and $or`.
                There are k documents wherever there are k that pass.
            hybrid: by words too (`nv_hybrid_search`).
            options: `dim`, `rescore`, `oversample` as `nv_search` takes them; of a hybrid search `rrf_k` and `config` too.
        Returns:
            Scores are cosine similarities, from -1 to 1; of a hybrid search those of reciprocal rank fusion.
        Raises:
            InvalidInput: a filter or an option is none.
            EmbedError: another of `nv_embed.errors`.
        """
        return _scored(self._runner.run(self._search(query, self._asking(k, filter, options, hybrid=hybrid))))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Metadata | None = None, *, hybrid: bool = False, **options: Any
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score`, awaited."""
        return _scored(await self._runner.arun(self._search(query, self._asking(k, filter, options, hybrid=hybrid))))

    def similarity_search_by_vector(self, embedding: Sequence[float], k: int = 4, filter: Metadata | None = None, **options: Any) -> list[Document]:
        """The k documents that are nearest to a vector, [dim], as wide as the stored ones."""
        return [document for document, *_ in self._runner.run(self._found(None, embedding, self._asking(k, filter, options)))]

    async def asimilarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Metadata | None = None, **options: Any
    ) -> list[Document]:
        """`similarity_search_by_vector`, awaited."""
        return [document for document, *_ in await self._runner.arun(self._found(None, embedding, self._asking(k, filter, options)))]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Metadata | None = None, **options: Any
    ) -> list[Document]:
        """k of the documents that are near to a question and far from each other.

        Args:
            fetch_k: of how many that are nearest they are chosen.
            lambda_mult: from 0, the most diverse, to 1, the nearest.
        """
        return self._runner.run(self._diverse(query, k, lambda_mult, self._asking(fetch_k, filter, options, with_vectors=True)))

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Metadata | None = None, **options: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search`, awaited."""
        return await self._runner.arun(self._diverse(query, k, lambda_mult, self._asking(fetch_k, filter, options, with_vectors=True)))

    def max_marginal_relevance_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Metadata | None = None, **options: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search` by a vector, [dim], as wide as the stored ones."""
        return self._runner.run(self._diverse(embedding, k, lambda_mult, self._asking(fetch_k, filter, options, with_vectors=True)))

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Metadata | None = None, **options: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search_by_vector`, awaited."""
        return await self._runner.arun(self._diverse(embedding, k, lambda_mult, self._asking(fetch_k, filter, options, with_vectors=True)))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """A cosine similarity is its own relevance, but what points away is not less relevant than what has nothing to do with the question."""
        return lambda similarity: min(max(similarity, 0.0), 1.0)

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **options: Any) -> list[tuple[Document, float]]:
        return super()._similarity_search_with_relevance_scores(query, k, **_without_hybrid(options))

    async def _asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **options: Any) -> list[tuple[Document, float]]:
        return await super()._asimilarity_search_with_relevance_scores(query, k, **_without_hybrid(options))

    def _add(self, texts: Iterable[str], metadatas: Sequence[Metadata] | None, ids: Sequence[str | None] | None) -> Operation[list[str]]:
        texts = list(texts)
        given: Sequence[str | None] = ids if ids is not None else [None] * len(texts)
        described: Sequence[Metadata] = metadatas if metadatas is not None else [{}] * len(texts)
        if not len(texts) == len(given) == len(described):
            raise InvalidInput(
                f"there are {len(texts)} texts, {len(given)} ids and {len(described)} metadatas", hint="give as many of each, or leave them out"
            )
        rows = [self._table.row(n, text, described[n] or {}, given[n]) for n, text in enumerate(texts)]
        return self._written(rows, given)

    def _written(self, rows: Sequence[Row], given: Sequence[str | None]) -> Operation[list[str]]:
        last = {id: row for row, id in zip(rows, given, strict=True) if id is not None}
        new = [row for row, id in zip(rows, given, strict=True) if id is None]
        ids: dict[int, str] = {}
        for page in [*_pages(list(last.values())), *_pages(new)]:
            written = yield self._table.add((yield from self._embedded(page)))
            ids |= _places(page, written)
        return [ids[n if id is None else last[id].place] for n, id in enumerate(given)]

    def _embedded(self, rows: list[Row]) -> Operation[list[Row]]:
        """Rows with their vectors, where this store has a sidecar."""
        if self._embedding is None:
            return rows
        held = yield from hold(self._table, is_by_name=True)
        if not held.takes_vectors:
            return rows
        texts = {row.place: text for row in rows if (text := held.text(row.values)) is not None}
        vectors = yield Call(_passages(self._embedding, held, texts))
        return [replace(row, values={**row.values, self._table.target: vectors.get(row.place)}) for row in rows]

    def _delete(self, ids: Sequence[str] | None) -> Operation[bool]:
        yield self._table.delete(ids)
        return True

    def _get(self, ids: Sequence[str]) -> Operation[list[Document]]:
        documents = self._table.documents((yield self._table.get(ids)))
        places = {id: place for place, id in enumerate(ids)}
        # An id may be spelled otherwise than the column's type has it, as a UUID in capitals: then it comes last.
        return sorted(documents, key=lambda document: places.get(document.id or "", len(places)))

    def _asking(self, k: int, filter: Metadata | None, options: Mapping[str, Any], *, hybrid: bool = False, with_vectors: bool = False) -> Asking:
        _check_options(options, hybrid)
        wanted = written_filter(filter, self._table.metadata, self._table.columns)
        return Asking(wanted, {"k": k, "target": self._table.target, **options}, hybrid, with_vectors)

    def _search(self, query: str, asking: Asking) -> Operation[list[Found]]:
        vector = None if self._embedding is None else (yield from self._asked(query, is_by_name=False))
        return (yield from self._found(query, vector, asking))

    def _found(self, query: str | None, vector: Sequence[float] | None, asking: Asking) -> Operation[list[Found]]:
        rows = yield self._table.search(query, vector, asking)
        end = -2 if asking.with_vectors else -1
        documents = self._table.documents([row[:end] for row in rows])
        return [(document, row[-1], orjson.loads(row[-2]) if asking.with_vectors else []) for document, row in zip(documents, rows, strict=True)]

    def _diverse(self, query: str | Sequence[float], k: int, lambda_mult: float, asking: Asking) -> Operation[list[Document]]:
        if isinstance(query, str):
            vector = yield from self._asked(query, is_by_name=True)
        else:
            yield from hold(self._table, is_by_name=True)
            vector = list(query)
        near = yield from self._found(None, vector, asking)
        chosen = maximal_marginal_relevance(numpy.asarray(vector, dtype=numpy.float32), [row[2] for row in near], lambda_mult, k)
        return [near[place][0] for place in chosen]

    def _asked(self, query: str, *, is_by_name: bool) -> Operation[list[float]]:
        """The vector of a question."""
        held = yield from hold(self._table, is_by_name=is_by_name)
        if self._embedding is None:
            rows = yield self._table.ask(query)
            return list(orjson.loads(rows[0][0]))
        client = self._embedding.client
        vectors: list[list[float]] = yield Call(lambda: held.embed(client, [query], "query"))
        return vectors[0]


def _declaration(
    embedding: NvEmbeddings | None, model: str | None, dim: int | None, mode: str | None, storage: str, truncate: str | None
) -> Declaration:
    """What is asked for, or else what the embedding has."""
    if embedding is not None:
        model, dim, truncate = model or embedding.model, dim or embedding.dim, truncate or embedding.truncate
    return Declaration(model, dim, mode, storage, truncate or "NONE")


def _pages(rows: list[Row]) -> list[list[Row]]:
    return [rows[start : start + PAGE_DOCUMENTS] for start in range(0, len(rows), PAGE_DOCUMENTS)]


def _places(page: Sequence[Row], written: Sequence[tuple[str]]) -> dict[int, str]:
    """The ids that were written, by their documents' places."""
    if len(written) != len(page):
        raise InvalidInput(f"of {len(page)} documents {len(written)} were written", hint="a trigger of the table's leaves rows out")
    return {row.place: id for row, (id,) in zip(page, written, strict=True)}


def _passages(embedding: NvEmbeddings, held: Held, texts: Mapping[int, str]) -> Callable[[], dict[int, str]]:
    """A call for the vectors of texts, by their documents' places."""

    def call() -> dict[int, str]:
        try:
            vectors = held.embed(embedding.client, list(texts.values()), "passage")
        except EmbedError as error:
            if error.position is not None:
                error.position = list(texts)[error.position]
            raise
        return {place: written_vector(vector) for place, vector in zip(texts, vectors, strict=True)}

    return call


def _check_embedding(embedding: Embeddings | None) -> NvEmbeddings | None:
    if embedding is None or isinstance(embedding, NvEmbeddings):
        return embedding
    raise InvalidInput(
        f"the vectors of a table are those of one model, and {type(embedding).__name__} may be any",
        hint="give an NvEmbeddings, or None to have the database embed",
    )


def _check_options(options: Mapping[str, Any], hybrid: bool) -> None:
    known = [name for name in OPTIONS if name not in ("k", "target") and (hybrid or name not in ("rrf_k", "config"))]
    for name in options:
        if name not in known:
            raise InvalidInput(f"a search has no option {name!r}", hint=f"there are filter, hybrid, {', '.join(known)}")


def _without_hybrid(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("hybrid"):
        raise InvalidInput(
            "a hybrid search has no relevance scores", hint="its scores are sums of ranks, and no threshold suits them; ask for the k best"
        )
    return options


def _scored(found: Sequence[Found]) -> list[tuple[Document, float]]:
    return [(document, score) for document, score, _ in found]
