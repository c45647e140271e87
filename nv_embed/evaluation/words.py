"""
BM25: what is found by words alone.

The collection is tokenised as its language wants it: stop words and Snowball stemming where there are any, and pairs of characters where a script has
no spaces. k1 and b are those of Anserini, whose figures are the public ones.

In:  documents and queries      Out: ids, best first
"""

import re
from collections.abc import Callable, Mapping, Sequence

import bm25s
import bm25s.stopwords
import Stemmer

from nv_embed.evaluation.collection import Document
from nv_embed.evaluation.languages import SNOWBALL

K1 = 0.9
B = 0.4

WORD = re.compile(r"[\w\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff]{2,}")
"""Python's \\w leaves out the signs that are written on or around a letter, without which Hindi falls to pieces."""

UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese: scripts in which words stand without spaces."""


class Bm25:
    """An index of documents by their words."""

    def __init__(self, documents: Mapping[str, Document], language: str) -> None:
        self._ids = list(documents)
        self._tokens = tokeniser(language)
        self._index = bm25s.BM25(k1=K1, b=B)
        self._index.index([self._tokens(each.passage()) for each in documents.values()], show_progress=False)

    def search(self, query: str, k: int) -> list[str]:
        """Ids of at most `k` documents that have a word of the query, best first."""
        tokens = self._tokens(query)
        if not tokens:
            return []
        places, scores = self._index.retrieve([tokens], k=min(k, len(self._ids)), show_progress=False)
        return [self._ids[place] for place, score in zip(places[0], scores[0], strict=True) if score > 0]


def tokeniser(language: str) -> Callable[[str], list[str]]:
    """What makes the tokens of a text."""
    stop_words, stem = _stop_words(language), _stemming(language)

    def tokens(text: str) -> list[str]:
        return stem([word for word in split(text.lower()) if word not in stop_words])

    return tokens


def split(text: str) -> list[str]:
    """Words of two or more characters; where there are no spaces, every two neighbouring characters."""
    return WORD.findall(UNSPACED.sub(lambda run: f" {' '.join(_pairs(run[0]))} ", text))


def _pairs(run: str) -> list[str]:
    return [run[place : place + 2] for place in range(max(len(run) - 1, 1))]


def _stop_words(language: str) -> frozenset[str]:
    name = "EN" if language == "en" else SNOWBALL.get(language, "").upper()
    return frozenset(getattr(bm25s.stopwords, f"STOPWORDS_{name}", ()))


def _stemming(language: str) -> Callable[[Sequence[str]], list[str]]:
    if SNOWBALL.get(language) not in Stemmer.algorithms():
        return list
    stemmer = Stemmer.Stemmer(SNOWBALL[language])
    return lambda words: list(stemmer.stemWords(list(words)))
