"""Tokens and the lexical signal: what counts as a word, and how the fast scores agree with the textbook."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.core.lexical import TokenStatistics, lexical_scores, token_statistics, tokens

WORDS = st.sampled_from(["river", "bank", "loan", "fox", "quick", "den", "rate", "1990", "é", "東京", "the", "of"])
TEXTS = st.one_of(st.lists(WORDS, max_size=12).map(" ".join), st.text(max_size=40))


def score(query: str, *documents: str) -> np.ndarray:
    return lexical_scores(token_statistics(query), [token_statistics(document) for document in documents])


def ids_of(text: str) -> list[int]:
    return np.frombuffer(token_statistics(text).ids, dtype=np.uint32).tolist()


def slow_z(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / spread if spread > 1e-9 else 0.0 for value in values]


def slow_scores(query: str, documents: list[str]) -> list[float]:
    """Compute the same signal with dictionaries and loops, as one would write it on a board."""
    asked, found = ids_of(query)[:512], [ids_of(document) for document in documents]
    n, mean = len(found), max(sum(map(len, found)) / len(found), 1.0)
    idf = {word: math.log(1 + (n - df + 0.5) / (df + 0.5))
           for word in set(asked) for df in [sum(word in document for document in found)]}
    neighbours = set(pairwise(asked))
    bm25, pairs, coverage = [], [], []
    for document in found:
        counts = Counter(document)
        norm = 1.2 * (0.25 + 0.75 * len(document) / mean)
        bm25.append(sum(idf[word] * counts[word] / (counts[word] + norm) for word in asked))
        pairs.append(sum(idf[a] + idf[b] for a, b in pairwise(document) if (a, b) in neighbours))
        coverage.append(sum(idf[word] for word in set(asked) if counts[word]))
    z = slow_z([a + 0.6 * b + 0.3 * c
                for a, b, c in zip(slow_z(bm25), slow_z(pairs), slow_z(coverage), strict=True)])
    weights = [math.exp(2 * value) for value in z]
    entropy = -sum(weight / sum(weights) * math.log(weight / sum(weights)) for weight in weights)
    length = sum(map(len, found)) / n
    return [(1 - entropy / math.log(n)) * length / (length + 30) * value for value in z]


@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=12))
def test_the_fast_scores_are_the_textbook_scores(query: str, documents: list[str]) -> None:
    expected = slow_scores(query, documents)

    assert score(query, *documents).tolist() == pytest.approx(expected, abs=1e-5)


@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_permuted_candidates_get_permuted_scores(query: str, documents: list[str], random) -> None:
    order = list(range(len(documents)))
    random.shuffle(order)

    assert score(query, *[documents[at] for at in order]) == pytest.approx(score(query, *documents)[order], abs=1e-5)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=8))
def test_equal_texts_get_exactly_equal_scores(query: str, documents: list[str]) -> None:
    scores = score(query, *documents, *documents)

    assert scores[:len(documents)].tolist() == scores[len(documents):].tolist()


@given(st.text(), st.lists(st.text(), max_size=6))
def test_any_text_at_all_gives_finite_scores(query: str, documents: list[str]) -> None:
    scores = score(query, *documents)

    assert scores.shape == (len(documents),)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("text", ["\ud800 lone \udfff", "\x00\x01\x7f\u200b", "", " \n", "\U0010ffff", "a\u0301" * 99])
def test_hostile_text_is_read_like_any_other(text: str) -> None:
    assert np.isfinite(score(text, text, "other words", "")).all()


@given(st.text())
def test_composed_and_decomposed_text_have_the_same_tokens(text: str) -> None:
    assert tokens(unicodedata.normalize("NFC", text)) == tokens(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize(("text", "expected"), [
    ("The QUICK brown-fox", ["the", "quick", "brown", "fox"]),
    ("Straße STRASSE", ["strass", "strass"]),
    ("snake_case v2.0 in 1990s", ["snak", "case", "v2", "0", "in", "1990"]),
    ("the company's rates, the companies\u2019 rate", ["the", "company", "rate", "the", "company", "rate"]),
    ("played playing plays", ["play", "play", "play"]),
    ("stopped stopping stops", ["stop", "stop", "stop"]),
    ("calls called falling kiss bus", ["call", "call", "fall", "kiss", "bus"]),
    ("don't l'homme", ["don", "t", "l", "homm"]),
    ("東京都に行く", ["東京", "京都", "都に", "に行", "行く"]),
    ("猫 and 犬", ["猫", "and", "犬"]),
    ("iPhone手机15", ["iphon", "手机", "15"]),
    ("서울특별시", ["서울", "울특", "특별", "별시"]),
    ("カタカナー", ["カタ", "タカ", "カナ", "ナー"]),
    ("हिन्दी में", ["हिन्दी", "में"]),
    ("привет Мир", ["привет", "мир"]),
    ("… — !", []),
])
def test_what_counts_as_a_token(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_an_accent_in_the_text_does_not_change_how_english_is_read() -> None:
    text = "Some Words, don't_they? 12's re-entered RUNNING"

    assert tokens(text + " é")[:-1] == tokens(text)


@pytest.mark.parametrize("unit", [
    "word ", "a", "\u0301\u0323", "東", "a\u0301", "'s", "é\u0301\u0323\u0301 ", "\u093e", "\u00e9ing ", "—", "क\u093e",
])
def test_a_megabyte_is_read_in_linear_time(unit: str) -> None:
    text = (unit * 1_000_000)[:1_000_000]
    started = time.process_time()

    statistics = token_statistics(text)
    assert np.isfinite(lexical_scores(statistics, [statistics, token_statistics("word")])).all()
    # quadratic reading takes minutes; linear reading takes well under a second on an idle machine
    assert time.process_time() - started < 10


def test_ids_are_the_same_in_every_process() -> None:
    code = ("from neuralcache_plugins.core.lexical import token_statistics as read; "
            "print(read('\\xc4pfel und \\u6771\\u4eac').ids.hex())")

    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == token_statistics("Äpfel und 東京").ids.hex()


def test_function_words_are_no_evidence() -> None:
    assert token_statistics("what is the") == TokenStatistics(b"")
    assert score("what is the", "what is the time", "the", "is").tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("query", "documents"), [
    ("", ["some words", "more words"]),
    ("nothing here matches", ["river bank", "quick fox"]),
    ("fox", ["fox", "fox", "fox"]),
    ("fox", ["fox"]),
    ("fox", []),
    ("fox", ["", ""]),
])
def test_silence_is_zeros(query: str, documents: list[str]) -> None:
    assert score(query, *documents).tolist() == [0.0] * len(documents)


def test_more_of_the_words_is_better() -> None:
    scores = score("red fox den", "red fox den tree", "red fox sky tree", "red sun sky tree", "big sun sky tree")

    assert (np.diff(scores) < 0).all()


def test_a_rare_word_beats_a_common_one() -> None:
    scores = score("rare common", "rare one", "common two", "common three", "common four", "common five")

    assert scores.argmax() == 0


def test_words_in_the_order_of_the_question_beat_the_same_words_apart() -> None:
    scores = score("interest rate", "rate of old interest", "interest rate of old", "else one two", "three four five")

    assert scores.argmax() == 1


def test_a_pair_does_not_span_two_documents() -> None:
    split = score("red fox", "tall red", "fox tall", "none here")

    assert split[0] == split[1]


def test_long_candidates_are_trusted_more_than_labels() -> None:
    filler = " ".join(f"word{at}" for at in range(100))
    labels = score("red fox", "red fox", "blue sky", "green sea")
    passages = score("red fox", f"red fox {filler}", f"blue sky {filler}", f"green sea {filler}")

    assert 0 < 5 * labels[0] < passages[0]


def test_one_that_stands_out_is_trusted_more_than_many_alike() -> None:
    others = [f"cloud{at} sky{at}" for at in range(8)]
    alone = score("red fox", "red fox", "grey sea", *others)
    many = score("red fox", *["red fox"] * 5, *others[:5])

    assert alone[0] > 2 * many[0]


def test_ids_that_share_a_bucket_are_told_apart() -> None:
    asked = np.array([4096 * 3 + 7], dtype=np.uint32)
    near = np.array([4096 * 5 + 7], dtype=np.uint32)
    query, same, other = (TokenStatistics(ids.tobytes()) for ids in (asked, asked, near))

    scores = lexical_scores(query, [other, same, other])
    assert scores.argmax() == 1
    assert scores[0] == scores[2] < 0


def test_only_the_first_512_words_of_a_question_count() -> None:
    scores = score(" ".join(f"word{at}" for at in range(513)), "word511 here", "word512 here", "unrelated here")

    assert scores[0] > scores[1] == scores[2]


def test_scoring_changes_nothing_and_repeats_itself() -> None:
    query, documents = token_statistics("red fox"), [token_statistics("red fox"), token_statistics("a fox den")]
    before = (query, list(documents))

    first, second = lexical_scores(query, documents), lexical_scores(query, documents)
    assert first.tolist() == second.tolist()
    assert (query, documents) == before
