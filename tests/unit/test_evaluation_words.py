"""
BM25: what a word is, and the formula.
"""

from math import log

import pytest

from nv_embed.evaluation.collection import Document
from nv_embed.evaluation.words import K1, B, Bm25, split, tokeniser


def test_english_words_are_stemmed_and_stop_words_left_out() -> None:
    assert tokeniser("en")("The Dynamos are running, and a dynamo runs!") == ["dynamo", "run", "dynamo", "run"]


def test_other_languages_have_their_own_stemming() -> None:
    assert tokeniser("de")("Die Häuser")[-1] == tokeniser("de")("Haus")[0]
    assert tokeniser("vi")("những ngôi nhà") == ["những", "ngôi", "nhà"]


def test_scripts_without_spaces_are_cut_into_pairs() -> None:
    assert split("東京都 tokyo") == ["東京", "京都", "tokyo"]
    assert split("ชา") == ["ชา"]


def test_signs_around_a_letter_belong_to_its_word() -> None:
    assert split("हिन्दी भाषा।") == ["हिन्दी", "भाषा"]


def test_the_score_is_the_formula() -> None:
    """Two documents of 2 and 4 words; the score of one that has the word once, as Lucene computes it."""
    documents = {"long": Document("", "dynamo wire magnet coil"), "short": Document("", "dynamo bread"), "none": Document("", "violin bow string")}
    index = Bm25(documents, "en")
    assert index.search("dynamo", 10) == ["short", "long"]
    idf = log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    scores = index._index.get_scores(["dynamo"])
    for place, length in ((0, 4), (1, 2)):
        assert scores[place] == pytest.approx(idf / (1 + K1 * (1 - B + B * length / 3)), rel=1e-5)


def test_a_query_without_known_words_finds_nothing() -> None:
    index = Bm25({"d": Document("", "bread")}, "en")
    assert index.search("violin", 10) == []
    assert index.search("the of", 10) == []
    assert index.search("", 10) == []
