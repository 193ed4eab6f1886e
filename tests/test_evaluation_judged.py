"""Judged sets, runs and the first stage: what is read, what is written, what is refused."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.core.lexical import tokens
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation import JudgedSet, Run, dense_run, lexical_run, vector_run
from neuralcache_plugins.evaluation.retrieval import Bm25
from neuralcache_plugins.testing import HashingEncoder

CORPUS = [
    {"_id": "reset", "title": "Passwords", "text": "Reset the password on the login page"},
    {"_id": "fees", "title": "", "text": "Fees for transfers abroad"},
    {"_id": "card", "title": "A lost card", "text": "A lost card is blocked by phone"},
]
QUERIES = [
    {"_id": "q1", "text": "how to reset a password"}, {"_id": "q2", "text": "transfer fees", "spoken": "the fees um"},
    {"_id": "q3", "text": "unjudged"},
]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_bytes(lines(CORPUS))
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(lines(QUERIES)))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\treset\t2\nq2\tfees\t1\nq3\tcard\t0\n")
    return tmp_path


@pytest.fixture
def judged(beir: Path) -> JudgedSet:
    return JudgedSet.load(beir)


def test_a_beir_folder(judged: JudgedSet) -> None:
    """A title goes before a text that does not begin with it; a question without a right document is left out."""
    assert judged.ids == ("reset", "fees", "card")
    assert judged.texts[0] == "Passwords\nReset the password on the login page"
    assert judged.texts[2] == "A lost card is blocked by phone"
    assert judged.query_ids == ("q1", "q2")
    assert judged.qrels == {"q1": {"reset": 2}, "q2": {"fees": 1}}
    assert len(judged) == 2


def test_the_other_layout_and_another_field(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").rename(beir / "qrels.tsv")
    rows = [{("id" if key == "_id" else key): value for key, value in row.items()} for row in CORPUS]
    (beir / "corpus.jsonl").write_bytes(lines(rows))

    judged = JudgedSet.load(beir, query_field="spoken")

    assert judged.queries == ("the fees um",)


def test_trec_qrels(beir: Path) -> None:
    (beir / "judged.txt").write_text("q1 0 reset 1\nq2 0 card 1\n")

    assert JudgedSet.load(beir, qrels=beir / "judged.txt").qrels == {"q1": {"reset": 1}, "q2": {"card": 1}}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("qrels/test.tsv", "q1\treset\t1\nq1\tfees\tyes\n", r"test\.tsv:2 ends in 'yes', expected a grade$"),
        ("qrels/test.tsv", "q1 reset\n", r"test\.tsv:1 must have 3 or 4 columns, got 2$"),
        ("qrels/test.tsv", "q1\treset\t0\n", r"no question has a judgement above 0$"),
        ("corpus.jsonl", "{}\n", r"corpus\.jsonl:1 must be an object with _id or id$"),
        ("corpus.jsonl", "nope\n", r"corpus\.jsonl:1 is not JSON: "),
        ("corpus.jsonl", lines([CORPUS[0], CORPUS[0]]).decode(), r"document ids must differ, 1 repeat$"),
        ("queries.jsonl.gz", "not gzip", r"queries\.jsonl\.gz cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(beir: Path, file: str, content: str, message: str) -> None:
    (beir / file).write_text(content)

    with pytest.raises(InvalidInputError, match=message):
        JudgedSet.load(beir)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"has no qrels/dev\.tsv\[\.gz\] or qrels\.tsv\[\.gz\]; a judged set"):
        JudgedSet.load(tmp_path, split="dev")


names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=6)
found = st.dictionaries(names, st.floats(-9, 9), min_size=1, max_size=4)
scores = st.dictionaries(names, found, min_size=1, max_size=3)


@pytest.mark.parametrize("file", ["run.trec", "run.trec.gz", "run.json", "run.json.gz"])
@given(scores=scores)
def test_a_run_survives_being_written(file: str, scores: dict[str, dict[str, float]],
                                      tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("runs") / file
    Run("mine", scores).save(place)

    back = Run.load(place)

    assert back.name == "run"
    assert {query: dict(found) for query, found in back.scores.items()} == scores
    for query in scores:
        assert back.best(query, 3) == Run("mine", scores).best(query, 3)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.trec", "q1 Q0 d1 1 0.5\n", r":1 must have the 6 columns of a TREC run, got 5$"),
        ("run.trec", "q1 Q0 d1 first 0.5 tag\n", r":1 has no rank or score: "),
        ("run.json", "[1]", r"is not a run: expected \{question: \{document: score\}\}"),
        ("run.json", '{"q1": 3}', r"is not a run: "),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)

    with pytest.raises(InvalidInputError, match=message):
        Run.load(tmp_path / file)


def slow_bm25(texts: list[str], query: str, k1: float = 1.2, b: float = 0.75) -> list[float]:
    """Return BM25 of each text, term by term, over the words that the lexical core keeps."""
    from neuralcache_plugins.core.lexical import token_statistics

    def kept(text: str) -> list[str]:
        return [word for word in tokens(text) if token_statistics(word).length]

    bags = [Counter(kept(text)) for text in texts]
    mean = max(1.0, sum(sum(bag.values()) for bag in bags) / len(bags))
    found = []
    for bag in bags:
        damping = k1 * (1 - b + b * sum(bag.values()) / mean)
        total = 0.0
        for word in kept(query):
            having = sum(word in other for other in bags)
            total += math.log1p((len(bags) - having + 0.5) / (having + 0.5)) * bag[word] / (bag[word] + damping)
        found.append(total)
    return found


vocabulary = ["reset", "password", "login", "fee", "transfer", "card", "lost", "phone"]
words = st.lists(st.sampled_from(vocabulary), max_size=8).map(" ".join)


@given(st.lists(words, min_size=1, max_size=6), words)
def test_bm25_is_the_formula(texts: list[str], query: str) -> None:
    np.testing.assert_allclose(Bm25(texts).scores(query), slow_bm25(texts, query), atol=1e-12)


def test_the_first_stages(judged: JudgedSet) -> None:
    steps: list[tuple[int, int]] = []

    by_words = lexical_run(judged, candidates=2, progress=lambda done, total: steps.append((done, total)))
    by_vectors = dense_run(judged, HashingEncoder(), candidates=3)

    assert [by_words.best(query_id, 1)[0][0] for query_id in judged.query_ids] == ["reset", "fees"]
    assert len(by_words.scores["q1"]) == 2
    assert steps == [(1, 2), (2, 2)]
    assert by_vectors.best("q2", 1)[0][0] == "fees"


def test_vectors_at_hand(judged: JudgedSet) -> None:
    rows = np.eye(3)[:, :3]

    run = vector_run(judged, document_vectors=rows, query_vectors=rows[[2, 1]], candidates=1)

    assert run.scores == {"q1": {"card": 1.0}, "q2": {"fees": 1.0}}
