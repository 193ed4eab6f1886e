"""Feedback from answers: which of the shown documents an answer used, on data where that is known.

    python benchmarks/feedback.py --data PATH

prints what must be reached and what was. ``--rows`` chooses parts: squad, absent (answers from documents that were not
shown), mtrag, scifact, abstention; ``stream``, where the only feedback is what a templated answer used; ``overhead``,
what the handlers cost on the way of an answer.
``--fit`` fits the weights of ``neuralcache_plugins.attribution`` anew on the design halves (see ``feedback_sets.py``).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import feedback_sets as sets
import numpy as np
from feedback_sets import Told
from learning import SHOWN, Player, cold_order
from learning_sets import banking

from neuralcache_plugins import Reranker
from neuralcache_plugins.attribution import attribute, likeness_by
from neuralcache_plugins.attribution.evidence import MEANING, WORDS, features, sentences, weighed
from neuralcache_plugins.contracts import Attribution, FeedbackGiven, Matrix, RankingServed
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.telemetry import storable_feedback

MEANINGS = ("words", "words and meaning")


def attributed(told: Sequence[Told], *, meaning: bool) -> list[Attribution]:
    encode = likeness_by(LocalEncoder()) if meaning else None
    return [attribute(one.answer, one.ids, one.texts, query=one.query, encode=encode) for one in told]


def chances(found: Attribution, told: Told) -> np.ndarray:
    return np.array([found.probabilities[name] for name in told.ids])


def auc(used: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of pairs (used, not used) in the right order; ties count half."""
    yes, no = scores[used], scores[~used]
    return float((yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean())


def over_all(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    return auc(np.concatenate([one.used for one in told]), np.concatenate(scores))


def within(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    both = [(one.used, own) for one, own in zip(told, scores, strict=True) if 0 < one.used.sum() < len(one.used)]
    return float(np.mean([auc(*pair) for pair in both]))


def top_right(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    return float(np.mean([one.used[own.argmax()] for one, own in zip(told, scores, strict=True) if one.used.any()]))


def calibration_error(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    """Return the expected calibration error in ten bins of equal width."""
    used, given = np.concatenate([one.used for one in told]), np.concatenate(scores)
    bins = np.minimum((given * 10).astype(int), 9)
    return float(sum(abs(used[bins == at].mean() - given[bins == at].mean()) * (bins == at).mean() for at in set(bins)))


def rewarded(told: Sequence[Told], found: Sequence[Attribution]) -> tuple[float, float]:
    """Return how many rewarded documents were used, and how many used ones are rewarded."""
    given = [np.array([name in own.rewards for name in one.ids]) for one, own in zip(told, found, strict=True)]
    hits, used = np.concatenate(given), np.concatenate([one.used for one in told])
    return (float(used[hits].mean()) if hits.any() else math.nan, float(hits[used].mean()) if used.any() else math.nan)


def plain(told: Sequence[Told]) -> list[np.ndarray]:
    """Return containment of the answer's words plus cosine of whole texts, both standardised: the baseline."""
    from neuralcache_plugins.core.lexical import tokens

    encode = likeness_by(LocalEncoder())
    both = []
    for one in told:
        words = tokens(one.answer)
        rows = encode([one.answer, *one.texts])
        both.append([(np.mean([word in own for word in words]) if words else 0.0, cosine) for own, cosine in zip(
            [set(tokens(text)) for text in one.texts], rows[1:] @ rows[0], strict=True)])
    table = np.array([pair for own in both for pair in own])
    z = ((table - table.mean(axis=0)) / table.std(axis=0)).sum(axis=1)
    return np.split(z, np.cumsum([len(own) for own in both])[:-1])


# the rows


def report(name: str, told: Sequence[Told], *, goal: str = "") -> None:
    print(f"{name} ({len(told)} answers, {sum(len(one.ids) for one in told)} documents){goal and ': must be '}{goal}")
    halves = {"design half": [one for one in told if one.design], "held out": [one for one in told if not one.design],
              "all": told}
    for meaning, label in enumerate(MEANINGS):
        for half, own in halves.items():
            found = attributed(own, meaning=bool(meaning))
            scores = [chances(*pair) for pair in zip(found, own, strict=True)]
            precision, recall = rewarded(own, found)
            print(f"  {label:18} {half:12} top {top_right(own, scores):.3f}  AUC over all {over_all(own, scores):.3f}, "
                  f"within a question {within(own, scores):.3f}  "
                  f"calibration error {calibration_error(own, scores):.3f}  "
                  f"rewarded: {precision:.3f} were used, of the used {recall:.3f}", flush=True)


def row_squad(data: Path) -> None:
    report("squad, a sentence of the passage", sets.squad(data), goal="top >= 0.97")
    report("squad, the answer alone in a template", sets.squad_short(data))
    report("squad, documents of two to eight words", sets.squad_snippets(data))


def row_absent(data: Path) -> None:
    """Answers that are from none of the documents shown, which are about the same: whatever is rewarded is wrong."""
    for half, design in (("design half", True), ("held out", False)):
        told = [one for one in sets.squad_absent(data) if one.design == design]
        for meaning, label in enumerate(MEANINGS):
            found = attributed(told, meaning=bool(meaning))
            share = np.mean([bool(own.rewards) for own in found])
            print(f"squad, the passage not shown, {half}, {label}: {share:.3f} of {len(told)} answers reward something",
                  flush=True)


def row_mtrag(data: Path) -> None:
    for name, goal in (("mtrag-clapnq", "AUC >= 0.94"), ("mtrag-fiqa", "AUC >= 0.92")):
        told = sets.mtrag(data, name)
        report(name, told, goal=goal)
        for label, half in (("held out", [one for one in told if not one.design]), ("all", told)):
            base = plain(half)
            print(f"  containment + cosine, {label:12}      AUC over all {over_all(half, base):.3f}, within a question "
                  f"{within(half, base):.3f}")


def row_scifact(data: Path) -> None:
    report("scifact, claims (nothing was fitted on it)", sets.scifact(data))


def row_abstention(data: Path) -> None:
    told = sets.squad_refused(data)
    found = attributed(told, meaning=True)
    print(f"abstention: {np.mean([not own.rewards for own in found]):.4f} of {len(told)} unanswered questions give no "
          "positive feedback: must be >= 0.99")
    answered = [one for one in sets.squad(data) if not one.design]
    print(f"  taken for a refusal: {np.mean([own.abstained for own in attributed(answered, meaning=False)]):.4f} of "
          f"{len(answered)} answers of squad, held out")


# a stream whose only feedback is what the answers used


ANSWERS = (
    "For that, please have a look at our page on {}.", "This is about {}. I hope this helps!",
    "You will find everything you need under \"{}\" in the help section of the app.", "Topic: {}",
    "Thanks for asking! Our article {} explains step by step what to do next.",
)


class Rewarded(Player):
    """A player that is told rewards, not only which documents helped."""

    def reward(self, served: RankingServed, rewards: Mapping[str, float], source: str) -> None:
        rows = self.rows.pop(served.ranking_id)
        mean = np.sum([rows[served.document_ids.index(name)] * value for name, value in rewards.items()], axis=0)
        self.fold(storable_feedback(FeedbackGiven(
            feedback_id=f"f{served.ranking_id}", ranking_id=served.ranking_id, namespace="default", at=served.at + 0.5,
            source=source, rewards=tuple(rewards.items()), ranking=served,
            document_vector=(mean / np.linalg.norm(mean)).astype(np.float32),
        ), served))


def play(data: Path, encoder: str, seed: int, *, explicit: bool, limit: int | None) -> dict[str, float]:
    """banking77 once through: the right article is rewarded when shown, or an answer made from it is observed."""
    stream, player, rng = banking(data, encoder), Rewarded(), np.random.default_rng(seed)
    order = rng.permutation(len(stream.cases))[:limit].tolist()
    encode = likeness_by(LocalEncoder())
    first, cold, right, told = [], [], 0, 0
    for step, index in enumerate(order):
        case, wanted = stream.cases[index], stream.ids[stream.right[index]]
        served = player.ask(case, shown=SHOWN)
        first.append(served.document_ids[0] == wanted)
        cold.append(case.ids[cold_order(case)[0]] == wanted)
        shown = wanted in served.document_ids
        if explicit:
            rewards = {wanted: 1.0} if shown else {}
        else:
            texts = [case.texts[case.ids.index(name)] for name in served.document_ids]
            answer = (ANSWERS[step % len(ANSWERS)].format(texts[served.document_ids.index(wanted)]) if shown
                      else sets.REFUSALS[step % len(sets.REFUSALS)])
            rewards = attribute(answer, served.document_ids, texts, query=case.query, encode=encode).rewards
        if rewards:
            player.reward(served, rewards, "user" if explicit else "context_use")
        told += len(rewards)
        right += wanted in rewards
    last = min(2000, len(order) // 2)
    return {"last": float(np.mean(first[-last:])), "cold": float(np.mean(cold[-last:])), "all": float(np.mean(first)),
            "precision": right / max(1, told), "recall": right / max(1, sum(
                stream.ids[stream.right[index]] is not None for index in order))}


def row_stream(data: Path) -> None:
    for encoder in ("local", "minilm"):
        shares = []
        for seed in SEEDS:
            by_user, by_use = (play(data, encoder, seed, explicit=each, limit=LIMIT) for each in (True, False))
            shares.append((by_use["last"] - by_use["cold"]) / (by_user["last"] - by_user["cold"]))
            print(f"stream, {encoder}, seed {seed}: right article first in the last 2,000: cold {by_user['cold']:.3f}"
                  f", explicit feedback {by_user['last']:.3f}, context use {by_use['last']:.3f}, {shares[-1]:.1%} of "
                  f"the gain; of the rewarded documents {by_use['precision']:.3f} were right", flush=True)
        print(f"stream, {encoder}: {statistics.median(shares):.1%} of the gain (median): must be >= 95 %")


SEEDS = (0, 1, 2)
LIMIT: int | None = None


# what it costs on the way of an answer


def row_overhead(data: Path) -> None:
    """Chains and query engines with fake models, 10 passages of squad shown: with the handlers over without."""
    told = sets.squad(data)[:200]
    overhead_langchain(told)
    overhead_llamaindex(told)
    with Reranker(LocalEncoder(), store="memory://") as reranker:
        rankings = [reranker.rerank(one.query, one.texts, ids=one.ids) for one in told]
        times = [timed(lambda pair=pair: reranker.observe_answer(pair[0], pair[1].answer))
                 for pair in zip(rankings, told, strict=True)]
    print(f"observe_answer itself, in the thread: {statistics.median(times) * 1e3:.1f} ms for ten passages")


def timed(work: Callable[[], object]) -> float:
    """Return the CPU seconds that ``work`` takes in this thread."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def compared(name: str, plain_call: Callable[[Told], object], watched_call: Callable[[Told], object],
             settle: Callable[[], object], told: Sequence[Told]) -> None:
    """Print medians of both, taken in turns: CPU time of the calling thread; the other thread works beside it."""
    without, watched = [], []
    for one in told:  # encodes what is encoded once
        plain_call(one)
        watched_call(one)
        settle()
    for turn, one in enumerate(told):
        for call, times in ((plain_call, without), (watched_call, watched))[:: 1 if turn % 2 else -1]:
            times.append(timed(lambda call=call, one=one: call(one)))
            settle()
    more = statistics.median(watched) - statistics.median(without)
    print(f"overhead, {name}: {statistics.median(without) * 1e3:.2f} ms without, {more * 1e3:+.3f} ms with the handler"
          ": must be < 1 ms", flush=True)


def overhead_langchain(told: Sequence[Told]) -> None:
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.documents import Document
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    from neuralcache_plugins.langchain import NeuralCacheCallbackHandler, NeuralCacheCompressor

    found = {one.query: [Document(page_content=text, id=name) for name, text in zip(one.ids, one.texts, strict=True)]
             for one in told}
    answers = {one.query: one.answer for one in told}
    with Reranker(LocalEncoder(), store="memory://") as reranker:
        compressor = NeuralCacheCompressor.from_reranker(reranker, top_n=None)
        retrieve = RunnableLambda(lambda query: compressor.compress_documents(found[query], query))
        prompt = ChatPromptTemplate.from_template("{context} {question}")

        def ask(one: Told, callbacks: list) -> object:
            chain = ({"context": retrieve, "question": RunnablePassthrough()} | prompt
                     | FakeListChatModel(responses=[answers[one.query]]) | StrOutputParser())
            return chain.invoke(one.query, config={"callbacks": callbacks})

        handler = NeuralCacheCallbackHandler(compressor)
        for name, others in (("LangChain, nobody else listening", []),
                             ("LangChain, beside another handler", [BaseCallbackHandler()])):
            compared(name, lambda one, others=others: ask(one, others),
                     lambda one, others=others: ask(one, [*others, handler]), handler.flush, told)
        handler.close()


def overhead_llamaindex(told: Sequence[Told]) -> None:
    from llama_index.core import get_response_synthesizer
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    from neuralcache_plugins.llamaindex import NeuralCacheInstrumentor, NeuralCachePostprocessor

    class Found(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return nodes[query_bundle.query_str]

    nodes = {one.query: [NodeWithScore(node=TextNode(id_=name, text=text), score=1.0)
                         for name, text in zip(one.ids, one.texts, strict=True)] for one in told}
    with Reranker(LocalEncoder(), store="memory://") as reranker:
        postprocessor = NeuralCachePostprocessor.from_reranker(reranker, top_n=None)
        engine = RetrieverQueryEngine(
            Found(), response_synthesizer=get_response_synthesizer(llm=MockLLM(max_tokens=32)),
            node_postprocessors=[postprocessor])
        instrumentor = NeuralCacheInstrumentor(postprocessor)

        def plain_call(one: Told) -> object:
            instrumentor.uninstrument()
            return engine.query(one.query)

        def watched(one: Told) -> object:
            instrumentor.instrument()
            return engine.query(one.query)

        compared("LlamaIndex query engine", plain_call, watched, instrumentor.flush, told)
        instrumentor.close()


# fitting


DESIGN = ("mtrag-clapnq", "mtrag-fiqa", "mtrag-clapnq", "mtrag-fiqa", "squad", "squad short", "squad absent",
          "squad snippets")
"""The sets of equal weight that the weights are fitted on; mtrag counts twice, because it is closest to real use."""


def fit(data: Path) -> None:
    told = {
        "mtrag-clapnq": sets.mtrag(data, "mtrag-clapnq"), "mtrag-fiqa": sets.mtrag(data, "mtrag-fiqa"),
        "squad": sets.squad(data), "squad short": sets.squad_short(data), "squad absent": sets.squad_absent(data),
        "squad snippets": sets.squad_snippets(data),
    }
    encode = likeness_by(LocalEncoder())
    tables = {name: [_table(one, encode) for one in own if one.design] for name, own in told.items()}
    for label, columns in (("BY_WORDS", WORDS), ("BY_WORDS_AND_MEANING", (*WORDS, *MEANING))):
        used = [*range(len(columns)), -1]
        constant, weights = logistic([[own[:, used] for own in tables[name]] for name in DESIGN])
        named = ", ".join(f"{name} {value:.2f}" for name, value in zip(columns, weights, strict=True))
        print(f"{label}: constant {constant:.2f}, {named}")


def _table(one: Told, encode: Callable[[list[str]], Matrix]) -> np.ndarray:
    evidence = features(sentences(one.answer), one.texts, query=one.query, encode=encode)
    return np.column_stack([weighed(evidence), one.used])


def logistic(sets: Sequence[Sequence[np.ndarray]], *, penalty: float = 0.02, steps: int = 20_000,
             ) -> tuple[float, np.ndarray]:
    """Return constant and weights >= 0 of least logistic loss, with a quadratic penalty on standardised weights.

    Half of the loss is about documents (was it used?), half about pairs of one question (which of the two was?). Every
    set of tables, one a question with the label in the last column, has the same share. Projected gradient.
    """
    rows = [np.concatenate(tables) for tables in sets]
    pairs = [np.concatenate([_pairs(table) for table in tables]) for tables in sets]
    mean, deviation = (np.concatenate(rows)[:, :-1].mean(axis=0), np.concatenate(rows)[:, :-1].std(axis=0))
    x = np.concatenate([(own[:, :-1] - mean) / deviation for own in rows] + [own / deviation for own in pairs])
    y = np.concatenate([*(own[:, -1] for own in rows), *(np.ones(len(own)) for own in pairs)])
    share = np.concatenate([np.full(len(own), 0.5 / (len(own) * len(sets))) for own in [*rows, *pairs] if len(own)])
    counts = np.concatenate([np.ones(sum(map(len, rows))), np.zeros(sum(map(len, pairs)))])
    constant, weights = 0.0, np.zeros(x.shape[1])
    for _ in range(steps):
        off = share * (1 / (1 + np.exp(-(constant * counts + x @ weights))) - y)
        constant -= (off * counts).sum()
        weights = np.maximum(0.0, weights - (x.T @ off + 2 * penalty * weights))
    return float(constant - (weights / deviation) @ mean), weights / deviation


def _pairs(table: np.ndarray) -> np.ndarray:
    """Return the differences of features between used and unused documents of one question."""
    used = table[:, -1] == 1
    features = table[:, :-1]
    return (features[used][:, None] - features[~used]).reshape(-1, features.shape[1])


ROWS: dict[str, Callable[[Path], None]] = {
    "squad": row_squad, "absent": row_absent, "mtrag": row_mtrag, "scifact": row_scifact, "abstention": row_abstention,
    "stream": row_stream, "overhead": row_overhead,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--rows", default=",".join(ROWS), help="which to print, separated by commas")
    parser.add_argument("--fit", action="store_true", help="only fit the weights anew")
    chosen = parser.parse_args()
    if unknown := set(chosen.rows.split(",")) - set(ROWS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if chosen.fit:
        fit(chosen.data)
        return 0
    for name in chosen.rows.split(","):
        ROWS[name](chosen.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
