"""
Which model is loaded, and what its files say of it. The vectors of a small random BERT are compared with sentence-transformers on the same directory.
"""

import json
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import checkpoints
import numpy
import pytest
import torch
from nv_embed_sidecar.cards import Card, read_card, revision
from nv_embed_sidecar.models import Model, Models, load, trained_dims
from nv_embed_sidecar.pooling import truncate
from nv_embed_sidecar.registry import REGISTRY, Known, known_as
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import InputType, Truncate
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from nv_embed.errors import EmbedError, InvalidInput, UnknownModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "built", "the", "first", "dynamo", "query", "passage", ":", "?", "a", "##s", "b"]
TEXTS = ["who built the first dynamo?", "", "as as as b", "the " * 40, "a passage: a"]
SPECIAL = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}


def make_bert(directory: Path) -> Path:
    """A plain transformers directory."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64
    )
    BertModel(config).save_pretrained(directory)
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **SPECIAL).save_pretrained(directory)
    return directory


def make_sentence_bert(
    directory: Path, plain: Path, *, pooling: dict[str, object], prompts: dict[str, str] | None = None, max_seq_length: int = 24
) -> Path:
    shutil.copytree(plain, directory)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"} for index, (path, kind) in enumerate(kinds)
    ]
    write(directory / "modules.json", modules)
    write(directory / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    write(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **pooling})
    write(directory / "config_sentence_transformers.json", {"prompts": prompts or {}})
    return directory


def write(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def served(directory: Path | str, **settings: object) -> Model:
    return next(iter(load(Settings(models=(str(directory),), device="cpu", **{"precision": "fp32", **settings}))))


def vectors(model: Model, texts: list[str], input_type: InputType = InputType.PASSAGE, cut: Truncate = Truncate.END) -> numpy.ndarray:
    return truncate(model.engine.encode(model.tokenizer.encode(texts, input_type, cut)), model.native_dim)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("plain") / "tiny-bert")


MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.mark.parametrize(
    "pooling",
    [MEAN, {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, {"pooling_mode": "cls"}, {"pooling_mode": "mean"}],
)
def test_vectors_are_those_of_sentence_transformers_on_the_same_directory(bert: Path, tmp_path: Path, pooling: dict[str, object]) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    directory = make_sentence_bert(tmp_path / "model", bert, pooling=pooling, prompts=prompts)
    model = served(directory)
    reference = SentenceTransformer(str(directory), device="cpu")
    for input_type in InputType:
        expected = reference.encode(TEXTS, prompt_name=input_type.value, normalize_embeddings=True)
        numpy.testing.assert_allclose(vectors(model, TEXTS, input_type), expected, atol=2e-6)
        with_prompts = [prompts[input_type.value] + text for text in TEXTS]
        numpy.testing.assert_allclose(vectors(model, with_prompts, input_type), expected, atol=2e-6)


def test_a_sentence_transformers_directory_speaks_for_itself(bert: Path, tmp_path: Path) -> None:
    directory = make_sentence_bert(tmp_path / "e5-base", bert, pooling=MEAN, prompts={"query": "Q ", "document": "D "})
    model = served(directory)
    assert (model.prompt(InputType.QUERY), model.prompt(InputType.PASSAGE)) == ("Q ", "D ")
    assert (model.tokenizer.max_tokens, model.pooling, model.native_dim, model.trained_dims) == (24, "mean", 32, (32,))


def test_where_a_directory_is_silent_the_registry_speaks(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "e5-base")
    model = served(tmp_path / "e5-base")
    assert model.name == "intfloat/e5-base"
    assert (model.prompt(InputType.QUERY), model.prompt(InputType.PASSAGE)) == ("query: ", "passage: ")
    assert model.tokenizer.max_tokens == 64, "the position table is shorter than the registry's 512"


def test_a_directory_in_the_hubs_cache_is_named_by_its_hub_id(bert: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--intfloat--e5-base" / "snapshots" / "0123abcd"
    shutil.copytree(bert, snapshot)
    assert served(snapshot).name == "intfloat/e5-base"


def test_an_unknown_directory_is_named_by_its_last_part_and_has_no_prompts(bert: Path) -> None:
    model = served(bert)
    assert (model.name, model.prompt(InputType.QUERY), model.prompt(InputType.PASSAGE)) == ("tiny-bert", "", "")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json", "config_sentence_transformers.json"])
def test_the_revision_follows_whatever_the_vectors_depend_on(bert: Path, tmp_path: Path, file: str) -> None:
    one = make_sentence_bert(tmp_path / "one" / "model", bert, pooling=MEAN, prompts={"query": "Q "})
    same = make_sentence_bert(tmp_path / "same" / "model", bert, pooling=MEAN, prompts={"query": "Q "})
    assert served(one).revision == served(same).revision
    assert len(served(one).revision) == 12
    change(same / file)
    assert served(one).revision != served(same).revision


def change(file: Path) -> None:
    if file.name == "model.safetensors":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif file.name == "tokenizer.json":
        file.write_text(file.read_text().replace("dynamo", "turbine"))
    elif file.name == "config_sentence_transformers.json":
        write(file, {"prompts": {"query": "R "}})
    elif file.parent.name == "1_Pooling":
        write(file, {"pooling_mode": "cls"})
    else:
        write(file, {**json.loads(file.read_text()), "layer_norm_eps": 1e-6})


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_mode_lasttoken": True}, "pooling is pooling_mode_lasttoken, which is not supported"),
        ({"pooling_mode": ["mean", "cls"]}, "pooling is mean, cls, which is not supported"),
        ({**MEAN, "include_prompt": False}, "leaves its prompt out of the pooling"),
    ],
)
def test_a_pooling_that_is_not_supported_is_refused(bert: Path, tmp_path: Path, pooling: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        served(make_sentence_bert(tmp_path / "model", bert, pooling=pooling))


def test_further_modules_are_refused(bert: Path, tmp_path: Path) -> None:
    directory = make_sentence_bert(tmp_path / "model", bert, pooling=MEAN)
    modules = json.loads((directory / "modules.json").read_text())
    write(directory / "modules.json", [*modules, {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(InvalidInput, match="needs a module Dense, which is not supported"):
        served(directory)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(bert: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(bert, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(EmbedError, match=f"has no {missing}"):
        served(tmp_path / "model")


def test_an_unknown_architecture_and_code_that_comes_with_a_model_are_refused(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "model")
    (tmp_path / "model" / "own.py").write_text("raise SystemExit('code of a model was run')")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    write(tmp_path / "model" / "config.json", {**config, **own})
    with pytest.raises(InvalidInput, match="architecture 'own'") as raised:
        served(tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_broken_files_are_one_readable_error(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(EmbedError, match="cannot be used") as raised:
        served(tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_a_name_that_is_nothing_says_what_there_is() -> None:
    with pytest.raises(UnknownModel, match="there is no model 'minilmm'") as raised:
        served("minilmm")
    assert "minilm" in raised.value.hint


def test_a_hub_id_that_cannot_be_had_is_one_readable_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownModel, match="'intfloat/e5-large-unsupervised' is not on this machine and the hub does not give it") as raised:
        served("e5-large-unsupervised")
    assert "\n" not in str(raised.value)


def test_a_model_in_the_hubs_cache_is_served_without_the_hub(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    cached = tmp_path / "models--intfloat--e5-base"
    shutil.copytree(bert, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert served("e5-base").name == "intfloat/e5-base"


def described(directory: Path, config: dict[str, object], name: str = "", **settings: object) -> Card:
    """What is read of a directory without weights."""
    directory.mkdir(exist_ok=True)
    write(directory / "config.json", config)
    (directory / "tokenizer.json").write_text("{}")
    return read_card(directory, known_as(name) or Known(name), Settings(models=("it",), **settings))


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalModel"]}, "llama"),
        ({"model_type": "llama", "architectures": ["LlamaBidirectionalModel"]}, "llama"),
        ({"model_type": "llama", "is_causal": False}, "llama"),
        ({"model_type": "mistral_bidirec"}, "mistral"),
        ({"model_type": "mistralbidirectional", "architectures": ["MistralBiDirectionalModel"]}, "mistral"),
        ({"architectures": ["MistralBidirectionalModel"]}, "mistral"),
        ({"model_type": "mistral", "is_causal": False}, "mistral"),
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "roberta"}, "bert"),
        ({"model_type": "xlm-roberta", "architectures": None}, "bert"),
        ({"model_type": "camembert"}, "bert"),
        ({"model_type": "mpnet"}, "mpnet"),
    ],
)
def test_the_architecture_is_read_from_the_configuration(tmp_path: Path, config: dict[str, object], architecture: str) -> None:
    assert described(tmp_path, config).architecture == architecture


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_causal_model_that_nobody_calls_bidirectional_is_refused(tmp_path: Path, kind: str) -> None:
    for config in ({"model_type": kind}, {"model_type": kind, "is_causal": True}):
        with pytest.raises(InvalidInput, match=f"is a causal {kind}") as raised:
            described(tmp_path, config)
        assert "--bidirectional" in raised.value.hint
        assert described(tmp_path, config, bidirectional=True).architecture == kind


def test_a_causal_configuration_is_bidirectional_where_the_registry_names_the_model(tmp_path: Path) -> None:
    name = "nvidia/nv-embedqa-mistral-7b-v2"
    assert described(tmp_path, {"model_type": "mistral"}, name).architecture == "mistral"
    with pytest.raises(InvalidInput, match="is a causal mistral"):
        described(tmp_path, {"model_type": "mistral", "is_causal": True}, name)


@pytest.mark.parametrize(("kind", "make"), [("llama", checkpoints.llama), ("mistral", checkpoints.mistral)])
def test_a_causal_configuration_that_the_operator_calls_bidirectional_is_computed_so(tmp_path: Path, kind: str, make: Callable[..., Path]) -> None:
    own = served(make(tmp_path / "own"))
    said = served(make(tmp_path / "said", model_type=kind, architectures=[f"{kind.title()}ForCausalLM"]), bidirectional=True)
    numpy.testing.assert_array_equal(vectors(said, TEXTS), vectors(own, TEXTS))


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_bidirectional_is_said_of_causal_models_only(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidInput, match=f"--bidirectional is said of a model of type '{kind}'"):
        described(tmp_path, {"model_type": kind}, bidirectional=True)


QUERY_AND_PASSAGE = ("query: ", "passage: ")


@pytest.mark.parametrize(
    ("name", "width", "dims", "max_tokens", "prompts"),
    [
        ("nvidia/llama-3.2-nv-embedqa-1b-v2", 2048, (1024, 768, 512, 384), 8192, QUERY_AND_PASSAGE),
        ("nvidia/llama-nemotron-embed-1b-v2", 2048, (1024, 768, 512, 384), 8192, QUERY_AND_PASSAGE),
        ("llama-3.2-nv-embedqa-1b-v1", 2048, (), 8192, QUERY_AND_PASSAGE),
        ("nvidia/nv-embedqa-mistral-7b-v2", 4096, (), 512, ("", "")),
        ("nv-embedqa-mistral-7B-v1", 4096, (), 512, ("", "")),
        ("nvidia/nv-embedqa-e5-v5", 1024, (), 512, QUERY_AND_PASSAGE),
        ("nvidia/nv-embedqa-e5-v4", 1024, (), 512, QUERY_AND_PASSAGE),
        ("intfloat/e5-large-unsupervised", 1024, (), 512, QUERY_AND_PASSAGE),
        ("intfloat/multilingual-e5-base", 768, (), 512, QUERY_AND_PASSAGE),
        ("minilm", 384, (), 256, ("", "")),
        ("sentence-transformers/all-MiniLM-L6-v2", 384, (), 256, ("", "")),
    ],
)
def test_the_registry_knows_the_family(name: str, width: int, dims: tuple[int, ...], max_tokens: int, prompts: tuple[str, str]) -> None:
    known = known_as(name)
    assert known is not None
    assert (known.width, known.dims, known.max_tokens) == (width, dims, max_tokens)
    assert (known.query_prompt, known.passage_prompt) == prompts


def test_no_two_models_of_the_registry_share_a_name() -> None:
    names = [name.casefold() for known in REGISTRY for name in {known.name, *known.aliases}]
    assert len(names) == len(set(names))


def test_prompts_that_come_by_configuration_are_read_from_it(tmp_path: Path) -> None:
    write(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "Instruct: find it\nQuery: ", "document": ""}})
    card = described(tmp_path, {"model_type": "mistral"}, "nv-embedqa-mistral-7b-v2")
    assert (card.query_prompt, card.passage_prompt, card.max_tokens) == ("Instruct: find it\nQuery: ", "", 512)


def test_the_operator_overrides_the_directory_and_the_registry(bert: Path, tmp_path: Path) -> None:
    directory = make_sentence_bert(tmp_path / "e5-base", bert, pooling=MEAN, prompts={"query": "Q ", "passage": "P "})
    model = served(directory, query_prompt="a: ", passage_prompt="", max_tokens=40, pooling="cls")
    assert (model.prompt(InputType.QUERY), model.prompt(InputType.PASSAGE)) == ("a: ", "")
    assert (model.tokenizer.max_tokens, model.pooling) == (40, "cls")
    same = served(
        make_sentence_bert(tmp_path / "same" / "e5-base", bert, pooling={"pooling_mode": "cls"}, prompts={"query": "a: "}, max_seq_length=40)
    )
    numpy.testing.assert_array_equal(vectors(model, TEXTS), vectors(same, TEXTS))
    assert model.revision == same.revision


@pytest.mark.parametrize("override", [{"query_prompt": ""}, {"passage_prompt": "p: "}, {"max_tokens": 23}, {"pooling": "cls"}])
def test_an_override_makes_another_revision_and_one_that_changes_nothing_does_not(bert: Path, tmp_path: Path, override: dict[str, object]) -> None:
    directory = make_sentence_bert(tmp_path / "model", bert, pooling=MEAN, prompts={"query": "Q ", "passage": "P "})
    own = {"query_prompt": "Q ", "passage_prompt": "P ", "max_tokens": 24, "pooling": "mean"}
    plain = served(directory).revision
    assert served(directory, **own).revision == plain
    assert served(directory, **{**own, **override}).revision != plain


@pytest.mark.parametrize("override", [{"query_prompt": ""}, {"passage_prompt": "p: "}, {"max_tokens": 100}])
def test_the_fake_model_can_be_overridden_too(override: dict[str, object]) -> None:
    own = {"query_prompt": "query: ", "passage_prompt": "passage: ", "max_tokens": 8192, "pooling": "mean"}
    assert served("fake", **own).revision == served("fake").revision
    changed = served("fake", **override)
    assert changed.revision != served("fake").revision
    said = {
        "query_prompt": changed.prompt(InputType.QUERY),
        "passage_prompt": changed.prompt(InputType.PASSAGE),
        "max_tokens": changed.tokenizer.max_tokens,
    }
    assert {name: said[name] for name in override} == override
    for wrong in ({"pooling": "cls"}, {"bidirectional": True}):
        with pytest.raises(InvalidInput, match="fake model has mean pooling"):
            served("fake", **wrong)


def test_more_tokens_than_the_model_has_positions_are_refused(bert: Path) -> None:
    assert served(bert, max_tokens=64).tokenizer.max_tokens == 64
    with pytest.raises(InvalidInput, match="--max-tokens 65 exceeds the model's 64 positions"):
        served(bert, max_tokens=65)


def test_fewer_tokens_than_the_prompt_needs_are_refused(bert: Path) -> None:
    with pytest.raises(InvalidInput, match="alone take 4"):
        served(bert, max_tokens=4, query_prompt="query: ")


@pytest.mark.parametrize("override", [{"query_prompt": ""}, {"passage_prompt": "p"}, {"max_tokens": 9}, {"pooling": "mean"}, {"bidirectional": True}])
def test_an_override_is_said_of_one_model_only(override: dict[str, object]) -> None:
    (name,) = override
    with pytest.raises(ValidationError, match=f"--{name.replace('_', '-')} is said of one model, and there are 2"):
        Settings(models=("fake", "minilm"), **override)
    Settings(models=("fake",), **override)


def test_overrides_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUERY_PROMPT", "ask: "), ("PASSAGE_PROMPT", ""), ("MAX_TOKENS", "77")):
        monkeypatch.setenv(f"NV_EMBED_SIDECAR_{name}", value)
    fake = served("fake")
    assert (fake.prompt(InputType.QUERY), fake.prompt(InputType.PASSAGE), fake.tokenizer.max_tokens) == ("ask: ", "", 77)
    assert served("fake", query_prompt="").prompt(InputType.QUERY) == "", "what is said in words wins"


def test_revisions_are_fixed_for_ever(tmp_path: Path) -> None:
    """Databases hold revisions. A directory that has not changed keeps the one it always had."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 64}')
    (tmp_path / "tokenizer.json").write_text("{}")
    known = known_as("e5-base")
    assert known is not None
    assert revision(read_card(tmp_path, known, Settings())) == "1ace56a01a5d"


def test_dimensions_that_the_configuration_lists_are_trained_for(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    write(tmp_path / "model" / "config.json", {**config, "matryoshka_dimensions": [8, 16, 32]})
    model = served(tmp_path / "model", dims="24,16")
    assert (model.trained_dims, model.declared_dims) == ((32, 16, 8), (24,))


def test_the_registrys_dimensions_are_those_of_one_width(bert: Path, tmp_path: Path) -> None:
    """A smaller model in a directory of that name was not trained for them."""
    shutil.copytree(bert, tmp_path / "model")
    known = Known("model", width=32, dims=(16,))
    card = read_card(tmp_path / "model", known, Settings())
    assert trained_dims(card, known, 32) == (32, 16)
    assert trained_dims(card, known, 64) == (64,)


def test_a_pair_of_texts_and_its_order_never_matter(bert: Path, tmp_path: Path) -> None:
    model = served(make_sentence_bert(tmp_path / "model", bert, pooling=MEAN, prompts={"query": "query: ", "passage": "passage: "}))
    texts = ["who built the first dynamo?", "a", "the " * 20, "who built the first dynamo?"]
    alone = {text: vectors(model, [text])[0].tolist() for text in texts}
    for order in permutations(texts):
        assert vectors(model, list(order)).tolist() == [alone[text] for text in order]


def test_only_the_dimensions_a_model_was_trained_for_are_served() -> None:
    fake = served("fake")
    assert [fake.dim(wanted) for wanted in (0, 2048, 1024, 768, 512, 384)] == [2048, 2048, 1024, 768, 512, 384]
    for wanted in (1, 128, 383, 4096):
        with pytest.raises(InvalidInput, match=f"not trained for {wanted} dimensions, but for 2048, 1024, 768, 512, 384"):
            fake.dim(wanted)


def test_the_operator_can_declare_more_dimensions() -> None:
    fake = served("fake", dims="128,384,64")
    assert fake.declared_dims == (128, 64)
    assert fake.dim(64) == 64
    with pytest.raises(InvalidInput, match="--dims 4096 is wider than the model's 2048"):
        served("fake", dims=(4096,))


def test_models_are_found_by_any_of_their_names(bert: Path) -> None:
    models = load(Settings(models=("fake", str(bert)), device="cpu"))
    assert models.find("").name == "fake"
    assert models.find("TINY-BERT").name == "tiny-bert"
    assert models.find("tiny-bert", models.find("tiny-bert").revision).name == "tiny-bert"


def test_an_unknown_name_or_revision_is_refused(bert: Path) -> None:
    models = load(Settings(models=("fake", str(bert)), device="cpu"))
    with pytest.raises(UnknownModel, match="model 'other' is not served here") as raised:
        models.find("other")
    assert "fake, tiny-bert" in raised.value.hint
    with pytest.raises(UnknownModel, match=r"served at revision [0-9a-f]{12}, not old"):
        models.find("fake", "old")


def test_two_models_of_one_name_are_refused(bert: Path) -> None:
    with pytest.raises(InvalidInput, match="two models are called tiny-bert"):
        Models([served(bert), served(bert)])


def test_the_fake_models_vectors_are_fixed_for_ever() -> None:
    fake = served("fake")
    (vector,) = vectors(fake, ["who built the first dynamo?"])
    assert fake.revision == "0078be0b8df3"
    assert numpy.linalg.norm(vector) == pytest.approx(1)
    numpy.testing.assert_allclose(vector[:4], [0, 0.03191349, -0.01063783, 0.02836755], rtol=1e-6)


@pytest.mark.parametrize("dim", [2048, 384])
def test_the_fake_model_puts_texts_that_share_words_together(dim: int) -> None:
    fake = served("fake")
    passages = ["Jedlik built the first dynamo", "How to bake bread with rye", "Rye grows on poor soils"]
    pooled = fake.engine.encode(fake.tokenizer.encode(passages, InputType.PASSAGE, Truncate.NONE))
    for query, best in (("who built the first dynamo", 0), ("baking bread: how to bake", 1), ("where rye grows", 2)):
        (asked,) = fake.engine.encode(fake.tokenizer.encode([query], InputType.QUERY, Truncate.NONE))
        assert int((truncate(pooled, dim) @ truncate(asked[None], dim)[0]).argmax()) == best


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    directory = checkpoints.bert(tmp_path / "bert")
    file = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens([f"<unheard-of {number}>" for number in range(300)])
    tokenizer.save(str(file))
    with pytest.raises(InvalidInput, match="tokens, and the model 300"):
        served(directory)
