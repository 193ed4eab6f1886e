"""``evaluate``: it agrees with ir_measures, takes every kind of reranker, and says how sure it is."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from neuralcache_plugins import MissingExtraError, Reranker
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation import Evaluation, JudgedSet, Run, by_score, evaluate
from neuralcache_plugins.evaluation.uncertainty import Bootstrap, holm, randomisation_p
from neuralcache_plugins.langchain import NeuralCacheCompressor
from neuralcache_plugins.llamaindex import NeuralCachePostprocessor
from neuralcache_plugins.testing import HashingEncoder

TOPICS = ("password", "transfer", "card", "branch", "loan", "savings", "phone", "address")


@pytest.fixture(scope="module")
def judged() -> JudgedSet:
    """Sixteen documents about eight topics, two right ones for each question, one of them better."""
    rng = np.random.default_rng(0)
    fill = ["the", "of", "and", "about", "with", "page", "help", "account", "please", "form"]
    texts = [f"{' '.join(rng.choice(fill, 6))} {topic} {kind}" for topic in TOPICS for kind in ("reset", "cost")]
    ids = [f"{topic}-{kind}" for topic in TOPICS for kind in ("reset", "cost")]
    return JudgedSet(
        name="toy", ids=tuple(ids), texts=tuple(texts), query_ids=tuple(f"q{at}" for at in range(8)),
        queries=tuple(f"what does {topic} cost" for topic in TOPICS),
        qrels={f"q{at}": {f"{topic}-cost": 2, f"{topic}-reset": 1} for at, topic in enumerate(TOPICS)},
    )


@pytest.fixture(scope="module")
def run(judged: JudgedSet) -> Run:
    """Return what a bad retriever finds: the right ones are somewhere in the list."""
    rng = np.random.default_rng(1)
    return Run("bad", {
        query_id: dict(zip(rng.permutation(judged.ids).tolist(), np.linspace(1, 0, 16).tolist(), strict=True))
        for query_id in judged.query_ids
    })


@pytest.fixture
def ours() -> Iterator[Reranker]:
    with Reranker(HashingEncoder(), store="memory://") as reranker:
        yield reranker


def backwards(query: str, texts: Sequence[str]) -> list[int]:
    return list(range(len(texts)))[::-1]


class Longest(BaseDocumentCompressor):
    """A compressor of somebody else's: the three longest texts, as new documents without metadata."""

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> list[Document]:
        best = sorted(documents, key=lambda document: -len(document.page_content))[:3]
        return [Document(id=document.id, page_content=document.page_content) for document in best]


class Lowest(BaseNodePostprocessor):
    """A postprocessor of somebody else's: what the retriever liked least comes first."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
                           ) -> list[NodeWithScore]:
        assert query_bundle is not None
        return sorted(nodes, key=lambda node: node.score or 0.0)


def test_the_figures_are_those_of_ir_measures(judged: JudgedSet, run: Run) -> None:
    """Every metric of every question equals what ir_measures says of the same run."""
    names = ("nDCG@10", "RR@10", "R@10", "P@1", "AP")

    found = evaluate(judged, {"backwards": backwards}, metrics=names, first_stage=run, candidates=16)

    turned = {query_id: {name: -score for name, score in one.items()} for query_id, one in run.scores.items()}
    for score, scored in ((found["input order"], run.scores), (found["backwards"], turned)):
        direct = {(str(one.measure), one.query_id): one.value for one in ir_measures.iter_calc(
            [ir_measures.parse_measure(name) for name in names], judged.qrels, scored)}
        ours = {(name, query_id): value for name in names
                for query_id, value in zip(found.query_ids, score.per_query[name], strict=True)}
        assert ours == pytest.approx(direct)
        assert score.means["nDCG@10"].value == pytest.approx(score.per_query["nDCG@10"].mean())


def test_gains_are_paired_and_corrected_over_everything(judged: JudgedSet, run: Run, ours: Reranker) -> None:
    things = {"ours": ours, "backwards": backwards}

    found = evaluate(judged, things, metrics=("nDCG@10", "P@1"), first_stage=run, seed=3)

    raw = []
    for name in ("ours", "backwards"):
        for metric in ("nDCG@10", "P@1"):
            difference = found[name].per_query[metric] - found["input order"].per_query[metric]
            one = found[name].gains[metric]
            assert one.gain == Bootstrap(seed=3).mean(difference)
            assert one.p == randomisation_p(difference, seed=3)
            raw.append(one.p)
    corrected = [found[name].gains[metric].p_holm for name in ("ours", "backwards") for metric in ("nDCG@10", "P@1")]
    assert corrected == holm(raw)
    assert found["input order"].gains == {}
    assert found["ours"].gains["nDCG@10"].gain.above_zero


def test_real_compressors_and_postprocessors(judged: JudgedSet, run: Run, ours: Reranker) -> None:
    """Our adapters give the core's own order; others are taken as they are, and may leave documents out."""
    things = {
        "core": ours,
        "langchain": NeuralCacheCompressor.from_reranker(ours, top_n=None),
        "llamaindex": NeuralCachePostprocessor.from_reranker(ours, top_n=None),
        "longest": Longest(), "lowest": Lowest(), "backwards": backwards,
    }

    found = evaluate(judged, things, first_stage=run, candidates=16)

    orders = {score.name: {query: list(one) for query, one in score.run.scores.items()} for score in found.scores}
    assert orders["core"] == orders["langchain"] == orders["llamaindex"]
    assert orders["lowest"] == orders["backwards"]
    assert {len(order) for order in orders["longest"].values()} == {3}
    assert found["longest"].means["R@10"].value < found["core"].means["R@10"].value


def test_a_list_is_named_after_its_things(judged: JudgedSet, run: Run, ours: Reranker) -> None:
    found = evaluate(judged, [None, ours, backwards, Longest()], first_stage=run)

    assert [score.name for score in found.scores] == ["input order", "Reranker", "backwards", "Longest"]


def test_a_scorer_becomes_a_reranker(judged: JudgedSet, run: Run) -> None:
    shortest = by_score(lambda query, texts: [-float(len(text)) for text in texts])

    found = evaluate(judged, {"shortest": shortest}, first_stage=run, candidates=16)

    text_of = dict(zip(judged.ids, judged.texts, strict=True))
    lengths = [len(text_of[name]) for name in found["shortest"].run.scores["q0"]]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (3, r"^x must be a Reranker, a LangChain compressor, .* or None for the input order; got 3$"),
        (Longest, r"^x must be a Reranker, a LangChain compressor"),
        (lambda query, texts: [0, 0], r"^x must return each position in 0\.\.15 at most once, got \[0, 0\] for 'what"),
        (lambda query, texts: [99], r"^x must return each position in 0\.\.15 at most once, got \[99\]"),
        (lambda query, texts: ["a"], r"^x must return positions of documents that it was given: "),
    ],
    ids=["number", "class", "twice", "outside", "names"],
)
def test_what_is_no_reranker_is_named(judged: JudgedSet, run: Run, thing: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate(judged, {"x": thing}, first_stage=run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["nDCG@10", "nope"]}, r"^'nope' is no metric of ir-measures \(such as nDCG@10\): "),
        ({"metrics": []}, r"^metrics must name at least one$"),
        ({"candidates": 0}, r"^candidates must be at least 1, got 0$"),
        ({"first_stage": Run("odd", {"q0": {"unknown": 1.0}})},
         r"^the run 'odd' names documents that are not in the corpus of 'toy': \['unknown'\]$"),
    ],
    ids=["metric", "no metric", "no candidates", "foreign run"],
)
def test_what_cannot_be_evaluated_is_refused(
    judged: JudgedSet, run: Run, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate(judged, {"backwards": backwards}, **{"first_stage": run, **options})


def test_two_things_of_one_name_need_a_mapping(judged: JudgedSet, run: Run) -> None:
    with pytest.raises(InvalidInputError, match=r"^two rerankers are called 'backwards': pass a mapping"):
        evaluate(judged, [backwards, backwards], first_stage=run)


def test_a_question_for_which_nothing_was_found_scores_nothing(judged: JudgedSet, run: Run) -> None:
    found = evaluate(judged, {"backwards": backwards}, first_stage=Run("half", {"q0": run.scores["q0"]}))

    assert len(found.query_ids) == 8
    assert (found["input order"].per_query["R@10"] > 0).sum() <= 1


def test_cpu_time_comes_from_the_clock(judged: JudgedSet, run: Run) -> None:
    """Each reading is 2 ms after the one before, so each question takes 2 ms."""
    readings = iter(range(10_000))

    found = evaluate(judged, {"backwards": backwards}, first_stage=run, clock=lambda: 0.002 * next(readings))

    assert found["backwards"].cpu_median_ms == pytest.approx(2.0)
    assert found["backwards"].cpu_p95_ms == pytest.approx(2.0)
    assert found["input order"].cpu_median_ms == 0.0


def test_progress_counts_to_its_end(judged: JudgedSet, ours: Reranker) -> None:
    steps: list[tuple[int, int]] = []

    evaluate(judged, {"ours": ours}, progress=lambda done, total: steps.append((done, total)))

    assert steps == [(at, 24) for at in range(1, 25)]


@pytest.fixture(scope="module")
def found(judged: JudgedSet, run: Run) -> Evaluation:
    return evaluate(judged, {"<backwards>": backwards}, first_stage=run)


def test_what_people_see(found: Evaluation) -> None:
    page = found._repr_html_()
    figure = found.plot()

    assert "&lt;backwards&gt;" in page and "<backwards>" not in page
    assert found.table().header == ("metric", "reranker", "mean", "gain", "p (Holm)", "CPU ms", "p95 ms")
    assert [panel.get_xlabel() for panel in figure.axes] == [
        "mean nDCG@10 (0 to 1)", "mean RR@10 (0 to 1)", "mean R@10 (0 to 1)"]


def test_what_programs_read(found: Evaluation, tmp_path: Path) -> None:
    found.to_json(tmp_path / "all.json")
    found.to_csv(tmp_path / "means.csv")
    found.to_csv(tmp_path / "each.csv", per_query=True)

    everything = json.loads((tmp_path / "all.json").read_text())
    with (tmp_path / "means.csv").open() as file:
        means = list(csv.DictReader(file))
    with (tmp_path / "each.csv").open() as file:
        each = list(csv.DictReader(file))
    assert everything["rerankers"][0]["metrics"]["RR@10"]["value"] == float(means[1]["mean"])
    assert len(everything["per_query"]["input order"]["R@10"]) == 8
    assert len(means) == 2 * 3
    assert len(each) == 2 * 3 * 8
    assert means[0]["gain"] == "" and means[3]["gain"] != ""


@pytest.mark.parametrize("package", ["ir_measures", "matplotlib"])
def test_a_missing_extra_says_what_to_install(
    judged: JudgedSet, run: Run, found: Evaluation, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtraError, match=r"not installed; run: pip install 'neuralcache-plugins\[eval\]'$"):
        if package == "ir_measures":
            evaluate(judged, {"backwards": backwards}, first_stage=run)
        else:
            found.plot()
