"""Which answer belongs to which ranking, read from a tree of runs as frameworks report it. Pure; one lock.

A ranking belongs to the answer of the innermost run around it in which a model was asked after it: the model saw what
was shown, and that run's output is what became of it. Runs that fail or are given up answer nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Shown = tuple[str, str]
"""(namespace, ranking id)"""

MOST_RUNS = 20_000
"""Runs remembered of one tree; from so many on the older half goes, first what is of no use any more."""


class _Streamed:
    """Says that a run's output is a stream, whose text is what its last model replied."""


STREAMED = _Streamed()


class Answered(NamedTuple):
    """Rankings that one answer was made from, in the order they were made, and the prompt that the model saw."""

    rankings: tuple[Shown, ...]
    answer: Any
    prompt: Any


@dataclass(slots=True)
class _Model:
    run: Hashable
    began: int
    prompt: Any
    reply: Any = None
    state: str = "open"


@dataclass(slots=True)
class _Tree:
    root: Hashable
    parents: dict[Hashable, Hashable | None] = field(default_factory=dict)
    clock: int = 0
    rankings: list[tuple[int, Hashable, Shown]] = field(default_factory=list)
    known: set[Shown] = field(default_factory=set)
    models: list[_Model] = field(default_factory=list)
    speaking: dict[Hashable, _Model] = field(default_factory=dict)
    around: set[Hashable] = field(default_factory=set)
    outputs: dict[Hashable, Any] = field(default_factory=dict)
    ended: set[Hashable] = field(default_factory=set)
    over: bool = False

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def above(self, run: Hashable) -> list[Hashable]:
        """Return the runs around ``run``, innermost first."""
        found = []
        parent = self.parents.get(run)
        while parent is not None and parent in self.parents:
            found.append(parent)
            parent = self.parents[parent]
        return found

    @property
    def size(self) -> int:
        """Runs, rankings or models, whichever are most."""
        return max(len(self.parents), len(self.rankings), len(self.models))

    def prune(self, room: int) -> set[Hashable]:
        """Forget until ``size`` is ``room``, and return the runs that went. O(size).

        First ended runs that nothing needs go, then older models, then older rankings with the runs around them; the
        root, and whatever is around what is kept, stay.
        """
        gone: set[Hashable] = set()
        while True:
            gone |= self._forget_runs(len(self.parents) - room)
            self._forget_models(self.models[-room:])
            if self.size <= room:
                return gone
            self.rankings = self.rankings[(len(self.rankings) + 1) // 2 :]
            self.known = {shown for _, _, shown in self.rankings}
            self.around = {around for _, run, _ in self.rankings for around in [run, *self.above(run)]}
            self.outputs = {run: output for run, output in self.outputs.items() if run in self.around}

    def _forget_runs(self, excess: int) -> set[Hashable]:
        needed = {self.root, *self.around}
        for model in self.models:
            needed.update([model.run, *self.above(model.run)])
        stale = [run for run in self.parents if run not in needed and (run in self.ended or not self.rankings)]
        gone = set(stale[: max(0, excess)])
        for run in gone:
            del self.parents[run]
        self.ended -= gone
        return gone

    def _forget_models(self, kept: Sequence[_Model]) -> None:
        # a model asked before all rankings that are left answers none of them
        self.models = [model for model in kept if self.rankings and model.began > self.rankings[0][0]]
        alive = set(map(id, self.models))
        self.speaking = {run: model for run, model in self.speaking.items() if id(model) in alive}


class Forest:
    """Trees of runs under way, at most ``capacity`` of at most ``most_runs`` each. Every method costs microseconds.

    ``answer_in`` finds an answer in a run's output: text, or a structure with text; None if there is none, ``STREAMED``
    if it is still to come. With ``waits`` a tree whose root has ended waits for the models that are still speaking.
    """

    def __init__(self, answer_in: Callable[[Any], Any], *, capacity: int = 1_000, waits: bool = False,
                 most_runs: int = MOST_RUNS) -> None:
        self._answer_in = answer_in
        self._most_runs = most_runs
        self._waits = waits
        self._capacity = capacity
        self._lock = threading.Lock()
        self._trees: OrderedDict[Hashable, _Tree] = OrderedDict()
        self._root_of: dict[Hashable, Hashable] = {}

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child."""
        self._lock = threading.Lock()

    def started(self, run: Hashable, parent: Hashable | None) -> None:
        """Note that a run began; one whose parent is not known begins a tree."""
        with self._lock:
            self._add(run, parent)

    def ranked(self, run: Hashable, shown: Shown, parent: Hashable | None = None) -> None:
        """Note that a ranking was shown within a run."""
        with self._lock:
            tree = self._add(run, parent)
            # told twice, by two handlers of one event
            if shown in tree.known:
                return
            tree.known.add(shown)
            tree.rankings.append((tree.tick(), run, shown))
            tree.around.update([run, *tree.above(run)])

    def asked(self, run: Hashable, parent: Hashable | None, prompt: Any) -> bool:
        """Note that a model was asked; returns whether a ranking came before it."""
        with self._lock:
            tree = self._add(run, parent)
            if tree.rankings:
                model = tree.speaking[run] = _Model(run, tree.tick(), prompt)
                tree.models.append(model)
            return bool(tree.rankings)

    def ended(self, run: Hashable, output: Any) -> Callable[[], list[Answered]] | None:
        """Note that a run ended well; for the root of a tree, return what finds its answers, at leisure."""
        return self._ended(run, output, state="done")

    def failed(self, run: Hashable) -> None:
        """Note that a run failed or was given up; a tree whose root failed answers nothing."""
        self._ended(run, None, state="failed")

    def _add(self, run: Hashable, parent: Hashable | None) -> _Tree:
        root = self._root_of.get(run)
        if root is None:
            root = self._root_of.get(parent, run) if parent is not None else run
            self._root_of[run] = root
            tree = self._trees.get(root)
            if tree is None:
                tree = self._trees[root] = _Tree(root)
                self._make_room()
            tree.parents[run] = parent if root != run else None
        tree = self._trees[root]
        if tree.size > self._most_runs:
            for gone in tree.prune(self._most_runs // 2):
                self._root_of.pop(gone, None)
        return tree

    def _ended(self, run: Hashable, output: Any, *, state: str) -> Callable[[], list[Answered]] | None:
        with self._lock:
            root = self._root_of.get(run)
            if root is None:
                return None
            tree = self._trees[root]
            tree.ended.add(run)
            model = tree.speaking.pop(run, None)
            if model is not None:
                model.state, model.reply = state, output
            if state == "failed":
                for within in [one for one in tree.speaking if run in tree.above(one)]:
                    tree.speaking.pop(within).state = state
            if run in tree.around and state == "done":
                tree.outputs[run] = output
            tree.over = tree.over or run == root
            if not tree.over or (root in tree.outputs and self._waits and tree.speaking):
                return None
            self._drop(root)
        if not tree.models:
            return None
        return lambda: answers(tree, self._answer_in)

    def _make_room(self) -> None:
        while len(self._trees) > self._capacity:
            self._drop(next(iter(self._trees)))

    def _drop(self, root: Hashable) -> None:
        for run in self._trees.pop(root).parents:
            self._root_of.pop(run, None)


def answers(tree: _Tree, answer_in: Callable[[Any], Any]) -> list[Answered]:
    """Return the answers of a finished tree, each with the rankings that belong to it."""
    found: dict[Hashable, Answered] = {}
    for began, run, shown in tree.rankings:
        for around in tree.above(run) or [run]:
            models = _asked_within(tree, around, after=began)
            if not models or around not in tree.outputs or models[-1].state != "done":
                continue
            answer = answer_in(tree.outputs[around])
            if answer is STREAMED or (answer is None and around == tree.root):
                answer = next((reply for model in reversed(models) if model.state == "done"
                               and (reply := answer_in(model.reply)) is not None), None)
            if answer is None:
                continue
            known = found.get(around)
            rankings = (shown,) if known is None else (*known.rankings, shown)
            found[around] = Answered(rankings, answer, models[-1].prompt)
            break
    return list(found.values())


def _asked_within(tree: _Tree, around: Hashable, *, after: int) -> Sequence[_Model]:
    return [model for model in tree.models if model.began > after and around in tree.above(model.run)]
