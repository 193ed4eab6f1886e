"""What a question says, read once: words in order, numbers, dates, negation, names, kind of question, language.

Nothing here understands a sentence. Each part is cheap evidence for telling apart two questions that look alike to an
encoder ("enable" and "disable" are near neighbours). Reading takes linear time; of a very long text only the first
8,192 characters are looked at, while ``canonical`` always stands for all of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from neuralcache_plugins.core.lexical import tokens
from neuralcache_plugins.semantic_cache.vocabulary import (
    AUXILIARIES,
    FUNCTION_WORDS,
    MONTHS,
    NEGATIONS,
    NUMBER_WORDS,
    OTHER_DATES,
    QUESTION_WORDS,
    REPAIR_PAIRS,
    REPAIRS,
    SCALES,
    SPOKEN_IN,
    SYMBOLS,
    UNITS,
)

_LONGEST = 8_192
_MOST_WORDS = 512

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
# normalisation takes quadratic time in a run of combining marks; no script needs more than 30 (UAX 15, D4)
_MARK_RUN = re.compile(r"([^\w\s\x00-\x7f]{31,}+)")
# scripts without capitals whose words need more care than one pattern: Hebrew and everything beyond it
_BEYOND_SIMPLE = re.compile(r"[\u0300-\u036f\u0590-\u1cff\u2de0-\ua63f\ua66f-\uabff\uac00-\ufaff\U00010000-\U0010ffff]")
_NUMBER = re.compile(
    r"(?<![\w.,])([$\u20ac\u00a3\u00a5\u20b9])?\s?(\d{1,3}(?:,\d{3})++|\d++)(\.\d++)?"
    r"(?:(\s?)([%\u20ac$\u00a3\u00a5\u00b0]|[^\W\d_]{1,12}(?![^\W_])))?"
)
_NUMERIC_DATE = re.compile(r"(?<!\d)(\d{1,4})[-/.](\d{1,2})[-/.](\d{1,4})(?!\d)")
_CLOCK = re.compile(r"(?<!\d)(\d{1,2})(?::(\d{2})|(?=\s?[ap]\.?m\b))(?:\s?([ap])\.?m\b)?(?!\d)", re.IGNORECASE)
_YEAR = re.compile(r"(?:1\d|20)\d\d")
_DIGIT = re.compile(r"\d")
_DATE_WORDS = frozenset(OTHER_DATES) | frozenset(MONTHS)
_SENTENCE_END = frozenset(".?!:;\u3002\uff1f\uff01\"\u201c(")


@dataclass(frozen=True, slots=True)
class Question:
    """One question as the guards and features see it; equal texts give equal questions in every process.

    ``canonical`` is the text composed (NFC), case-folded, with single spaces and without closing punctuation: the key
    of the exact tier. ``words`` are all words in order without English endings, ``content`` those that carry meaning,
    each once, where it stood last; ``content[:kept_from]`` stood before the last self-repair ("the red, no wait, the
    blue one"), which may have taken them back. ``numbers`` are (value, unit), unit "" when none is given. ``kind`` is
    "who", "when", "how many", ..., "yes or no", or "" when it shows nowhere; ``language`` an ISO 639-1 code or the
    name of a script, or "".
    """

    canonical: str
    words: tuple[str, ...]
    content: tuple[str, ...]
    kept_from: int
    repairs: int
    numbers: frozenset[tuple[str, str]]
    dates: frozenset[str]
    negations: int
    names: frozenset[str]
    kind: str
    language: str


def parse(text: str) -> Question:
    """Read a question; any text at all gives one, "" included. O(len(text)), about 0.03 ms for a sentence."""
    canonical, head = canonical_text(text), _composed(text[:_LONGEST])
    surface = _WORD.findall(head)[:_MOST_WORDS]
    if head.isascii() or _BEYOND_SIMPLE.search(head) is None:
        words, folded = [stem for word in surface for stem in _stems(word)], [word.casefold() for word in surface]
    else:
        words = folded = tokens(head)[:_MOST_WORDS]
    after, repairs = _last_repair(folded)
    content, kept_from = _content(words, folded, after)
    numbers, dates = _quantities(head, folded)
    return Question(
        canonical=canonical, words=tuple(words), content=content, kept_from=kept_from, repairs=repairs,
        numbers=numbers, dates=dates, negations=_negations(folded), names=_names(head, surface),
        kind=_kind(folded, after), language=_language(head, folded),
    )


def canonical_text(text: str) -> str:
    """Return what counts as the same text: composed, case-folded, single spaces, no closing ``.?!``. O(len(text))."""
    if not text.isascii():
        # odd places of the split are runs of marks that are left as they are
        parts = _MARK_RUN.split(text)
        text = "".join(part if at % 2 else unicodedata.normalize("NFC", part) for at, part in enumerate(parts))
    plain = " ".join(text.casefold().split())
    return plain.rstrip(".?! \u3002\uff1f\uff01") or plain


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", _MARK_RUN.sub(" ", text))


@lru_cache(maxsize=16_384)
def _stems(word: str) -> tuple[str, ...]:
    """Return the stems of a word as written; a contraction stays whole, so that "don't" is one word."""
    if "'" in word or "\u2019" in word:
        plain = word.casefold().replace("\u2019", "'")
        return (plain.removesuffix("'s"),) if plain.endswith("'s") else (plain.replace("'", ""),)
    return tuple(tokens(word)) or (word.casefold(),)


def _last_repair(folded: Sequence[str]) -> tuple[int, int]:
    """Return the index of the first word after the last self-repair (0 for none), and how many there are."""
    if REPAIRS.isdisjoint(folded):
        return 0, 0
    after = found = at = 0
    last = len(folded) - 1
    while at <= last:
        pair = at < last and (folded[at], folded[at + 1]) in REPAIR_PAIRS
        if pair or (folded[at] in REPAIRS and folded[at] not in {"i", "make", "scratch"}):
            length = 2 if pair else 1
            found += at != after or not found
            # a repair opens nothing and closes nothing: there is a word before it and one after
            after = at + length if at and at + length <= last else after
            at += length
        else:
            at += 1
    return after, found if after else 0


def _content(words: Sequence[str], folded: Sequence[str], after: int) -> tuple[tuple[str, ...], int]:
    """Return the words that mean something, each at its last place, and how many of them stand before ``after``."""
    if not after:
        meant = [word for word in reversed(words) if word not in FUNCTION_WORDS]
        return tuple(reversed(dict.fromkeys(meant))), 0
    places = {
        word: at for at, word in enumerate(words)
        if word not in FUNCTION_WORDS and folded[at if at < len(folded) else -1] not in REPAIRS
    }
    ordered = sorted(places, key=places.__getitem__)
    return tuple(ordered), sum(place < after for place in places.values())


def _quantities(text: str, folded: Sequence[str]) -> tuple[frozenset[tuple[str, str]], frozenset[str]]:
    numbers = set() if NUMBER_WORDS.keys().isdisjoint(folded) else _spelt_numbers(folded)
    dates = set() if _DATE_WORDS.isdisjoint(folded) else _named_dates(folded)
    if _DIGIT.search(text) is not None:
        text = _NUMERIC_DATE.sub(lambda found: _note(dates, "-".join(map(_plain, found.groups()))), text)
        text = _CLOCK.sub(lambda found: _note(dates, _clock(found)), text)
        for sign, whole, rest, space, unit in _NUMBER.findall(text):
            if unit and not space and not _known_unit(unit):
                continue  # a name such as 2fa, or an ordinal
            value = _plain(whole.replace(",", "")) + (_fraction(rest) if rest else "")
            if not (sign or unit or rest) and _YEAR.fullmatch(value):
                dates.add(value)
            else:
                numbers.add((value, SYMBOLS.get(sign) or _known_unit(unit)))
    return frozenset(numbers), frozenset(dates)


def _spelt_numbers(folded: Sequence[str]) -> set[tuple[str, str]]:
    return {(NUMBER_WORDS[word], _unit(folded, at + 1)) for at, word in enumerate(folded) if word in NUMBER_WORDS}


def _note(dates: set[str], date: str) -> str:
    dates.add(date)
    return " "


def _named_dates(folded: Sequence[str]) -> set[str]:
    dates = {OTHER_DATES[word] for word in folded if word in OTHER_DATES}
    for at, word in enumerate(folded):
        # "may" and "march" are months only beside a number
        if word in MONTHS and (word not in {"may", "march", "mar", "sun", "sat"} or _number_beside(folded, at)):
            dates.add(MONTHS[word])
    return dates


def _number_beside(folded: Sequence[str], at: int) -> bool:
    beside = (*folded[max(at - 1, 0):at], *folded[at + 1:at + 2])
    return any(word[0].isdecimal() for word in beside)


def _clock(found: re.Match[str]) -> str:
    hour, minute, half = found.groups()
    value = int(hour) % 12 + 12 * (half in "pP") if half else int(hour)
    return f"{value:02d}:{int(minute or 0):02d}"


def _plain(digits: str) -> str:
    """Return decimal digits of any script as ASCII without leading zeros; of a monstrous number its first 40."""
    return "".join(str(unicodedata.digit(each, 0)) for each in digits[:40]).lstrip("0") or "0"


def _fraction(rest: str) -> str:
    digits = "".join(str(unicodedata.digit(each, 0)) for each in rest[1:40]).rstrip("0")
    return f".{digits}" if digits else ""


def _unit(folded: Sequence[str], at: int) -> str:
    return _known_unit(folded[at]) if at < len(folded) else ""


def _known_unit(word: str) -> str:
    return SYMBOLS.get(word) or UNITS.get(word.casefold()) or SCALES.get(word.casefold(), "")


def _negations(folded: Sequence[str]) -> int:
    return sum([word in NEGATIONS or word.endswith(("n't", "n\u2019t")) for word in folded])


def _names(text: str, surface: Sequence[str]) -> frozenset[str]:
    """Return the stems of capitalised words inside sentences; none where nearly everything is capitalised."""
    capital = [word for word in surface if word[0].isupper() and not _is_speaker(word)]
    if not capital or text.isupper() or (len(surface) > 5 and len(capital) > 0.7 * len(surface)):
        return frozenset()
    if len(capital) == 1 and text.startswith(capital[0]) and not _is_acronym(capital[0]):
        return frozenset()  # most questions: nothing but their first word
    names = [
        stem for found, word in zip(_WORD.finditer(text), surface, strict=False)
        if word[0].isupper() and not _is_speaker(word)
        and (_is_acronym(word) or not _opens_sentence(text, found.start()))
        for stem in _stems(word)
    ]
    return frozenset(name for name in names if name not in FUNCTION_WORDS and name not in QUESTION_WORDS)


def _is_speaker(word: str) -> bool:
    return word[0] == "I" and (word == "I" or word[1] in "'\u2019")


def _is_acronym(word: str) -> bool:
    return len(word) > 1 and word.isupper()


def _opens_sentence(text: str, start: int) -> bool:
    before = text[max(start - 3, 0):start].rstrip()
    return not before or before[-1] in _SENTENCE_END


def _kind(folded: Sequence[str], after: int) -> str:
    """Return the kind of question; what follows a self-repair counts before what it replaced."""
    for start, stop in ((after, len(folded)), (0, after)):
        for at in range(start, stop):
            if folded[at] in QUESTION_WORDS:
                return _extended(folded, at)
    return "yes or no" if folded and folded[min(after, len(folded) - 1)] in AUXILIARIES else ""


def _extended(folded: Sequence[str], at: int) -> str:
    kind = QUESTION_WORDS[folded[at]]
    following = folded[at + 1] if at + 1 < len(folded) else ""
    asked = kind == "how" and following in {"many", "much", "long", "often", "far", "old"}
    return f"how {following}" if asked else kind


def _language(text: str, folded: Sequence[str]) -> str:
    if not text.isascii():
        script = _script(text)
        if script != "latin":
            return script
    counts: dict[str, int] = {}
    for word in SPOKEN_IN.keys() & folded:
        for name in SPOKEN_IN[word]:
            counts[name] = counts.get(name, 0) + 1
    most = max(counts.values(), default=0)
    leading = [name for name, count in counts.items() if count == most]
    return leading[0] if most >= 2 and len(leading) == 1 else ""


_SCRIPTS = (
    (0x0250, "latin"), (0x0370, "other"), (0x0400, "greek"), (0x0530, "cyrillic"), (0x0590, "armenian"),
    (0x0600, "hebrew"), (0x0780, "arabic"), (0x0900, "other"), (0x0980, "devanagari"), (0x0E00, "indic"),
    (0x0E80, "thai"), (0x1100, "other"), (0x1200, "hangul"), (0x1E00, "other"), (0x2000, "latin"), (0x3040, "other"),
    (0x3100, "kana"), (0x3400, "other"), (0xA000, "han"), (0xAC00, "other"), (0xD7B0, "hangul"), (0x110000, "other"),
)


def _script(text: str) -> str:
    """Return the commonest script among the first letters; kana wins over Han, which Japanese mixes."""
    counts: dict[str, int] = {}
    for letter in filter(str.isalpha, text[:256]):
        script = next(name for limit, name in _SCRIPTS if ord(letter) < limit)
        counts[script] = counts.get(script, 0) + 1
    if counts.get("kana", 0) * 5 > counts.get("han", 0) > 0:
        return "kana"
    return max(counts, key=counts.__getitem__) if counts else "latin"
