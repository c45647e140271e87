"""
Which models are served, by which names, and where their files lie.

A model is named by a short name, a directory or a hub id. What its directory says of itself wins (`cards.py`); where that is silent, the registry
speaks; the operator can override both. Code that comes with a model is never run.

In:  the operator's `--model` and what they say of it      Out: `Model`s, ready to serve
"""

import hashlib
import importlib.util
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nv_embed.errors import EmbedError, InvalidInput, UnknownModel
from nv_embed_sidecar.cards import LLAMA, REVISION_DIGITS, Card, listed, read_card, revision
from nv_embed_sidecar.engines import Engine, OutOfMemory
from nv_embed_sidecar.engines.fake import WIDTH, FakeEngine, FakeVocabulary
from nv_embed_sidecar.pooling import MEAN
from nv_embed_sidecar.registry import LLAMA_V2, MINILM, REGISTRY, Known, known_as
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import FileVocabulary, InputType, TextTokenizer

log = logging.getLogger(__name__)

FAKE = "fake"
AUTO = "auto"

# The files of a model that are read; a hub download takes no others.
FILES = ["*.json", "*.safetensors"]


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
        declared = f" (and the operator allows {listed(self.declared_dims)})" if self.declared_dims else ""
        raise InvalidInput(
            f"model {self.name} was not trained for {wanted} dimensions, but for {listed(self.trained_dims)}{declared}",
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
    llama = known_as(LLAMA_V2)
    if llama is not None and settings.device != "cpu" and any(_cached(hub_id) for hub_id in llama.hub_ids()):
        from nv_embed_sidecar.engines import torch_device

        if torch_device.has_gpu():
            return LLAMA_V2
    return "minilm"


def _load(name: str, settings: Settings) -> Model:
    if name.casefold() == FAKE:
        return _fake(settings)
    known = known_as(name)
    directory = _directory(name, known)
    called = _called(directory) if Path(name).is_dir() else name
    known = known or known_as(called) or Known(called)
    try:
        card = read_card(directory, known, settings)
        return _from_card(card, known, settings)
    except EmbedError:
        raise
    except OutOfMemory as error:
        raise InvalidInput(f"the device has no room for the model in {directory}", hint="serve a smaller model, or on a larger device") from error
    except Exception as error:
        log.debug("loading %s failed", directory, exc_info=True)
        raise UnknownModel(f"the model in {directory} cannot be used: {_one_line(error)}", hint="is the download complete?") from error


def _fake(settings: Settings) -> Model:
    if settings.pooling not in (None, MEAN) or settings.bidirectional:
        raise InvalidInput("the fake model has mean pooling and no attention", hint="leave --pooling and --bidirectional out")
    dims = (WIDTH, 1024, 768, 512, 384)
    own: dict[str, Any] = {"query_prompt": "query: ", "passage_prompt": "passage: ", "max_tokens": 8192}
    said = own | {name: value for name in own if (value := getattr(settings, name)) is not None}
    changes = "" if said == own else json.dumps(said, sort_keys=True)
    revision = hashlib.sha256(f"nv_embed fake model, words by shake_128, 1{changes}".encode()).hexdigest()[:REVISION_DIGITS]
    tokenizer = TextTokenizer(FakeVocabulary(), model=FAKE, **said)
    return Model(FAKE, (), revision, dims, _declared(settings, dims), MEAN, tokenizer, FakeEngine(settings.fake_delay_s, settings.fake_fault))


def _from_card(card: Card, known: Known, settings: Settings) -> Model:
    fingerprint = revision(card)
    special = None
    if card.architecture == LLAMA:
        # In front the begin-of-text token and behind nothing, whatever the template in the tokenizer's file says.
        special = ((int(card.config["bos_token_id"]),), ())
    vocabulary = FileVocabulary(card.directory / "tokenizer.json", lower_case=card.lower_case, special=special)
    if vocabulary.size > int(card.config.get("vocab_size", vocabulary.size)):
        raise InvalidInput(
            f"the tokenizer in {card.directory} has {vocabulary.size} tokens, and the model {card.config['vocab_size']}",
            hint="whoever wrote a token that the model does not know would break it: use the tokenizer.json that came with the model",
        )
    tokenizer = TextTokenizer(
        vocabulary, model=known.name, max_tokens=card.max_tokens, query_prompt=card.query_prompt, passage_prompt=card.passage_prompt
    )
    # Imported here and not before, because the fake model serves without torch.
    from nv_embed_sidecar.engines import loading

    engine = loading.load(card, settings)
    trained = trained_dims(card, known, engine.width)
    return Model(known.name, known.aliases, fingerprint, trained, _declared(settings, trained), card.pooling, tokenizer, engine)


def trained_dims(card: Card, known: Known, width: int) -> tuple[int, ...]:
    """The widths that a model was trained for, widest first. Its `config.json` may list them; the registry's list is for one width only."""
    dims = card.config.get("matryoshka_dimensions") or (known.dims if width == known.width else ())
    return tuple(sorted({width, *(int(dim) for dim in dims if 0 < int(dim) < width)}, reverse=True))


def _declared(settings: Settings, trained: tuple[int, ...]) -> tuple[int, ...]:
    for dim in settings.dims:
        if dim > trained[0]:
            raise InvalidInput(f"--dims {dim} is wider than the model's {trained[0]}", hint="a vector can be cut, not stretched")
    return tuple(dim for dim in settings.dims if dim not in trained)


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


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
