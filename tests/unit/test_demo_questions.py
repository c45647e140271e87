"""
The demo's questions.
"""

import pytest

from nv_embed.demo import corpus, questions
from nv_embed.demo.questions import Question

ASKED = questions.read()


@pytest.fixture(scope="module")
def known() -> frozenset[str]:
    return frozenset(entry.name for entry in corpus.read())


def test_at_least_48_questions_over_many_modules() -> None:
    assert len(ASKED) >= 48
    assert len({name.partition(".")[0] for question in ASKED for name in question.right}) >= 30


def test_no_question_is_asked_twice() -> None:
    assert len({question.ask.casefold() for question in ASKED}) == len(ASKED)


@pytest.mark.parametrize("question", ASKED, ids=lambda question: question.ask)
def test_right_names_are_in_the_corpus(question: Question, known: frozenset[str]) -> None:
    assert question.right
    assert sorted(question.right - known) == []


@pytest.mark.parametrize("question", ASKED, ids=lambda question: question.ask)
def test_a_question_does_not_give_its_answer_away(question: Question) -> None:
    assert [name for name in question.answers() if "." in name and name in question.ask] == []
