"""As much English as captions need, by rules: words of a text, the article before a word, plurals, what a form may be a form of."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["FUNCTION_WORDS", "WORD", "article", "base_forms", "plural"]

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")  # letters and digits, with apostrophes and hyphens inside

_FUNCTION_WORDS = """
a an the this that these those some any each every either neither no another other others such both all several few many much more most
of in on at by for with from to into onto over under up down out off about above below across after against along among around as before
behind beside besides between beyond during inside near next outside past per since through throughout toward towards underneath until
upon via within without and or nor but so yet if than then while although because though unless whereas whether
i me my mine you your yours he him his she her hers it its we us our ours they them their theirs itself himself herself themselves
who whom whose which what where when why how there here
is are was were be been being am do does did doing done have has had having can could may might must shall should will would
not very too also just only quite rather really
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

_IRREGULAR = {
    "child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "goose": "geese",
    "mouse": "mice", "ox": "oxen", "sheep": "sheep", "deer": "deer", "fish": "fish", "aircraft": "aircraft", "knife": "knives",
    "wife": "wives", "life": "lives", "leaf": "leaves", "loaf": "loaves", "shelf": "shelves", "bookshelf": "bookshelves",
    "calf": "calves", "wolf": "wolves", "scarf": "scarves", "half": "halves", "tomato": "tomatoes", "potato": "potatoes",
}  # fmt: skip
_SINGULAR = {many: one for one, many in _IRREGULAR.items()}
_VERBS = {"lying": "lie", "dying": "die", "tying": "tie", "ate": "eat", "worn": "wear", "sat": "sit", "stood": "stand", "ran": "run"}

# Begins with a vowel that is heard: an hour, an umbrella - but a unicorn, a one-way street, a European.
_VOWEL = re.compile(r"[aeio]|u(?!ni(?![mn])|s[aeiu]|ti|r[aeiou]|ku|bi)|hour|honest|hono|heir|8|1[18](?!\d)")
_CONSONANT = re.compile(r"one(?!r)|once|eu|ewe|ouija")


def article(word: str) -> str:
    """The indefinite article before ``word``.

    >>> [article(word) for word in ("dog", "elephant", "hour", "unicorn", "uninvited", "one-way")]
    ['a', 'an', 'an', 'a', 'an', 'a']
    """
    low = word.lower()
    return "an" if _VOWEL.match(low) and not _CONSONANT.match(low) else "a"


def plural(noun: str) -> str:
    """
    >>> [plural(noun) for noun in ("dog", "bus", "berry", "toy", "woman", "knife", "sheep")]
    ['dogs', 'buses', 'berries', 'toys', 'women', 'knives', 'sheep']
    """
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("man") and noun not in ("human", "german"):
        return noun[:-3] + "men"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def base_forms(word: str) -> Iterator[str]:
    """What a lower-case form may be a form of, likeliest first, beginning with itself. Most of it are no words: look them up.

    >>> "berry" in base_forms("berries"), "stop" in base_forms("stopped"), "ride" in base_forms("riding"), "large" in base_forms("largest")
    (True, True, True, True)
    """
    yield word
    for known in (_SINGULAR, _VERBS):
        if word in known:
            yield known[word]
    if word.endswith("men"):
        yield word[:-3] + "man"
    for mark in ("'s", "’s"):
        if word.endswith(mark):
            yield word[: -len(mark)]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        if word.endswith("ies"):
            yield word[:-3] + "y"
        yield word[:-1]
        if word.endswith("es"):
            yield word[:-2]
    for ending in ("ing", "ed", "er", "est"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            stem = word[: -len(ending)]
            if stem[-1] == stem[-2]:
                yield stem[:-1]
            yield stem
            yield stem + "e"
            if stem[-1] == "i":
                yield stem[:-1] + "y"
