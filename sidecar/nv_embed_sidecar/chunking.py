"""
A long text to pieces that the model can read.

A window of text is tokenised, cut at the last word that fits, and the piece counted once more on its own, because a cut can change the tokens
beside it. The next window begins at the cut, or `overlap` tokens before it. Memory and time a piece do not grow with the text.

In:  a text, tokens a piece      Out: pieces as characters [start, end)
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.tokenising import TextTokenizer

FIRST_WINDOW_CHARS_PER_TOKEN = 6
WINDOW_MARGIN = 1.3


@dataclass(frozen=True)
class Piece:
    """Characters `start` up to, not including, `end`; `tokens` as counted for a passage."""

    start: int
    end: int
    tokens: int


def chunk(tokenizer: TextTokenizer, text: str, max_tokens: int, overlap: int = 0) -> Iterator[Piece]:
    """Cut a text into pieces of at most `max_tokens` tokens each.

    The pieces cover the text from first to last character, but for long white space; a blank text has none. A cut falls between words where it
    can, and never inside a character. Each piece repeats about `overlap` tokens of the one before.

    Raises:
        InvalidInput: `max_tokens` leaves no room beside special tokens and prompt, or for some character.
    """
    room = _room(tokenizer, max_tokens, overlap)
    if not text.strip():
        return
    start = done = 0
    chars = max_tokens * FIRST_WINDOW_CHARS_PER_TOKEN
    while done < len(text):
        window, spans = _window(tokenizer, text, start, chars, room)
        piece = _piece(tokenizer, text, start, done, window, spans, max_tokens, room)
        if piece is None:  # what was to be repeated leaves no room for anything new
            start = done
            continue
        if text[piece.start : piece.end].strip():
            yield piece
        chars = max(int((piece.end - piece.start) * WINDOW_MARGIN), max_tokens)
        start, done = _next_start(text, piece, spans, overlap), piece.end


def _room(tokenizer: TextTokenizer, max_tokens: int, overlap: int) -> int:
    overhead = tokenizer.overhead()
    if max_tokens > tokenizer.max_tokens:
        raise InvalidInput(f"max_tokens is {max_tokens}, and the model reads {tokenizer.max_tokens}", hint="ask for smaller pieces")
    if max_tokens <= overhead:
        raise InvalidInput(
            f"max_tokens is {max_tokens}, and special tokens and prompt alone take {overhead} of every piece",
            hint=f"max_tokens must be at least {overhead + 1}",
        )
    if overlap >= max_tokens - overhead:
        raise InvalidInput(
            f"overlap is {overlap}, and a piece of {max_tokens} tokens has {max_tokens - overhead} for its text",
            hint=f"overlap must be below {max_tokens - overhead}",
        )
    return max_tokens - overhead


def _window(tokenizer: TextTokenizer, text: str, start: int, chars: int, room: int) -> tuple[int, list[tuple[int, int]]]:
    """The end of a window from `start` with more than `room` tokens, or of the text; and its tokens' characters, counted in the text."""
    while True:
        end = min(start + chars, len(text))
        spans = tokenizer.offsets(text[start:end])
        # The last token of a window may be half a word: it must not be needed.
        if end == len(text) or len(spans) > room + 1:
            return end, [(start + first, start + last) for first, last in spans]
        chars *= 2


def _piece(
    tokenizer: TextTokenizer, text: str, start: int, done: int, window: int, spans: list[tuple[int, int]], max_tokens: int, room: int
) -> Piece | None:
    """The longest piece from `start` that fits and ends at a good place; None when none that fits ends after `done`."""
    keep = room
    shrink = 1
    if len(spans) <= room + 1 and window == len(text):
        tokens = _count(tokenizer, text, start, window)
        if tokens <= max_tokens:
            return Piece(start, window, tokens)
        keep = min(room, len(spans) - 1)
    while keep > 0:
        end = _cut(text, spans, keep, max(start, done))
        if end is not None:
            tokens = _count(tokenizer, text, start, end)
            if tokens <= max_tokens:
                return Piece(start, end, tokens)
            shrink = max(shrink, tokens - max_tokens)
        keep, shrink = keep - shrink, shrink * 2
    return _characters(tokenizer, text, start, done, window, max_tokens)


def _characters(tokenizer: TextTokenizer, text: str, start: int, done: int, window: int, max_tokens: int) -> Piece | None:
    """A piece cut between any two characters, for text where no cut between tokens fits."""
    end = min(window, start + max_tokens)
    while end > max(start, done):
        tokens = _count(tokenizer, text, start, end)
        if tokens <= max_tokens:
            return Piece(start, end, tokens)
        end = start + (end - start) // 2
    if start < done:
        return None
    needed = _count(tokenizer, text, start, start + 1)
    raise InvalidInput(
        f"the character at position {start} takes {needed} tokens by itself, and max_tokens is {max_tokens}",
        hint=f"max_tokens must be at least {needed}",
    )


def _cut(text: str, spans: list[tuple[int, int]], keep: int, after: int) -> int | None:
    """Where to end a piece of at most `keep` tokens, behind `after`: before a word if one begins in its second half, else before a token."""
    anywhere: int | None = None
    for index in range(min(keep, len(spans) - 1), 0, -1):
        position = _boundary(text, spans, index)
        if position is None or position <= after:
            continue
        if text[position - 1].isspace():
            return position
        anywhere = anywhere or position
        if index <= keep // 2:
            break
    return anywhere


def _boundary(text: str, spans: list[tuple[int, int]], index: int) -> int | None:
    """The character at which token `index` begins, behind the spaces that it may hold; None if it begins inside a character of the token before."""
    start, end = spans[index]
    if start < spans[index - 1][1]:
        return None
    while start < end - 1 and text[start].isspace():
        start += 1
    return start


def _next_start(text: str, piece: Piece, spans: list[tuple[int, int]], overlap: int) -> int:
    """Where the next piece begins: at the first word among the last `overlap` tokens of this one."""
    if not overlap:
        return piece.end
    inside = sum(first < piece.end for first, _ in spans)
    anywhere: int | None = None
    for index in range(max(inside - overlap, 1), inside):
        position = _boundary(text, spans, index)
        if position is None or not piece.start < position < piece.end:
            continue
        if text[position - 1].isspace():
            return position
        anywhere = anywhere or position
    return anywhere or piece.end


def _count(tokenizer: TextTokenizer, text: str, start: int, end: int) -> int:
    return tokenizer.count([text[start:end]])[0]
