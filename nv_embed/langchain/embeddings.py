"""
`NvEmbeddings`: a sidecar as LangChain's `Embeddings`.

In:  texts      Out: lists of floats
"""

from functools import cached_property

from langchain_core.embeddings import Embeddings

from nv_embed.client import DEFAULT_TIMEOUT_S, Client, check_dim


class NvEmbeddings(Embeddings):
    """Embeds documents as passages and questions as queries; vectors have unit length.

    The `a…` methods wait in a thread, so that the loop goes on. Whatever fails raises one of `nv_embed.errors`.

    Args:
        sidecar: `host:port`, `unix:/path`, or a client, which may have a token and certificates. By its address it is connected to at the first use,
            so in each process after a fork.
        model: a name that the sidecar serves; its default unless given.
        dim: one of the model's dimensions; its native width unless given.
        truncate: of a text over the model's limit: `NONE` (an error), `START` or `END`.
        timeout_s: the longest wait for one page of texts; a client has its own.
    Raises:
        InvalidInput: `dim` is no number of dimensions.
    """

    def __init__(
        self,
        sidecar: str | Client,
        *,
        model: str | None = None,
        dim: int | None = None,
        truncate: str = "NONE",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        check_dim(dim)
        self.model = model
        self.dim = dim
        self.truncate = truncate
        self._sidecar = sidecar
        self._timeout_s = timeout_s

    @cached_property
    def client(self) -> Client:
        """The connection to the sidecar."""
        return Client(self._sidecar, timeout_s=self._timeout_s) if isinstance(self._sidecar, str) else self._sidecar

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of texts, [len(texts), dim], in their order.

        Raises:
            EmbedError: one of the classes of `nv_embed.errors`; none of the texts has a vector then.
        """
        return embed(self.client, texts, "passage", model=self.model, dim=self.dim, truncate=self.truncate)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question, [dim]. It goes before the documents that wait at the sidecar.

        Raises:
            EmbedError: one of the classes of `nv_embed.errors`.
        """
        return embed(self.client, [text], "query", model=self.model, dim=self.dim, truncate=self.truncate)[0]


def embed(
    client: Client, texts: list[str], input_type: str, *, model: str | None, dim: int | None, truncate: str, revision: str | None = None
) -> list[list[float]]:
    """Vectors as LangChain has them; arguments and errors as for `Client.embed`."""
    pages = client.embed_pages(texts, dim=dim, input_type=input_type, model=model, revision=revision, truncate=truncate)
    return [row.tolist() for page in pages for row in page.rows()]
