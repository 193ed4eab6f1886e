"""Sentences that answer nothing: "I don't know", refusals, "the documents do not say", in several languages.

Patterns have no nested repetition, so they take linear time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENGLISH = r"""
    \b(?:i|we)\ (?:really\ |honestly\ |simply\ |just\ )?(?:do\ not|don't|did\ not|didn't)\ (?:really\ |currently[ ]
        |actually\ )?
        (?:know\b|have\b.{0,40}\b(?:information|answer|knowledge|details?|data|figures?|numbers?|context|access)\b
        |(?:see|find)\b.{0,40}\b(?:information|answer|mention|reference)\b)
  | \b(?:i|we)\ have\ no\ .{0,30}\b(?:information|answer|knowledge|details?|data|figures?|numbers?|idea)\b
  | \b(?:i|we)(?:\ am|'m|\ are|'re)\ (?:not\ (?:sure|able|aware|certain)|unable|afraid)\b
  | \b(?:i|we)\ (?:cannot|can't|can\ not|could\ not|couldn't|was\ not\ able\ to|wasn't\ able\ to|were\ unable\ to
        |was\ unable\ to)
        \ (?:\w+\ )?(?:find|answer|determine|provide|help|locate|tell|say|assist|give|confirm|verify|share|discuss
        |comply)\b
  | \bunable\ to\ (?:find|answer|determine|provide|locate|assist|help)\b
  | \b(?:i'm|i\ am|we're|we\ are)\ (?:very\ |so\ |really\ )?sorry\b
  | ^sorry(?:[,.!]|\ (?:but|i|we|that|about|for)\b|$) | \bmy\ apologies\b | ^(?:i
        |we)\ apologi[sz]e\b
  | \b(?:documents?|contexts?|sources?|passages?|texts?|articles?|excerpts?|information|materials?|snippets?|results?)\b
        (?:\ \w+){0,3}\ (?:do|does|did)(?:\ not|n't)\ (?:\w+\ )?
        (?:contain|mention|state|specify|provide|say|include|cover|address|discuss|give|answer|indicate|explain|tell
        |offer)\b
  | \bthere(?:\ is|'s|\ are|\ was)\ (?:no|not\ enough|insufficient)\ (?:\w+\ ){0,2}
        (?:information|mention|answer|data|evidence|details?|context|reference)\b
  | \b(?:no|not\ enough|insufficient)\ (?:\w+\ ){0,2}(?:information|answer|context|data)\b.{0,60}
        \b(?:provided|available|given|found|to\ answer|to\ determine|in\ the)\b
  | \b(?:is|are|was|were)(?:\ not|n't)\ (?:\w+\ )?(?:mentioned|specified|stated|provided|answered|addressed|covered
        |discussed|included)
        \b.{0,40}\b(?:documents?|contexts?|sources?|passages?|texts?|articles?|information)\b
  | \b(?:question|query)\b.{0,60}\b(?:cannot|can't|can\ not|could\ not)\ be\ answered\b | \bunanswerable\b
  | \bno\ (?:\w+\ ){0,2}(?:documents?|sources?|results?|passages?)\ (?:\w+\ )?found\b
  | \bas\ an\ ai\b | \bi\ (?:must|have\ to)\ (?:decline|refuse)\b | \bno\ idea\b | \bi\ (?:won't
        |will\ not)\ be\ able\ to\b
"""
_OTHERS = r"""
    \bwei(?:\u00df|ss)\ (?:ich\ |es\ |das\ |ich\ es\ |ich\ das\ )?(?:leider\ )?nicht\b
  | \bich\ kann\ .{0,60}\bnicht\ (?:beantworten|sagen|finden|helfen)\b | \bkann\ ich\ .{0,60}\bnicht\ (?:beantworten
        |sagen|finden|helfen)\b
  | \bkeine\ (?:\w+\ )?(?:informationen|angaben|antwort|ahnung|hinweise)\b | \btut\ mir\ leid\b
  | \b(?:nicht\ (?:angegeben|erw\u00e4hnt|enthalten|beantwortet))\b.{0,40}\b(?:dokument\w*|kontext|quellen?|text\w*)\b
  | \bje\ ne\ (?:le\ )?sais\ pas\b | \bje\ n'ai\ (?:pas|aucune)\b.{0,30}\b(?:information|r\u00e9ponse|trouv\u00e9)\w*
  | \bje\ ne\ (?:peux|trouve|dispose|suis)\ pas\b | \bd\u00e9sol\u00e9e?\b | \baucune\ (?:information|r\u00e9ponse)\b
  | \bne\ (?:mentionnent?|contient|contiennent|pr\u00e9cisent?|indiquent?)\ (?:pas|aucune?)\b
  | \bno\ lo\ s\u00e9\b | \bno\ s\u00e9\b | \bno\ (?:tengo|hay|dispongo\ de)\ (?:\w+\ ){0,2}(?:informaci\u00f3n
        |datos|respuesta)\b
  | \blo\ siento\b | \bno\ (?:puedo|encuentro|encontr\u00e9|pude)\b | \bno\ se\ menciona\b
  | \bnon\ (?:lo\ )?so\b | \bmi\ dispiace\b | \bnon\ (?:ho|ci\ sono)\ (?:\w+\ ){0,2}(?:informazioni|risposta|trovato)\b
  | \bnon\ (?:posso|riesco\ a)\b | \bnessuna\ informazione\b
  | \bn\u00e3o\ sei\b | \bn\u00e3o\ (?:tenho|h\u00e1|encontrei|consigo|posso)\b | \b(?:desculpe|lamento|sinto\ muito)\b
  | \bik\ weet\ (?:het\ |dat\ )?niet\b | \bhet\ spijt\ me\b | \bgeen\ (?:informatie|antwoord|idee)\b
        | \bik\ kan\ .{0,40}\bniet\ (?:vinden|beantwoorden|zeggen)\b
  | \bnie\ wiem\b | \bprzykro\ mi\b | \bprzepraszam\b | \bnie\ mog\u0119\ (?:odpowiedzie\u0107|znale\u017a\u0107)\b
  | \bbilmiyorum\b | \b\u00fczg\u00fcn\u00fcm\b
  | \u043d\u0435\ \u0437\u043d\u0430\u044e | \u0438\u0437\u0432\u0438\u043d\u0438\u0442\u0435
        | \u043d\u0435\u0442\ \u0438\u043d\u0444\u043e\u0440\u043c\u0430\u0446\u0438\u0438
        | \u043d\u0435\ \u043c\u043e\u0433\u0443\ (?:\u043e\u0442\u0432\u0435\u0442\u0438\u0442\u044c
        |\u043d\u0430\u0439\u0442\u0438)
  | \u4e0d\u77e5\u9053 | \u4e0d\u6e05\u695a | (?:\u65e0\u6cd5|\u7121\u6cd5)(?:\u56de\u7b54|\u786e\u5b9a|\u78ba\u5b9a
        |\u627e\u5230|\u63d0\u4f9b) | \u62b1\u6b49 | \u5bf9\u4e0d\u8d77 | \u5c0d\u4e0d\u8d77
        | \u6ca1\u6709(?:\u76f8\u5173|\u63d0\u4f9b)?(?:\u7684)?\u4fe1\u606f | \u672a\u63d0\u53ca
        | \u6ca1\u6709\u63d0\u5230
  | \u308f\u304b\u308a\u307e\u305b\u3093 | \u5206\u304b\u308a\u307e\u305b\u3093 | \u7533\u3057\u8a33
        | \u898b\u3064\u304b\u308a\u307e\u305b\u3093 | \u60c5\u5831(?:\u304c|\u306f)\u3042\u308a\u307e\u305b\u3093
        | \u8a18\u8f09(?:\u304c\u3042\u308a\u307e\u305b\u3093|\u3055\u308c\u3066\u3044\u307e\u305b\u3093)
  | \ubaa8\ub974\uaca0 | \uc54c\ \uc218\ \uc5c6 | \uc8c4\uc1a1 | \ucc3e\uc744\ \uc218\ \uc5c6
        | \uc815\ubcf4\uac00\ \uc5c6
  | \u0644\u0627\ \u0623\u0639\u0631\u0641 | \u0639\u0630\u0631\u0627
"""
_PATTERN = re.compile(f"{_ENGLISH} | {_OTHERS}", re.VERBOSE | re.IGNORECASE)
_LONGEST = 1_000
_ONWARDS = 12


def abstains(sentence: str, texts: Sequence[str] = ()) -> bool:
    """Return whether a sentence says that there is no answer. Looks at its first thousand characters.

    A phrase that goes on as in one of ``texts`` is told from there, such as a song's name.
    """
    # typographic apostrophes, and runs of blanks that bounded gaps would not bridge
    plain = " ".join(sentence[:_LONGEST].replace("\u2019", "'").split())
    found = _PATTERN.search(plain)
    if found is None:
        return False
    onwards = plain[found.start() : found.end() + _ONWARDS].lower()
    told = len(onwards) == found.end() - found.start() + _ONWARDS and any(onwards in text.lower() for text in texts)
    return not told
