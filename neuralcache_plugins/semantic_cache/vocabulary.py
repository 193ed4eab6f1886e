"""Word lists that parsing and the guards share: data, no rules. English, but for the stop words of ``SPOKEN_IN``."""

from __future__ import annotations

from neuralcache_plugins.core.lexical import tokens


def _words(text: str) -> list[str]:
    return text.split()


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem for word in text.split() for stem in tokens(word))


FUNCTION_WORDS = _stems("""
    a an the and or but if is am are was were be been being do does did done doing have has had having can could will
    would shall should may might must of to in for on at by with from as into about than then so that this these those
    there here it its i me my mine we us our ours you your yours he him his she her hers they them their theirs who
    whom whose what when where which why how s t re ve ll d m please just also too very some any im id ive
""") | {"dont", "doesnt", "didnt", "isnt", "arent", "wasnt", "werent", "cant", "couldnt", "wont", "wouldnt", "shouldnt",
        "hasnt", "havent", "hadnt", "not", "im", "ive", "id", "ill", "whats", "hows"}
"""Stems that say little about what is asked; negation among them, which has a guard of its own."""

NEGATIONS = frozenset(_words("""
    not never neither nor without cannot nobody nothing none unable dont doesnt didnt isnt arent wasnt werent cant
    couldnt wont wouldnt shouldnt hasnt havent hadnt aint
"""))
"""Without "no", which in speech corrects more often than it denies."""

REPAIRS = frozenset(_words("""
    wait sorry er erm uh um hmm oops rather actually no or well instead i make scratch mean meant
"""))
"""Words that may correct what was said before; "i", "make" and "scratch" only as the first of a pair."""

REPAIR_PAIRS = frozenset({
    ("i", "mean"), ("i", "meant"), ("make", "that"), ("scratch", "that"), ("no", "just"), ("no", "first"),
    ("excuse", "me"), ("or", "rather"), ("no", "not"),
})

QUESTION_WORDS = {
    "who": "who", "whom": "who", "whose": "who", "who's": "who", "when": "when", "when's": "when", "where": "where",
    "where's": "where", "why": "why", "how": "how", "how's": "how", "what": "what", "what's": "what", "whats": "what",
    "which": "what",
}

AUXILIARIES = frozenset(_words("""
    is are was were do does did can could will would shall should may might must has have had am isn't aren't can't
    don't
"""))

NUMBER_WORDS = {
    word: str(value) for value, word in [
        *enumerate(_words("two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"), 2),
        (20, "twenty"), (30, "thirty"), (40, "forty"), (50, "fifty"), (60, "sixty"), (70, "seventy"), (80, "eighty"),
        (90, "ninety"), (100, "hundred"), (1000, "thousand"), (1000000, "million"),
    ]
}
"""Without "one", which is a pronoun more often than a number."""

SYMBOLS = {"$": "dollar", "\u20ac": "euro", "\u00a3": "pound", "\u00a5": "yen", "\u20b9": "rupee", "%": "percent",
           "\u00b0": "degree"}

SCALES = {"k": "thousand", "m": "million", "bn": "billion", "million": "million", "billion": "billion",
          "thousand": "thousand", "hundred": "hundred"}

UNITS = {
    form: name for name, forms in {
        "dollar": "dollar dollars usd bucks", "euro": "euro euros eur", "pound": "gbp pound pounds quid",
        "yen": "yen jpy", "rupee": "rupee rupees inr", "franc": "chf franc francs", "percent": "percent pct per",
        "second": "second seconds sec secs", "minute": "minute minutes min mins", "hour": "hour hours hr hrs h",
        "day": "day days", "week": "week weeks", "month": "month months", "year": "year years yr yrs",
        "millimetre": "mm", "centimetre": "cm", "metre": "metre metres meter meters",
        "kilometre": "km kms kilometre kilometres kilometer kilometers", "mile": "mile miles mi",
        "foot": "ft foot feet", "inch": "inch inches", "gram": "g gram grams", "kilogram": "kg kilo kilos kilograms",
        "tonne": "ton tons tonne tonnes", "lb": "lb lbs", "ounce": "oz ounce ounces",
        "litre": "l litre litres liter liters",
        "millilitre": "ml", "gallon": "gallon gallons", "degree": "degree degrees", "celsius": "celsius c",
        "fahrenheit": "fahrenheit f", "kelvin": "kelvin", "watt": "watt watts w", "kilowatt": "kw",
        "volt": "volt volts v",
        "kilobyte": "kb", "megabyte": "mb", "gigabyte": "gb", "terabyte": "tb",
    }.items() for form in forms.split()
}

MONTHS = {
    form: forms.split()[0] for forms in (
        "january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
        "september sept sep", "october oct", "november nov", "december dec",
    ) for form in forms.split()
}

OTHER_DATES = {
    form: forms.split()[0] for forms in (
        "monday mondays", "tuesday tuesdays", "wednesday wednesdays", "thursday thursdays", "friday fridays",
        "saturday saturdays", "sunday sundays", "today", "tomorrow", "yesterday", "tonight", "weekend weekends",
    ) for form in forms.split()
}

_LANGUAGES = {
    "en": frozenset(_words("the of is are was what how and my you do does can with this that for to i where when")),
    "de": frozenset(_words("der die das und ist ein eine wie nicht ich mein meine kann wo wann wer mit auf für zu")),
    "fr": frozenset(_words("le la les des est une et comment je mon ma quel quelle où quand qui avec pour dans pas")),
    "es": frozenset(_words("el los las es una y cómo como mi qué que dónde cuándo quién con para por del puedo")),
    "it": frozenset(_words("il gli è una e come non mio mia che dove quando chi con per della posso sono")),
    "pt": frozenset(_words("o os um uma é e como não meu minha que onde quando quem com para por do da posso")),
    "nl": frozenset(_words("de het een en is hoe niet ik mijn kan waar wanneer wie met op voor van wat")),
}
SPOKEN_IN = {
    word: [name for name, words in _LANGUAGES.items() if word in words]
    for word in sorted(frozenset[str]().union(*_LANGUAGES.values()))
}
"""Stop words, and the languages that have them (ISO 639-1)."""

_OPPOSITES = """
    enable disable, activate deactivate, open close, lock unlock, freeze unfreeze, block unblock, add remove,
    increase decrease, increase reduce, raise lower, buy sell, send receive, deposit withdraw, deposit withdrawal,
    accept reject, accept decline, allow block, allow forbid, start stop, start end, begin end, first last,
    before after, on off, up down, with without, more less, more fewer, most least, maximum minimum, max min,
    highest lowest, high low, higher lower, largest smallest, large small, larger smaller, big small, biggest smallest,
    longest shortest, long short, longer shorter, oldest youngest, oldest newest, old new, early late, earliest latest,
    import export, upload download, login logout, subscribe unsubscribe, install uninstall, connect disconnect,
    credit debit, physical virtual, win lose, won lost, gain loss, positive negative, north south, east west,
    northern southern, eastern western, upper lower, best worst, good bad, fast slow, hot cold, left right, show hide,
    public private, internal external, inside outside, above below, over under, success failure, succeed fail,
    approve deny, encrypt decrypt, push pull, arrive depart, arrival departure, domestic international, legal illegal,
    always never, all none, male female, strong weak, rich poor, true false, same different, attack defend,
    attack defense, agree disagree, like dislike, appear disappear, possible impossible
"""


def _opposites() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    for pair in _OPPOSITES.split(","):
        one, other = (tokens(word)[0] for word in pair.split())
        table.setdefault(one, set()).add(other)
        table.setdefault(other, set()).add(one)
    return {word: frozenset(others) for word, others in table.items()}


OPPOSITES = _opposites()
"""Stem -> stems of the opposite meaning, both ways."""

SPELT = {tokens(word)[0]: word for word in reversed(_OPPOSITES.replace(",", " ").split())}
"""Stem -> the word of ``OPPOSITES`` it stands for, to be shown to people."""

REVERSING_PREFIXES = ("un", "dis", "de", "non", "in", "im")
