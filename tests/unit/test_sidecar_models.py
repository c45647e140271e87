"""
Which model is loaded, and what its files say of it. The vectors of a small random BERT are compared with sentence-transformers on the same directory.
"""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from nv_embed_sidecar.models import Model, Models, load
from nv_embed_sidecar.pooling import truncate
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import InputType, Truncate
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from nv_embed.errors import EmbedError, InvalidInput, UnknownModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "built", "the", "first", "dynamo", "query", "passage", ":", "?", "a", "##s", "b"]
TEXTS = ["who built the first dynamo?", "", "as as as b", "the " * 40, "passage: a"]
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
    return next(iter(load(Settings(models=(str(directory),), device="cpu", **settings))))


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
