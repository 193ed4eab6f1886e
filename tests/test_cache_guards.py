"""Guards: what two questions differ in, said in words, the same from both sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.semantic_cache.guards import GUARDS, VETOES, differences
from neuralcache_plugins.semantic_cache.parsing import parse

WORDS = st.sampled_from([
    "enable", "disable", "Alice", "Bob", "20", "30", "km", "miles", "not", "who", "when", "Friday", "Monday", "card",
    "no", "wait", "the", "is", "der", "und", "ich", "open", "close", "unlock", "lock", "$", "2022", "USA", "France",
])
TEXTS = st.one_of(st.lists(WORDS, max_size=8).map(" ".join), st.text(max_size=20))


def reasons(ours: str, theirs: str) -> list[str]:
    return [each.reason for each in differences(parse(ours), parse(theirs))]


@given(TEXTS, TEXTS)
def test_swapping_the_questions_swaps_the_sides_and_nothing_else(ours: str, theirs: str) -> None:
    there, back = differences(parse(ours), parse(theirs)), differences(parse(theirs), parse(ours))

    assert [each.guard for each in there] == [each.guard for each in back]
    for one, other in zip(there, back, strict=True):
        if one.guard != "opposite":  # of several pairs either may be told
            assert (one.ours, one.theirs) == (other.theirs, other.ours)


@given(TEXTS)
def test_a_question_does_not_differ_from_itself(text: str) -> None:
    assert differences(parse(text), parse(text)) == ()


@given(TEXTS, TEXTS)
def test_every_difference_has_a_known_guard_and_says_why(ours: str, theirs: str) -> None:
    for each in differences(parse(ours), parse(theirs)):
        assert each.guard in GUARDS
        assert " against " in each.reason
        assert each.veto == (each.guard in VETOES)


@pytest.mark.parametrize(("ours", "theirs", "reason"), [
    ("send 20 euros", "send 30 euros", "other number: 20 against 30"),
    ("run 20 km", "run 20 miles", "other unit: 20 kilometre against 20 mile"),
    ("open on Friday", "open on Monday", "other date: friday against monday"),
    ("I can pay", "I can not pay", "other sense: plain against negated"),
    ("enable my card", "disable my card", "other meaning: enable against disable"),
    ("how to lock it", "how to unlock it", "other meaning: lock against unlock"),
    ("is it comfortable", "is it uncomfortable", "other meaning: comfortabl against uncomfortabl"),
    ("is it uncomfortable", "is it comfortable", "other meaning: uncomfortabl against comfortabl"),
    ("turn it on", "turn it off", "other meaning: on against off"),
    ("where is Alice", "where is Bob", "other name: alic against bob"),
    ("who did it", "when was it", "other kind of question: who against when"),
    ("where is my card", "wo ist meine karte und ich", "other language: en against de"),
])
def test_a_difference_is_told_in_words(ours: str, theirs: str, reason: str) -> None:
    assert reason in reasons(ours, theirs)


@pytest.mark.parametrize(("ours", "theirs"), [
    ("send 20 euros", "send twenty euros"),
    ("send 1,000 euros", "send 1000 eur"),
    ("send 20 euros", "send money"),
    ("was it not allowed", "was it disallowed"),
    ("what did the British do", "what did Britain do"),
    ("cards in the EU", "cards in the European Union"),
    ("is that in Warsaw", "is that in Prussia sorry Warsaw"),
    ("open at 5 pm", "open at 17:00"),
])
def test_what_is_only_said_otherwise_or_on_one_side_vetoes_nothing(ours: str, theirs: str) -> None:
    assert [each.reason for each in differences(parse(ours), parse(theirs)) if each.veto] == []
