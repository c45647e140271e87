"""
Text to token ids.

Every text gets the model's prompt in front and its special tokens around, exactly once: a text that begins with the very prompt of its input type,
because a client added it, gets no second one. What exceeds the model's limit is an error or is cut from the text, never from the prompt or the
special tokens.

In:  texts, an input type      Out: token ids, at most `max_tokens` a text
"""

import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from nv_embed.errors import InvalidInput

PORTION_CHARS = 256 * 1024
SEGMENT_CHARS = 32 * 1024
PROMPT_CONTEXT_CHARS = 64
BETWEEN_WORDS = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
"""A single space between letters or digits: no vocabulary has a token that reaches over it to the left."""


class InputType(Enum):
    PASSAGE = "passage"
    QUERY = "query"


class Truncate(Enum):
    NONE = "NONE"
    START = "START"
    END = "END"


class TooLong(InvalidInput):
    """A text has more tokens than its model reads.

    Attributes:
        tokens: of the text, special tokens and prompt included.
        max_tokens: that the model reads.
    """

    def __init__(self, tokens: int, max_tokens: int, model: str, position: int) -> None:
        super().__init__(
            f"{tokens} tokens exceed the {max_tokens} tokens that model {model} reads",
            hint="cut the text into pieces with nv_chunk(), or allow the loss with truncate => 'END'",
            position=position,
        )
        self.tokens = tokens
        self.max_tokens = max_tokens


class Vocabulary(Protocol):
    """What splits a text into tokens, and the special tokens that stand around every text."""

    @property
    def size(self) -> int:
        """Ids are below it."""
        ...

    @property
    def prefix(self) -> tuple[int, ...]: ...

    @property
    def suffix(self) -> tuple[int, ...]: ...

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        ...

    def ids_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of one text, and the characters [start, end) that each stands for."""
        ...

    def text(self, ids: Sequence[int]) -> str | None:
        """What token ids stand for, where a text's first ids depend on what stands in front of it; None where they do not."""
        ...


class FileVocabulary:
    """The vocabulary in a `tokenizer.json`.

    Args:
        file: the `tokenizer.json`.
        lower_case: put every text into lower case first.
        special: ids in front and behind; as the file's own template has them unless given.

    Attributes:
        size: ids are below it.
    """

    def __init__(self, file: Path, *, lower_case: bool = False, special: tuple[tuple[int, ...], tuple[int, ...]] | None = None) -> None:
        self._tokenizer = Tokenizer.from_file(str(file))
        # Files often carry the padding and truncation of some training run.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if lower_case:
            own = [self._tokenizer.normalizer] if self._tokenizer.normalizer else []
            self._tokenizer.normalizer = NormalizerSequence([Lowercase(), *own])
        self.prefix, self.suffix = special if special is not None else self._template()
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in texts]
        for portion in _portions(texts):
            encodings = self._tokenizer.encode_batch_fast([segment for _, segment in portion], add_special_tokens=False)
            for (position, _), encoding in zip(portion, encodings, strict=True):
                found[position] += encoding.ids
        return found

    def ids_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        # A batch of one, because only the batch call works beside other Python threads.
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def text(self, ids: Sequence[int]) -> str | None:
        # Where a word's token holds the space in front of it. Its bytes come back whole; what other decoders make of ids is not always the text.
        if not isinstance(self._tokenizer.decoder, ByteLevel):
            return None
        decoded: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return decoded

    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        encoding = self._tokenizer.encode("a")
        real = [position for position, special in enumerate(encoding.special_tokens_mask) if not special]
        return tuple(encoding.ids[: real[0]]), tuple(encoding.ids[real[-1] + 1 :])


class TextTokenizer:
    """Texts as one model reads them.

    Attributes:
        max_tokens: the most tokens a text may have, special tokens and prompt included.
        prompts: what stands in front of a text of each input type.

    Raises:
        InvalidInput: special tokens and a prompt alone leave no room for a text.
    """

    def __init__(self, vocabulary: Vocabulary, *, model: str, max_tokens: int, query_prompt: str, passage_prompt: str) -> None:
        self._vocabulary = vocabulary
        self._model = model
        self._special = len(vocabulary.prefix) + len(vocabulary.suffix)
        self.max_tokens = max_tokens
        self.prompts = {InputType.QUERY: query_prompt, InputType.PASSAGE: passage_prompt}
        self._check_room()

    def count(self, texts: Sequence[str], input_type: InputType = InputType.PASSAGE) -> list[int]:
        """Tokens of each text, special tokens and prompt included, without truncation."""
        return [len(ids) + self._special for ids in self._vocabulary.ids(self._prompted(texts, input_type))]

    def encode(self, texts: Sequence[str], input_type: InputType, truncate: Truncate) -> list[list[int]]:
        """Token ids of each text, ready for the engine.

        Raises:
            InvalidInput: a text exceeds `max_tokens` and `truncate` is NONE.
        """
        prompted = self._prompted(texts, input_type)
        return [
            self._fit(position, ids, truncate, partial(self._prompt_ids, text, ids, input_type))
            for position, (text, ids) in enumerate(zip(prompted, self._vocabulary.ids(prompted), strict=True))
        ]

    def encode_ids(self, texts: Sequence[Sequence[int]], input_type: InputType, truncate: Truncate) -> list[list[int]]:
        """What `encode` makes of texts that are tokenised already, by this vocabulary; with special tokens and prompt around them or without.

        Raises:
            InvalidInput: as for `encode`, or an id is not of the vocabulary.
        """
        return [self._encode_ids(position, ids, input_type, truncate) for position, ids in enumerate(texts)]

    def _encode_ids(self, position: int, ids: Sequence[int], input_type: InputType, truncate: Truncate) -> list[int]:
        wrong = next((id for id in ids if not 0 <= id < self._vocabulary.size), None)
        if wrong is not None:
            raise InvalidInput(
                f"token id {wrong} is not one of the {self._vocabulary.size} of model {self._model}",
                hint="send token ids of the model's own vocabulary, or send the text",
                position=position,
            )
        bare = _without(list(ids), self._vocabulary.prefix, self._vocabulary.suffix)
        if (text := self._vocabulary.text(bare)) is not None:
            (prompted,) = self._prompted([text], input_type)
            (whole,) = self._vocabulary.ids([prompted])
            return self._fit(position, whole, truncate, partial(self._prompt_ids, prompted, whole, input_type))
        (head,) = self._vocabulary.ids([self.prompts[input_type]])
        return self._fit(position, [*head, *_without(bare, head, ())], truncate, lambda: head)

    def overhead(self) -> int:
        """Tokens of an empty passage: special tokens and prompt."""
        return self.count([""])[0]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token of a passage, counted in `text`; tokens of a prompt that is not part of it are left out."""
        (prompted,) = self._prompted([text], InputType.PASSAGE)
        added = len(prompted) - len(text)
        _, spans = self._vocabulary.ids_with_offsets(prompted)
        return [(max(start - added, 0), end - added) for start, end in spans if end > added]

    def _prompted(self, texts: Sequence[str], input_type: InputType) -> Sequence[str]:
        prompt = self.prompts[input_type]
        return [text if text.startswith(prompt) else prompt + text for text in texts]

    def _check_room(self) -> None:
        for input_type, prompt in self.prompts.items():
            (taken,) = self.count([prompt], input_type)
            if taken >= self.max_tokens:
                raise InvalidInput(
                    f"max_tokens is {self.max_tokens}, and special tokens and {input_type.value} prompt of model {self._model} alone take {taken}",
                    hint="allow more tokens, or give a shorter prompt",
                )

    def _fit(self, position: int, ids: list[int], truncate: Truncate, find_head: Callable[[], list[int]]) -> list[int]:
        """The ids of a text and its prompt, as many as there is room for, between the special tokens; `find_head` gives the prompt's."""
        room = self.max_tokens - self._special
        if len(ids) + self._special == 0:
            raise InvalidInput(
                f"text {position} is empty and model {self._model} has no special tokens", hint="leave empty texts out", position=position
            )
        if len(ids) > room:
            if truncate is Truncate.NONE:
                raise TooLong(len(ids) + self._special, self.max_tokens, self._model, position)
            head = find_head()[:room] if truncate is Truncate.START else ids[:room]
            ids = [*head, *ids[len(ids) - (room - len(head)) :]]
        return [*self._vocabulary.prefix, *ids, *self._vocabulary.suffix]

    def _prompt_ids(self, prompted: str, ids: list[int], input_type: InputType) -> list[int]:
        """The first tokens, those of the prompt alone. Its last space often belongs to the text's first word, and is dropped with it."""
        prompt = self.prompts[input_type]
        if not prompt:
            return []
        _, spans = self._vocabulary.ids_with_offsets(prompted[: len(prompt) + PROMPT_CONTEXT_CHARS])
        ends = [end for _, end in spans if end <= len(prompt)]
        shared = prompt[max(ends, default=0) :]
        return [*ids[: len(ends)], *(self._vocabulary.ids([shared])[0] if shared.strip() else ())]


def _without(ids: list[int], prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """Ids without those around them, where they are there."""
    start = len(prefix) if ids[: len(prefix)] == list(prefix) else 0
    end = len(ids) - len(suffix) if suffix and ids[start:][-len(suffix) :] == list(suffix) else len(ids)
    return ids[start:end]


def _portions(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Texts and segments of long texts, each with its text's position, in portions that are tokenised at a time.

    The library needs some hundred bytes for every character that it is tokenising; a long text must not take memory in proportion.
    """
    portion: list[tuple[int, str]] = []
    chars = 0
    for position, text in enumerate(texts):
        for segment in _segments(text):
            if portion and chars + len(segment) > PORTION_CHARS:
                yield portion
                portion, chars = [], 0
            portion.append((position, segment))
            chars += len(segment)
    if portion:
        yield portion


def _segments(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > SEGMENT_CHARS and (cut := BETWEEN_WORDS.search(text, start + SEGMENT_CHARS)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:] if start else text
