"""Reading a question: what counts as the same text, a number, a date, a name, a self-repair."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.semantic_cache.parsing import canonical_text, parse

MARKS = "e" + "\u0301\u0327" * 60


@given(st.text())
def test_any_text_at_all_can_be_read(text: str) -> None:
    question = parse(text)

    assert 0 <= question.kept_from <= len(question.content)
    assert len(question.words) <= 600


@given(st.text())
def test_reading_twice_gives_equal_questions(text: str) -> None:
    assert parse(text) == parse(text)


@given(st.text(max_size=60))
def test_the_canonical_text_of_a_canonical_text_is_itself(text: str) -> None:
    once = canonical_text(text)

    assert canonical_text(once) == once


@pytest.mark.parametrize("other", [
    "how do i reset my password", "How  do I reset\nmy password ?", "HOW DO I RESET MY PASSWORD!",
])
def test_spaces_case_and_closing_signs_make_no_other_question(other: str) -> None:
    assert parse(other).canonical == parse("How do I reset my password?").canonical


@pytest.mark.parametrize(("one", "other"), [
    ("is it 20", "is it 30"), ("a b", "ab"), ("c++", "c"), ("caf\u00e9", "cafe"),
])
def test_other_texts_stay_apart(one: str, other: str) -> None:
    assert canonical_text(one) != canonical_text(other)


def test_composed_and_decomposed_letters_are_the_same_text() -> None:
    assert canonical_text("cafe\u0301") == canonical_text("caf\u00e9")
    assert parse("Is A\u0301rtico a sea?") == parse("Is \u00c1rtico a sea?")
    assert parse("Is A\u0301rtico a sea?").names == {"\u00e1rtico"}


@pytest.mark.parametrize("text", [
    "", "?", "\ud800", "\x00", "i mean", "no", "wait wait wait", "or", MARKS, "٢٠ يوم", "½", "²",
])
def test_odd_texts_are_read_like_any_other(text: str) -> None:
    assert parse(text).canonical == canonical_text(text)


@pytest.mark.parametrize("piece", [
    "a ", "1", "1,", "1.1-", "A. ", "\u0301", "no wait ", "$", "東", "e\u0301\u0327", "12:3",
])
def test_reading_takes_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        text = piece * size
        start = time.process_time()
        parse(text)
        return time.process_time() - start

    parse(piece * 10)
    assert min(seconds(200_000) for _ in range(2)) < 1.0


@pytest.mark.parametrize(("text", "numbers"), [
    ("I paid $20.50", {("20.5", "dollar")}),
    ("1,000 euros or 1000\u20ac", {("1000", "euro")}),
    ("two weeks", {("2", "week")}),
    ("20 km in 3h", {("20", "kilometre"), ("3", "hour")}),
    ("turn on 2FA, the 4th one", set()),
    ("007", {("7", "")}),
    ("5 %", {("5", "percent")}),
])
def test_what_counts_as_a_number(text: str, numbers: set[tuple[str, str]]) -> None:
    assert parse(text).numbers == numbers


@pytest.mark.parametrize(("text", "dates"), [
    ("on 3 May 2022", {"may", "2022"}),
    ("may I go on Friday", {"friday"}),
    ("at 11:50 p.m.", {"23:50"}),
    ("at 5pm", {"17:00"}),
    ("12/03/2022", {"12-3-2022"}),
    ("in the year 1999", {"1999"}),
    ("tomorrow", {"tomorrow"}),
])
def test_what_counts_as_a_date(text: str, dates: set[str]) -> None:
    assert parse(text).dates == dates


@pytest.mark.parametrize(("text", "names"), [
    ("Who is Ada Lovelace?", {"ada", "lovelac"}),
    ("Paris is nice. London too", set()),
    ("can I pay with IBAN", {"iban"}),
    ("WHY IS ALL OF THIS SHOUTED", set()),
    ("How To Open A Savings Account Abroad", set()),
    ("all in small letters about ada", set()),
])
def test_what_counts_as_a_name(text: str, names: set[str]) -> None:
    assert parse(text).names == names


@pytest.mark.parametrize(("text", "kind"), [
    ("How many cards?", "how many"), ("how do I", "how"), ("Where was no first who was the hostage?", "who"),
    ("can I pay", "yes or no"), ("my card", ""), ("which one", "what"),
])
def test_the_kind_of_question(text: str, kind: str) -> None:
    assert parse(text).kind == kind


@pytest.mark.parametrize(("text", "language"), [
    ("how do I get my card", "en"), ("wie kann ich meine Karte sperren", "de"), ("где моя карта", "cyrillic"),
    ("カードはどこですか", "kana"), ("银行卡在哪里", "han"), ("", ""), ("card", ""),
])
def test_the_language_shows_in_script_and_small_words(text: str, language: str) -> None:
    assert parse(text).language == language


def test_what_stood_before_a_self_repair_is_told_apart() -> None:
    question = parse("What theory er what planet seemed to buck Newton's laws?")

    assert question.content[:question.kept_from] == ("theory",)
    assert question.content[question.kept_from:] == ("planet", "seem", "buck", "newton", "law")
    assert question.repairs == 1


def test_a_word_said_again_after_the_repair_is_kept() -> None:
    question = parse("the red card no wait the blue card")

    assert question.content[question.kept_from:] == ("blue", "card")


def test_without_a_repair_nothing_was_taken_back() -> None:
    assert (parse("I waited for it").kept_from, parse("I waited for it").repairs) == (0, 0)
