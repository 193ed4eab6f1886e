"""Which shown documents an answer used: citations, evidence, abstention, and what that is worth as feedback."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from neuralcache_plugins import Attribution
from neuralcache_plugins.attribution import attribute, evidence, likeness_by
from neuralcache_plugins.attribution.abstention import abstains
from neuralcache_plugins.attribution.evidence import WORDS, features, sentences, weighed
from neuralcache_plugins.attribution.prompts import labels_in
from neuralcache_plugins.testing import HashingEncoder

WORD = st.sampled_from(["amber", "basalt", "coral", "delta", "ember", "fjord"])
SAID = st.lists(st.lists(WORD, max_size=8).map(" ".join), min_size=1, max_size=4)
IDS = ["hours-1", "reset-2", "cards-3", "fees"]
TEXTS = [
    "Our branches are open from nine to five on weekdays and closed on Sundays.",
    "To reset your password, open the settings of the app and choose Security. A code is sent to your phone.",
    "A new card is delivered to your home address within five working days of the order.",
    "Transfers abroad cost 2.50 euros each, or 0.3 percent above 1,000 euros.",
]


def used(answer, **options) -> list[str]:
    return list(attribute(answer, IDS, TEXTS, **options).rewards)


# citations


class Quoted(BaseModel):
    text: str
    source_ids: list[int | str]


CITING = {
    "a number in brackets": "You can do that in the app [2].",
    "two brackets": "You can do that in the app [[2]].",
    "lenticular brackets": "You can do that in the app\u30102\u3011.",
    "a footnote mark": "You can do that in the app[^2].",
    "a footnote that names the id": "You can do that in the app[^7].\n\n[^7]: reset-2, page 4",
    "a superscript": "You can do that in the app.\u00b2",
    "a source by number": "According to Source 2, that is done in the app.",
    "a source in parentheses": "That is done in the app (source: 2).",
    "a source in brackets": "That is done in the app [Source 2].",
    "a German source": "Das geht in der App (Quelle 2).",
    "an id in brackets": "You can do that in the app [reset-2].",
    "an id in the text": "See reset-2 for how it goes.",
    "a tag": 'That is done in the app <cite id="reset-2">so</cite>.',
    "a tag with a number": "That is done in the app <ref>2</ref>.",
    "a list of sources at the end": "That is done in the app.\n\nSources:\n[2] The help page",
    "a mapping": {"answer": "That is done in the app.", "sources": ["reset-2"]},
    "numbers in a mapping": {"answer": "That is done in the app.", "citations": [2]},
    "objects in a mapping": {"answer": "That is done in the app.", "sources": [{"id": "reset-2", "page": 3}]},
    "a model": Quoted(text="That is done in the app.", source_ids=["reset-2"]),
    "JSON": '{"answer": "That is done in the app.", "source_ids": [2]}',
    "fenced JSON": '```json\n{"answer": "That is done in the app.", "used_documents": ["reset-2"]}\n```',
    "arguments of a call": ["", {"answer": "That is done in the app.", "document_ids": ["reset-2"]}],
}


@pytest.mark.parametrize("form", CITING)
def test_a_citation_is_found(form):
    found = attribute(CITING[form], IDS, TEXTS)

    assert (found.cited, found.source, list(found.rewards)) == (("reset-2",), "citation", ["reset-2"])


SEVERAL = ["Both apply [2, 3].", "Both apply [2][3].", "Both apply [2-3].", "Both apply (sources 2 and 3).",
           "Both apply [reset-2; cards-3]."]


@pytest.mark.parametrize("answer", SEVERAL)
def test_several_citations_are_found(answer):
    assert attribute(answer, IDS, TEXTS).cited == ("reset-2", "cards-3")


NOT_CITING = [
    "It costs money [sic].", "The array is a[17].", "See [the help page](https://example.org/a).", "It takes 2 days.",
    "Open [Settings].", {"answer": "In the app.", "sources": [{"page_content": TEXTS[1], "id": "reset-2"}]},
    {"answer": "In the app.", "sources": [9]}, "{not json",
]


@pytest.mark.parametrize("answer", NOT_CITING, ids=str)
def test_what_only_looks_like_a_citation_is_none(answer):
    assert attribute(answer, IDS, TEXTS).cited == ()


def test_brackets_that_a_document_has_itself_are_no_citation():
    texts = ["The treaty was signed in Rome [2] and ratified later.", "Bread is baked."]

    assert attribute("The treaty was signed in Rome [2].", ["a", "b"], texts).cited == ()


def test_labels_say_what_numbers_mean():
    assert attribute("As told [1].", IDS, TEXTS, labels={"1": 3}).cited == ("fees",)
    assert attribute("As told [0] and [1].", IDS, TEXTS).cited == ("hours-1", "reset-2")  # counted from 0
    assert attribute("As told [1].", IDS, TEXTS, numbered=False).cited == ()


def test_against_all_evidence_a_citation_is_not_believed():
    """The numbers of the prompt were others: what is cited has nothing of the answer, another document all of it."""
    found = attribute(f"{TEXTS[1]} [1]", IDS, TEXTS)

    assert (found.cited, list(found.rewards), found.source) == (("hours-1",), ["reset-2"], "context_use")


PROMPTS = {
    "numbers before": ("Source 1: {2}\nSource 2: {0}", {"1": 2, "2": 0}),
    "from 0": ("Source ID: 0\nTitle: A\nText: {3}\n\nSource ID: 1\nTitle: B 7\nText: {1}", {"0": 3, "1": 1}),
    "brackets": ("[1] {1}\n[2] {2}\n[3] {0}", {"1": 1, "2": 2, "3": 0}),
    "parts of documents": ("Source 1:\n{1:.40}\nSource 2:\nA code is sent to your phone.\nSource 3:\n{0}",
                           {"1": 1, "2": 1, "3": 0}),
    "no numbers": ("{3}\n\n{0}", {"1": 3, "2": 0}),
    "two lists": ("[1] {1}\n[2] {2}\n\n[1] {3}", {"2": 2}),
    "nothing of them": ("something else", None),
}


@pytest.mark.parametrize("form", PROMPTS)
def test_the_prompt_tells_what_numbers_mean(form):
    template, expected = PROMPTS[form]

    assert labels_in(template.format(*TEXTS), TEXTS) == expected


# evidence


@pytest.mark.parametrize("encode", [None, likeness_by(HashingEncoder())], ids=["words", "words and meaning"])
def test_an_answer_from_one_document_rewards_that_one(encode):
    answer = "Open the app's settings, choose Security and reset your password there; a code comes to your phone."

    found = attribute(answer, IDS, TEXTS, encode=encode)

    assert (list(found.rewards), found.source, found.cited) == (["reset-2"], "context_use", ())
    assert max(found.probabilities, key=found.probabilities.get) == "reset-2"


def test_an_answer_from_two_documents_rewards_both():
    answer = ("A new card is delivered to your home address within five working days. "
              "Transfers abroad cost 2.50 euros each, or 0.3 percent above 1,000 euros.")

    assert used(answer) == ["cards-3", "fees"]


def test_an_answer_from_elsewhere_rewards_nothing():
    assert used("Photosynthesis turns light into chemical energy in the leaves of plants.") == []
    assert used("Certainly!") == used("") == used("   ") == []


MILL = [
    "The old mill was restored in 1986 by the villagers, who use it as a museum of farming. Its wheel turns again on "
    "Sundays in summer.",
    "A bakery opened beside the harbour and sells bread until noon.",
    "The ferry to the island leaves twice a day from the western pier.",
]


@pytest.mark.parametrize("answer", [
    "The old mill by the river was built by monks in 1712 and ground rye and barley for the villagers of the valley.",
    "The wheel of the old mill was made of oak from the northern forest by a carpenter from the next valley.",
    "The old mill is a museum of farming that opens on winter weekends for school classes, says the mayor.",
])
def test_being_the_only_one_about_the_subject_is_no_use_of_a_document(answer):
    """The answer is from elsewhere; all of its words that anybody has are in one document, and they are few."""
    found = attribute(answer, ["mill", "bakery", "ferry"], MILL, query="when was the old mill built")

    assert found.probabilities["mill"] < 0.5
    assert found.rewards == {}


@given(SAID, SAID)
def test_what_a_document_alone_has_counts_as_far_as_anything_is_from_the_documents(said, texts):
    table = features(said, texts)
    before = table.copy()
    most = [max((row[WORDS.index(name)] for row in table), default=0.0) for name in ("best sentence", "longest run")]
    held = sum(most) / 2
    expected = [[value * held if name in ("added words", "own words") else value
                 for name, value in zip(WORDS, row, strict=True)] for row in table]

    np.testing.assert_allclose(weighed(table), np.array(expected).reshape(table.shape))
    np.testing.assert_array_equal(table, before)


def test_a_number_tells_documents_apart_that_are_alike():
    texts = ["The monthly fee of the basic account is 3 euros.", "The monthly fee of the gold account is 12 euros."]

    assert list(attribute("It is 12 euros a month for gold.", ["basic", "gold"], texts).rewards) in (["gold"], [])
    found = attribute("The monthly fee is 12 euros.", ["basic", "gold"], texts).probabilities
    assert found["gold"] > found["basic"]


def test_words_of_the_question_count_little():
    question = "what do transfers abroad cost"
    answer = "You asked what transfers abroad cost."

    assert attribute(answer, IDS, TEXTS, query=question).probabilities["fees"] < attribute(
        answer, IDS, TEXTS).probabilities["fees"]


def test_a_document_that_adds_nothing_to_a_better_one_gets_no_reward():
    texts = ["card payment fee charged", "card payment", "cash withdrawal"]

    assert list(attribute("Read about card payment fee charged.", ["a", "b", "c"], texts).rewards) == ["a"]
    assert list(attribute("Read about card payment.", ["a", "b", "c"], texts).rewards) == ["b"]


def test_a_document_shown_twice_counts_once():
    found = attribute(TEXTS[2], ["x", "x", "y"], [TEXTS[2], TEXTS[2], TEXTS[0]])

    assert list(found.probabilities) == ["x", "y"]
    assert list(found.rewards) == ["x"]


def test_nothing_shown_is_nothing_used():
    assert attribute("Anything.", [], []).probabilities == {}


@given(st.text(max_size=300), st.lists(st.text(max_size=120), max_size=4))
def test_any_text_gives_probabilities_and_never_an_error(answer, texts):
    found = attribute(answer, [f"d{place}" for place in range(len(texts))], texts, encode=likeness_by(HashingEncoder()))

    assert all(0 <= value <= 1 for value in found.probabilities.values())
    assert all(found.probabilities[name] >= 0.7 for name in found.rewards)


def test_a_megabyte_of_brackets_is_read_in_bounded_time():
    """Only the head of a text is looked at; the patterns are linear."""
    for text in ("[" * 1_000_000, "[1" * 500_000, "source " * 150_000, "i do not " * 100_000, "<ref " * 200_000):
        attribute(text, IDS, [text, *TEXTS[1:]])


def slow_features(said, texts):
    """Words alone, in so many loops."""
    from neuralcache_plugins.core.lexical import content_tokens

    answer = [content_tokens(part) for part in said]
    words = {word for part in answer for word in part}
    pairs = {(a, b) for part in answer for a, b in pairwise(part)}
    rows = []
    for text in texts:
        tokens = content_tokens(text)
        own = {(a, b) for a, b in pairwise(tokens)}
        longest = max((length for length in range(1, 13) for part in answer for i in range(len(part) - length + 1)
                       for j in range(len(tokens) - length + 1) if part[i : i + length] == tokens[j : j + length]),
                      default=0)
        share = len(set(tokens) & words) / max(1, len(set(tokens)))
        rows.append((np.sqrt(len(pairs & own) / len(pairs)) if pairs else 0.0, longest / min(12, max(1, len(tokens))),
                     share / (share + 0.15)))
    return np.array(rows)


@given(SAID, SAID)
def test_phrases_runs_and_coverage_are_what_they_say(said, texts):
    fast = features(said, texts)
    if not any(part.strip() for part in said):
        assert not fast.any()
        return

    columns = [WORDS.index(name) for name in ("phrases", "longest run", "coverage")]
    np.testing.assert_allclose(fast[:, columns], slow_features(said, texts))


# abstention


REFUSALS = [
    "I don't know.", "I\u2019m sorry, but I can\u2019t find that in the documents.", "I cannot answer that question.",
    "The provided context does not contain information about it.", "There is no information on that.",
    "Das wei\u00df ich leider nicht.", "Dazu gibt es keine Informationen.", "Je ne sais pas.",
    "No lo s\u00e9, lo siento.",
    "Non lo so.", "N\u00e3o sei.", "Ik weet het niet.", "\u6211\u4e0d\u77e5\u9053\u3002",
    "\u308f\u304b\u308a\u307e\u305b\u3093\u3002", "\uc8c4\uc1a1\ud569\ub2c8\ub2e4.",
    "\u042f \u043d\u0435 \u0437\u043d\u0430\u044e.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_an_answer_that_answers_nothing_gives_no_feedback(answer):
    found = attribute(answer, IDS, TEXTS)

    assert found.abstained
    assert (found.rewards, set(found.probabilities.values())) == ({}, {0.0})


ANSWERS = ["You cannot open an account without a passport.", "Sorry is not a plan.",
           "Nobody knows who built it in 1200.",
           "The document was signed in 1848.", "No fee is charged.", "Do not share your code."]


@pytest.mark.parametrize("sentence", ANSWERS)
def test_a_negative_answer_is_an_answer(sentence):
    assert not abstains(sentence)


def test_a_phrase_that_a_document_says_itself_is_no_abstention():
    text = "The song I don't know how to love him was sung by Mary in 1970."

    assert abstains("It is called I don't know how to love him.")
    assert not abstains("It is called I don't know how to love him.", [text])
    assert abstains("I don't know.", [text])


def test_what_follows_an_abstention_counts_less():
    sure, hedged = attribute(TEXTS[2], IDS, TEXTS), attribute(f"I'm not sure. {TEXTS[2]}", IDS, TEXTS)

    assert not hedged.abstained
    assert 0 < hedged.probabilities["cards-3"] < sure.probabilities["cards-3"]


# the result


def test_an_attribution_is_frozen_and_explains_itself():
    found = attribute("As told there [2] & <so>.", ["a<b", *IDS[1:]], TEXTS)

    with pytest.raises(FrozenInstanceError):
        found.abstained = True
    lines = found.explain().splitlines()
    assert lines[0] == "what the answer used, by citation; told: nobody"
    assert lines[1].split()[:4] == ["id", "used", "reward", "cited"]
    assert [line.split()[0] for line in lines[2:]] == ["a<b", "reset-2", "cards-3", "fees"]
    assert "a&lt;b" in found._repr_html_()
    assert "a<b" not in found._repr_html_()
    assert attribute("I don't know.", IDS, TEXTS).explain().startswith("the answer says that it cannot answer")
    assert Attribution({}, {}).explain().splitlines()[1] == "id  used  reward  cited"


def test_it_holds_no_text():
    assert "password" not in repr(attribute(TEXTS[1], IDS, TEXTS))


def test_sentences_end_with_marks_and_lines():
    assert sentences('He said "Go." Then he left!\nA line\n\n\u884c\u304d\u307e\u3059\u3002\u306f\u3044\u3002') == [
        'He said "Go.', "Then he left!", "A line", "\u884c\u304d\u307e\u3059\u3002", "\u306f\u3044\u3002"]


BLANKS = " " * 100_000
HOSTILE = ["Source", "[source", "(see source", "sources\n", "# sources", "[", "(see", "1", "1,", "source 1", "<ref"]


@pytest.mark.parametrize("opening", HOSTILE)
def test_a_run_of_blanks_after_what_may_be_a_mark_is_read_once(opening):
    """Shared out between the blanks of one pattern it took minutes, and no other thread ran meanwhile."""
    text = f"{opening}{BLANKS}x"

    attribute(text, IDS, TEXTS)
    attribute({"answer": "So it is.", "sources": [text]}, IDS, TEXTS)
    assert labels_in(f"{text} {TEXTS[0]}", TEXTS) is not None


@pytest.mark.parametrize("word", ["a" * 40_000, "A" * 40_000, "_" * 40_000])
def test_a_word_that_never_ends_is_read_once(word):
    assert attribute(word, IDS, TEXTS).rewards == {}


@given(st.text(alphabet="aB1_ .\u00e4", max_size=30))
def test_names_and_numbers_are_words_with_a_capital_or_a_digit(said):
    plain = re.compile(r"(?<!^)\b[^\W\d_a-z]\w+|\w*\d\w*")  # what it says, in quadratic time

    assert evidence._NAME_OR_NUMBER.findall(said) == plain.findall(said)


def test_documents_full_of_numbered_lines_are_not_searched_for_each_of_them():
    looks = []

    class Watched(str):
        def __contains__(self, part):
            looks.append(part)
            return super().__contains__(part)

    texts = [Watched("".join(f"{line}. line {line} of {name}, of no interest\n" for line in range(1, 2_000)))
             for name in ("tides", "moons", "comets")]
    prompt = "\n\n".join(f"Source {number}:\n{text}" for number, text in enumerate(texts, 1))

    assert labels_in(prompt, texts) == {"1": 0, "2": 1, "3": 2}
    assert len(looks) <= 1_000 * len(texts)
