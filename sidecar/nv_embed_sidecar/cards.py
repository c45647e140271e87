"""
What a model's directory says of itself.

A sentence-transformers directory names its modules, prompts and lengths; a plain transformers one only its architecture. Where the files are
silent, the registry's word counts; the operator's counts before both.

In:  a directory, the operator's settings      Out: a `Card`; a fingerprint of all that the vectors depend on
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.pooling import CLS, MEAN
from nv_embed_sidecar.registry import Known
from nv_embed_sidecar.settings import Settings

REVISION_DIGITS = 12

BERT = "bert"
LLAMA = "llama"
MISTRAL = "mistral"
DECODERS = (LLAMA, MISTRAL)
ROBERTAS = ("roberta", "xlm-roberta", "camembert")
BIDIRECTIONAL = re.compile(f"({LLAMA}|{MISTRAL})_?bidirec(tional(model)?)?")
"""What the config.json of a bidirectional decoder says, in lower case: `llama_bidirec`, `llamabidirectionalmodel`, and so on."""


@dataclass(frozen=True)
class Card:
    """What the files of a model say, completed by the registry and overridden by the operator.

    Attributes:
        directory: where config, tokenizer and weights lie.
        architecture: whose arithmetic the model wants: `bert`, which is that of RoBERTa, XLM-RoBERTa and CamemBERT too; `llama` or `mistral`, always
            with bidirectional attention; else the `model_type` of `config.json`.
    """

    directory: Path
    architecture: str
    config: dict[str, Any]
    pooling: str
    max_tokens: int
    query_prompt: str
    passage_prompt: str
    lower_case: bool


def read_card(directory: Path, known: Known, settings: Settings) -> Card:
    """Read a sentence-transformers directory, or a plain transformers one.

    Raises:
        InvalidInput: something in it is not supported, or not what the operator says of it.
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
    return Card(
        directory=transformer,
        architecture=_architecture(directory, config, known, settings),
        config=config,
        pooling=settings.pooling or _pooling(pooling_module, config),
        max_tokens=_max_tokens(sentence, config, transformer, known, settings),
        query_prompt=query_prompt if settings.query_prompt is None else settings.query_prompt,
        passage_prompt=passage_prompt if settings.passage_prompt is None else settings.passage_prompt,
        lower_case=bool(sentence.get("do_lower_case", False)),
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


def _architecture(directory: Path, config: dict[str, Any], known: Known, settings: Settings) -> str:
    kind = _kind(config)
    for name in (kind, *(config.get("architectures") or ())):
        if said := BIDIRECTIONAL.fullmatch(name.lower()):
            return said[1]
    if kind in DECODERS:
        if not settings.bidirectional and config.get("is_causal", not known.bidirectional):
            raise InvalidInput(
                f"the model in {directory} is a causal {kind}, whose tokens do not see what follows them: its vectors would not be of the whole text",
                hint="if it was trained with bidirectional attention, say so with --bidirectional",
            )
        return kind
    if settings.bidirectional:
        raise InvalidInput(f"--bidirectional is said of a model of type '{kind}'", hint=f"it is for causal models of type {' and '.join(DECODERS)}")
    return BERT if kind in ROBERTAS else kind


def _kind(config: dict[str, Any]) -> str:
    return str(config.get("model_type", ""))


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
        raise InvalidInput(f"the model's pooling is {listed(chosen) or 'unknown'}, which is not supported", hint="supported are mean and cls")
    return str(chosen[0])


def _prompts(said: dict[str, Any], known: Known) -> tuple[str, str]:
    prompts = {key: str(value) for key, value in (said.get("prompts") or {}).items()}
    default = prompts.get(said.get("default_prompt_name") or "", "")
    if not any(prompts.values()):
        return known.query_prompt, known.passage_prompt
    return prompts.get("query", default), prompts.get("passage", prompts.get("document", default))


def _max_tokens(sentence: dict[str, Any], config: dict[str, Any], directory: Path, known: Known, settings: Settings) -> int:
    positions = int(config.get("max_position_embeddings") or 512)
    if _kind(config) in (*ROBERTAS, "mpnet"):
        positions -= 2  # their positions begin behind the padding index
    if settings.max_tokens is not None:
        if settings.max_tokens > positions:
            raise InvalidInput(f"--max-tokens {settings.max_tokens} exceeds the model's {positions} positions", hint="give fewer, or leave it out")
        return settings.max_tokens
    said = sentence.get("max_seq_length") or known.max_tokens or _json(directory / "tokenizer_config.json", {}).get("model_max_length")
    return min(int(said), positions) if said else positions


def revision(card: Card) -> str:
    """Fingerprint of everything the vectors depend on: weights, config, tokenizer, and what was read or told of pooling, prompts and lengths.

    Databases keep revisions for as long as they keep vectors, so the names and the order of what is hashed here never change. What is added one day
    must be left out where it has its former value.
    """
    said = {
        "architecture": _kind(card.config),
        "bidirectional_llama": card.architecture in DECODERS,
        "config": card.config,
        "directory": ".",
        "lower_case": card.lower_case,
        "max_tokens": card.max_tokens,
        "passage_prompt": card.passage_prompt,
        "pooling": card.pooling,
        "query_prompt": card.query_prompt,
    }
    whole = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
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


def _json(file: Path, missing: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else missing


def listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
