"""What two questions differ in, in plain words: the differences that an encoder overlooks.

Every difference is a feature of the score. Some also veto: then the answer is not reused however alike the questions
look. A veto costs hits where it is wrong, so each was measured (``VETOES``).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from neuralcache_plugins.semantic_cache.parsing import Question
from neuralcache_plugins.semantic_cache.vocabulary import OPPOSITES, REVERSING_PREFIXES, SPELT

GUARDS = ("number", "unit", "date", "negation", "opposite", "name", "kind", "language")
"""The names of the guards, in the order in which reasons are told."""

# Share of right pairs that a veto would lose / of wrong pairs that it would stop, among the three nearest neighbours
# (MiniLM) of banking77, squad with rewordings, nlupp-banking (benchmarks/cache.py --rows guards --encoder minilm):
#   number    .06/.2 %  .14/1.4 %  0/7.8 %      opposite  .3/.3 %  0/4.1 %    .8/1.2 %
#   unit      .03/0 %   0/.01 %    0/.06 %      name      .2/.3 %  .3/16 %    .2/3.4 %
#   date      .01/.08 % .04/1.6 %  0/6.6 %      language  0/0 %    0/.02 %    0/0 %
# Not safe: negation 11/21 %, 4/14 %, 7/21 %; kind of question 17/20 %, 4/29 %, 6/10 %. Where nothing was designed:
# of 290 right pairs (mtrag turns with their stand-alone rewrites) all vetoes together lose 2, both by names.
VETOES = frozenset({"number", "unit", "date", "opposite", "name", "language"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: the name of its guard, what it saw on either side, and whether it forbids reuse."""

    guard: str
    ours: str
    theirs: str

    @property
    def veto(self) -> bool:
        """Return whether this difference alone forbids reuse."""
        return self.guard in VETOES

    @property
    def reason(self) -> str:
        """Return it in words, such as "other number: 20 against 30"."""
        return f"other {_SPOKEN.get(self.guard, self.guard)}: {self.ours} against {self.theirs}"


def differences(ours: Question, theirs: Question) -> tuple[Difference, ...]:
    """Return what the questions differ in, by guard; swapping them swaps the sides and nothing else. About 5 us.

    A thing that only one question mentions is no difference: it is left to the score, which sees what is missing.
    """
    found = (
        *_number(ours, theirs),
        *_exchanged("date", ours.dates, theirs.dates),
        *_negation(ours, theirs),
        *_opposite(ours, theirs),
        *_name(ours, theirs),
    )
    if ours.kind != theirs.kind and ours.kind and theirs.kind:
        found += (Difference("kind", ours.kind, theirs.kind),)
    if ours.language != theirs.language and ours.language and theirs.language:
        found += (Difference("language", ours.language, theirs.language),)
    return found


_SPOKEN = {"opposite": "meaning", "kind": "kind of question", "negation": "sense"}


def _number(ours: Question, theirs: Question) -> tuple[Difference, ...]:
    one, other = ours.numbers, theirs.numbers
    if one == other or not one or not other:
        return ()
    values = _exchanged("number", {value for value, _ in one}, {value for value, _ in other})
    if values:
        return values
    units = dict(one), dict(other)
    for value in sorted(units[0].keys() & units[1].keys()):
        here, there = units[0][value], units[1][value]
        if here != there and here and there:
            return (Difference("unit", f"{value} {here}", f"{value} {there}"),)
    return ()


def _name(ours: Question, theirs: Question) -> tuple[Difference, ...]:
    here, there = ours.names.difference(theirs.words), theirs.names.difference(ours.words)
    if not here or not there:
        return ()
    spelt_here, spelt_there = _initials(here), _initials(there)
    here = frozenset(name for name in here if not _familiar(name, theirs.words, spelt_there))
    there = frozenset(name for name in there if not _familiar(name, ours.words, spelt_here))
    return _exchanged("name", here, there)


def _initials(names: Iterable[str]) -> str:
    return "".join(sorted(name[0] for name in names))


def _familiar(name: str, words: Iterable[str], initials: str) -> bool:
    """Return whether a name is only another form: British for Britain, a typing error, EU for European Union."""
    letters = "".join(sorted(name))
    return letters == initials or any(
        len(word) > 2 and (word[:3] == name[:3] or letters == "".join(sorted(word))) for word in words
    )


def _exchanged(guard: str, ours: Iterable[str], theirs: Iterable[str]) -> tuple[Difference, ...]:
    """Return a difference if each side has something that the other lacks."""
    one, other = frozenset(ours), frozenset(theirs)
    if one <= other or other <= one:
        return ()
    return (Difference(guard, _listed(one - other), _listed(other - one)),)


def _listed(things: Iterable[str]) -> str:
    return ", ".join(sorted(things)[:3])


def _negation(ours: Question, theirs: Question) -> tuple[Difference, ...]:
    if ours.negations % 2 == theirs.negations % 2:
        return ()
    sides = ("negated", "plain") if ours.negations % 2 else ("plain", "negated")
    return (Difference("negation", *sides),)


def _opposite(ours: Question, theirs: Question) -> tuple[Difference, ...]:
    if ours.negations % 2 != theirs.negations % 2:
        return ()  # "not allowed" and "disallowed" mean the same
    one, other = frozenset(ours.words), frozenset(theirs.words)
    here, there = one - other, other - one
    pairs = [(word, facing) for word in here if word in OPPOSITES for facing in OPPOSITES[word] & there]
    pairs += _reversals(here, there)
    pairs += [(word, reversing) for reversing, word in _reversals(there, here)]
    return (Difference("opposite", *(SPELT.get(word, word) for word in min(pairs))),) if pairs else ()


def _reversals(words: Iterable[str], plain: Set[str]) -> list[tuple[str, str]]:
    """Return (reversing word, plain word) for each word that is one of ``plain`` behind a prefix such as "un"."""
    return [
        (word, word[len(prefix):])
        for word in words if word.startswith(REVERSING_PREFIXES)
        for prefix in REVERSING_PREFIXES
        if word.startswith(prefix) and len(word) > len(prefix) + 3 and word[len(prefix):] in plain
    ]
