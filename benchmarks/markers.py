"""Markers in what people write next: precision and recall on labelled turns, false markers on others, bounded work.

    python benchmarks/markers.py [--data PATH] [--errors]

``markers_turns.jsonl`` holds short turns of users in English, German and Spanish, written for this purpose from
templates and labelled positive, negative or neutral (what gives no feedback: questions, requests to explain, changes
of topic, words of praise and blame that are about something else). Half of the templates, by a hash, were there to
write the catalogue with; the other half was held out. A turn counts as positive or negative when feedback would be
given. One hand wrote turns and catalogue, so expect less of what others write. The held-out half was looked at once
(precision and recall: positive 1.000 and .977, negative .983 and .978); the eight turns judged wrongly then led to five
repairs, so what is printed for it now is no longer held out.

``--data`` adds what real people wrote: mtrag-clapnq and mtrag-fiqa, conversations whose users look things up (every
turn after the first; those who do thank, correct or ask again, as far as a marker found them, were read by hand and are
in ``GENUINE``), questions of banking77 and squad as second turns, and nlupp-banking, whose own labels tell who
thanks, who asks for a person, and who does nothing of the kind. False markers found there led to repairs as well.
It also counts how often a change of topic is found by words and vectors, in mtrag's conversations as they went on and
where another one begins instead (the threshold was chosen on the half of the conversations called design), and learns
from markers alone, on a stream of banking77 (about seven minutes).
``--errors`` shows the turns of the design half that are judged wrongly.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from feedback import ANSWERS
from feedback_sets import design
from learning import Player, cold_order
from learning_sets import Banking, banking

from neuralcache_plugins.attribution import attribute, likeness_by
from neuralcache_plugins.contracts import FeedbackGiven
from neuralcache_plugins.conversation import ConversationMonitor
from neuralcache_plugins.conversation.detecting import STRONG
from neuralcache_plugins.core.credit import shared
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.telemetry import storable_feedback

TURNS = Path(__file__).with_name("markers_turns.jsonl")
STREAM, SEEDS = 3_000, 3
GENUINE = {
    "mtrag-clapnq": (
        "No, I meant photos in the air.", "no, I meant which TV series was the best in history?",
        "That was not my question.", "I meant c. tschudii specifically", "Thanks for clarifying.",
        "I see thanks for explaining.", "I meant the origin of authors for the book of Proverbs.",
    ),
    "mtrag-fiqa": (
        "I meant for a deceased relative", "I meant not online trading.. but training",
        "How does the liquidity of this particular index fund compare",  # asked two turns before
    ),
}
"""Turns, by how they begin, whose user does thank, correct or ask again."""

JUDGING = {"thank", "handoff", "affirm", "deny", "acknowledge", "end_call", "wrong_notworking_notshowing", "repeat"}
"""Intents of nlupp-banking that may be said of an answer."""

EARLIER, ANSWER = "what are your opening hours on sundays", "Here is what I found in the documents."


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--errors", action="store_true")
    chosen = arguments.parse_args()
    monitor = ConversationMonitor()
    labelled(monitor, errors=chosen.errors)
    if chosen.data:
        unlabelled(monitor, chosen.data)
        topics(chosen.data)
        learning(chosen.data)
    bounded(monitor)


def judged(monitor: ConversationMonitor, text: str, before: str = EARLIER, answer: str = ANSWER) -> tuple[str, str]:
    """Return the polarity of the feedback that a turn gives, and the marker behind it."""
    turn = monitor.analyze([("user", before), ("assistant", answer), ("user", text)]).turns[-1]
    if abs(turn.score) < STRONG:
        return "neutral", turn.decided_by or ""
    return ("positive" if turn.score > 0 else "negative"), turn.decided_by or ""


def labelled(monitor: ConversationMonitor, *, errors: bool) -> None:
    rows = [json.loads(line) for line in TURNS.read_text("utf-8").splitlines()]
    found = [judged(monitor, row["text"], row.get("before", EARLIER)) for row in rows]
    print("labelled turns         turns  templates  precision  recall   by template: recall")
    for half in ("design", "held-out"):
        for polarity in ("positive", "negative"):
            for language in ("en", "de", "es", "all"):
                line(half, polarity, language, rows, found)
    if not errors:
        return
    for row, (polarity, marker) in zip(rows, found, strict=True):
        if row["half"] == "design" and polarity != row["polarity"]:
            print(f"  {row['language']} {row['polarity']} as {polarity} ({marker}): {row['text']!r}")


def line(half: str, polarity: str, language: str, rows: list[dict], found: list[tuple[str, str]]) -> None:
    chosen = [(row, got) for row, (got, _) in zip(rows, found, strict=True)
              if row["half"] == half and language in (row["language"], "all")]
    right = sum(got == polarity == row["polarity"] for row, got in chosen)
    claimed = sum(got == polarity for _, got in chosen)
    there = sum(row["polarity"] == polarity for row, _ in chosen)
    templates = defaultdict(list)
    for row, got in chosen:
        if row["polarity"] == polarity:
            templates[row["template"]].append(got == polarity)
    by_template = statistics.mean(statistics.mean(hits) for hits in templates.values())
    print(f"{half:9}{polarity:9}{language:4}{there:6}{len(templates):11}{right / max(1, claimed):11.3f}"
          f"{right / there:8.3f}{by_template:14.3f}")


def unlabelled(monitor: ConversationMonitor, data: Path) -> None:
    print("\nturns that judge nothing                  turns  false markers")
    for name in ("mtrag-clapnq", "mtrag-fiqa"):
        turns = [monitor.analyze([*history(row), ("user", row["text"])]).turns[-1]
                 for row in read(data / name / "queries.jsonl.gz") if row["history"]]
        report(f"{name}, in conversations", [turn for turn in turns if not turn.text.startswith(GENUINE[name])])
    for name, file in (("banking77", "utterances"), ("squad", "queries")):
        rows = read(data / name / f"{file}.jsonl.gz")
        report(f"{name}, as second turns", [as_second(monitor, row) for row in rows])
    rows = read(data / "nlupp-banking" / "utterances.jsonl.gz")
    others = [row for row in rows if not JUDGING & set(row["intents"])]
    report("nlupp-banking, other intents", [as_second(monitor, row) for row in others])
    for intent, sign in (("thank", 1), ("handoff", -1)):
        turns = [as_second(monitor, row) for row in rows if intent in row["intents"]]
        found = sum(turn.score * sign >= STRONG for turn in turns)
        print(f"nlupp-banking, labelled {intent}: {found} of {len(turns)} found")


def topics(data: Path) -> None:
    """Count changes of topic: turns as they followed, and the first question of another conversation in their place."""
    monitor = ConversationMonitor(encoder=LocalEncoder())
    print("\nchange of topic by words and vectors (local encoder): found as they went on, and where another one began")
    for name in ("mtrag-clapnq", "mtrag-fiqa"):
        rows = read(data / name / "queries.jsonl.gz")
        first = [row for row in rows if not row["history"]]
        for half in (True, False):
            found: tuple[list[bool], list[bool]] = ([], [])
            for place, row in enumerate(rows):
                if not row["history"] or design(row["conversation"]) != half:
                    continue
                other = next(one for one in first[place % len(first):] + first
                             if one["conversation"] != row["conversation"])
                for text, told in zip((row["text"], other["text"]), found, strict=True):
                    turn = monitor.analyze([*history(row), ("user", text)]).turns[-1]
                    told.append(any(hit.resets_narrative and not hit.spans for hit in turn.hits))
            print(f"{name:14} {'design' if half else 'held out':9}{len(found[0]):5}  "
                  + "  ".join(f"{statistics.mean(one):.3f}" for one in found), flush=True)


def history(row: dict) -> list[tuple[str, str]]:
    return [(said["role"], said["text"]) for said in row["history"] if said["role"] != "system"]


def as_second(monitor: ConversationMonitor, row: dict) -> object:
    return monitor.analyze([("user", EARLIER), ("assistant", ANSWER), ("user", row["text"])]).turns[-1]


def report(name: str, turns: list) -> None:
    wrong = [turn for turn in turns if abs(turn.score) >= STRONG]
    names = ", ".join(f"{marker} {count}" for marker, count in Counter(turn.decided_by for turn in wrong).most_common())
    print(f"{name:40}{len(turns):7}{len(wrong):6} ({len(wrong) / len(turns):.2%})  {names}")


def learning(data: Path) -> None:
    """Learn from markers alone, with the local encoder: people say something after every other question."""
    stream = banking(data, "local")
    print(f"\nbanking77, {STREAM:,} questions, right article first over the last 1,000; median of {SEEDS} seeds")
    for name, played in (
        ("the answer is made from the first document", "first"),
        ("from the right one if shown, nobody tells which", "any"),
        ("from the right one if shown, and `used` tells", "used"),
        ("from the right one if shown, and the monitor sees it", "seen"),
        ("people say thanks and correct at random", "random"),
        ("at random, and the monitor sees the answer", "random seen"),
    ):
        figures = [play(stream, played, seed) for seed in range(SEEDS)]
        cold, learned = (statistics.median(figure[part] for figure in figures) for part in (0, 1))
        least = min(learned - cold for cold, learned in figures)
        print(f"{name:50} cold {cold:.3f}  learned {learned:.3f}  (least gain {least:+.3f})")


def play(stream: Banking, played: str, seed: int) -> tuple[float, float]:
    rng, player, encode = np.random.default_rng(seed), Player(), likeness_by(LocalEncoder())
    first, cold = [], []
    for index in rng.permutation(len(stream.cases))[:STREAM]:
        case, right = stream.cases[index], stream.ids[int(stream.right[index])]
        served = player.ask(case, shown=5)
        first.append(served.document_ids[0] == right)
        cold.append(stream.ids[cold_order(case)[0]] == right)
        if rng.random() < 0.5:
            continue
        shown = right in served.document_ids
        pleased = rng.random() < 0.6 if "random" in played else first[-1] if played == "first" else shown
        used = {right: 1.0} if played == "used" and pleased else None
        if played.endswith("seen"):
            texts = [case.texts[case.ids.index(name)] for name in served.document_ids]
            said = texts[served.document_ids.index(right)] if shown else texts[0]
            used = attribute(ANSWERS[len(first) % len(ANSWERS)].format(said), served.document_ids, texts,
                             query=case.query, encode=encode).rewards
        rewards = shared(served.document_ids, 0.7 if pleased else -0.9, used=used)
        player.fold(storable_feedback(FeedbackGiven(
            feedback_id=f"f{served.ranking_id}", ranking_id=served.ranking_id, namespace="default", at=served.at + 0.5,
            source="marker:gratitude" if pleased else "marker:negation", rewards=tuple(rewards.items()), ranking=served,
        ), served))
    return statistics.mean(cold[-1000:]), statistics.mean(first[-1000:])


def bounded(monitor: ConversationMonitor) -> None:
    print("\nmessage of          seconds, median of 5")
    for size in (100, 2_000, 10_000, 1_000_000):
        message = ("no that is not what i asked thanks " * (size // 35 + 1))[:size]
        took = []
        for _ in range(5):
            start = time.perf_counter()
            monitor.analyze([("user", "a question"), ("assistant", "an answer"), ("user", message)])
            took.append(time.perf_counter() - start)
        print(f"{size:10} characters  {statistics.median(took):.4f}")


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(one) for one in lines]


if __name__ == "__main__":
    main()
