"""Hard negative captions: the least edit of a caption that makes it false, at a word that a picture shows (arXiv:2604.13313).

What is unbalanced: most edits that are easily made change abstract words, which no picture shows, and teach a model of pictures nothing.
Here the words of a caption are rated by a lexicon, and of those that can be edited the most concrete one is. The paper writes its negatives
with large models; these are made by rules, which is why they are cheap, and as plain as they are.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch

from counterpoise._english import FUNCTION_WORDS, WORD, article, base_forms
from counterpoise._errors import bad_input, check_choice, check_range

from ._caption_words import (
    ATTRIBUTES,
    DETERMINERS,
    FRAME,
    GENDERED,
    HEADS,
    LINKS,
    MODIFIERS,
    PERSONS,
    PLAIN,
    POSTURES,
    beings,
    known_words,
)  # fmt: skip
from ._passes import _seed_of

__all__ = ["ConcreteNegatives", "Lexicon", "Negative"]

Candidates = Mapping[str, Sequence[str]] | Callable[[str], Sequence[str]]
Op = Literal["replace", "swap", "add"]
T = TypeVar("T")

OPS = ("replace", "swap", "add")
PREFER = ("concrete", "abstract", "random")


class Lexicon(Protocol):
    """Anything that rates a word from 0, abstract, to 1, concrete; NaN for a word it does not know."""

    def score(self, text: str, /) -> float: ...


class Negative(NamedTuple):
    """A caption that was made false.

    Attributes
    ----------
    text : str
        The edited caption.
    edited_span : (int, int)
        Where it was edited: ``caption[start:end]`` is the word that was replaced, the stretch from one swapped word to the other, or the
        noun before which a word was put.
    concreteness : float in [0, 1]
        Rating of the word that was edited, mean of the two that were swapped, of the noun before which one was put.
    op : {"replace", "swap", "add"}
    """

    text: str
    edited_span: tuple[int, int]
    concreteness: float
    op: Op


class ConcreteNegatives:
    """Edit captions where it is most concrete: caption in, a minimally edited :class:`Negative` out, or None.

    A word is *replaced* by another one of its kind, two words of one kind that stand in different places are *swapped*, or a color is
    *added* to a noun. Articles are made to agree, number and upper case are kept. A word is never exchanged with one that means the same or
    nearly so, with one that the caption has already, nor across "and" or "next to", where a swap says what was said before.

    The result depends on the seed, the epoch and the caption alone: not on the order of calls, the process or the worker. In a loader it
    belongs into the dataset's ``__getitem__``.

    Parameters
    ----------
    lexicon : object with ``score(word)``
        Such as :class:`counterpoise.text.ConcretenessLexicon`. Words it does not rate (NaN) are not edited.
    ops : sequence of {"replace", "swap", "add"}, default ("replace", "swap")
        One that is possible is drawn for each caption. An added color may be that of the thing in the picture: such a negative is sometimes
        true, which the other two are rarely.
    candidates : mapping or callable, optional
        From a word in lower case to the words that may stand in its place, of the same part of speech and number; callables get each word
        once. Words are swapped if one is a candidate of the other. Default: lists of about 400 words of everyday scenes. Candidates that
        are forms of the word, contain it or are close in meaning in those lists are passed over.
    prefer : {"concrete", "abstract", "random"}, default "concrete"
        Which of the words that can be edited is: the highest rated, the lowest, or any. The last two are for comparison.
    min_gap : float >= 0, default 0.0
        Only edit if the chosen word's rating differs from the mean of those that could have been chosen by at least this much; a caption
        whose words are all alike has none with a gap. Not looked at with ``prefer="random"``.
    generator : torch.Generator, int or None
        The seed, or a generator that is asked for one number; None is seed 0.

    Raises
    ------
    InputError
        If the lexicon rates nothing, an op or preference is unknown, candidates are neither a mapping nor callable or hold no words, or a
        caption is not text.

    Examples
    --------
    >>> from counterpoise.text import ConcretenessLexicon
    >>> lexicon = ConcretenessLexicon({"dog": 0.96, "cat": 0.97, "red": 0.81, "happy": 0.3, "elephant": 1.0, "ball": 1.0})
    >>> negatives = ConcreteNegatives(lexicon, ops=("replace",), candidates={"dog": ["elephant"], "happy": ["sad"]})
    >>> negatives("A dog is happy.")
    Negative(text='An elephant is happy.', edited_span=(2, 5), concreteness=0.96, op='replace')
    >>> ConcreteNegatives(lexicon, ops=("swap",))("A red ball, a blue one, a cat that chases a dog.").text
    'A red ball, a blue one, a dog that chases a cat.'
    >>> print(negatives("Nothing of that kind."))
    None
    """

    def __init__(
        self,
        lexicon: Lexicon,
        ops: Sequence[Op] = ("replace", "swap"),
        candidates: Candidates | None = None,
        prefer: Literal["concrete", "abstract", "random"] = "concrete",
        min_gap: float = 0.0,
        generator: torch.Generator | int | None = None,
    ) -> None:
        if not callable(getattr(lexicon, "score", None)):
            bad_input("lexicon", type(lexicon).__name__, "an object with score(word)", "counterpoise.text.ConcretenessLexicon is one.")
        if isinstance(ops, str) or not len(ops):
            bad_input("ops", ops, f"a sequence of {', '.join(OPS)}")
        for op in ops:
            check_choice("ops", op, OPS)
        if candidates is not None and not callable(candidates):
            candidates = _checked(candidates)
        check_choice("prefer", prefer, PREFER)
        check_range("min_gap", min_gap, low=0)
        self.lexicon, self.ops, self.prefer, self.min_gap = lexicon, tuple(dict.fromkeys(ops)), prefer, float(min_gap)
        self._candidates = candidates
        self._seed = _seed_of(generator)
        self._counts: Mapping[str, int] | None = None
        self._entries: dict[str, _Entry | None] = {}  # by word, as they were looked up
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Other edits of the same captions. Workers of a loader that are kept alive do not hear of it, as with samplers."""
        check_range("epoch", epoch, low=0, integer=True)
        self.epoch = int(epoch)
        self._key = hashlib.blake2b(f"{self._seed} {self.epoch}".encode(), digest_size=32).digest()

    def fit(self, captions: Iterable[str]) -> ConcreteNegatives:
        """Draw replacements as often as these captions use them, instead of all alike. Negatives then look more like captions: words that
        are rare in captions and frequent in negatives would give negatives away to a model that never sees the picture."""
        if isinstance(captions, str):
            bad_input("captions", captions, "a list of captions")
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(WORD.findall(caption.lower()))
        if not counts:
            bad_input("captions", "no word", "captions to count words in")
        self._counts = counts
        self._entries.clear()
        return self

    def __call__(self, caption: str) -> Negative | None:
        """The negative of one caption; None if it has no word that is rated and can be edited."""
        if not isinstance(caption, str):
            bad_input("caption", type(caption).__name__, "one caption as text", "For many: map(negatives, captions).")
        words = [_Word(match.start(), match.end(), match[0].lower()) for match in WORD.finditer(caption)]
        places = self._places(caption, words)
        if not places:
            return None
        draw = _Draws(caption, self._key)
        scene = _Scene(caption, words, places, frozenset(word.low for word in words) | frozenset(_kind(word.low) for word in words))
        for op in draw.shuffled(self.ops):
            edit = self._edit(op, scene, draw)
            if edit is not None:
                return edit
        return None

    def __repr__(self) -> str:
        return f"ConcreteNegatives({self.lexicon!r}, ops={self.ops!r}, prefer={self.prefer!r}, min_gap={self.min_gap:g})"

    # ---- which words -------------------------------------------------------------------------------------------------------------------

    def _places(self, caption: str, words: list[_Word]) -> list[_Place]:
        """The words that are rated and have candidates, where an edit of them alone makes sense."""
        places = []
        for number, word in enumerate(words):
            entry = self._entry(word.low)
            if entry is None:
                continue
            if entry.category and not _sensible(caption, words, number, entry):
                continue
            places.append(_Place(number, word, entry))
        return places

    def _entry(self, word: str) -> _Entry | None:
        try:
            return self._entries[word]
        except KeyError:
            entry = self._entries[word] = self._looked_up(word)
            return entry

    def _looked_up(self, word: str) -> _Entry | None:
        known = known_words().get(word)
        if self._candidates is None:
            if known is None:
                return None
            candidates = known.candidates
        else:
            given = self._candidates(word) if callable(self._candidates) else self._candidates.get(word, ())
            candidates = tuple((other, _kind(other)) for other in given if not _same(word, other))
        rating = float(self.lexicon.score(word)) if candidates else math.nan
        if math.isnan(rating):
            return None
        if not 0 <= rating <= 1:
            bad_input("lexicon", f"{rating} for {word!r}", "ratings in [0, 1]", "(rating - 1) / 4 maps 1..5.")
        listed = known if self._candidates is None else None
        return _Entry(
            rating,
            candidates,
            self._weights(candidates),
            _kind(word),
            category="" if listed is None else listed.category,
            noun=listed is not None and listed.noun,
        )

    def _weights(self, candidates: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """How often each is drawn: as often as it was counted, or all alike."""
        if self._counts is None:
            return (1,) * len(candidates)
        counts = tuple(self._counts.get(word.lower(), 0) for word, _ in candidates)
        return counts if any(counts) else (1,) * len(candidates)

    # ---- the edits ---------------------------------------------------------------------------------------------------------------------

    def _edit(self, op: str, scene: _Scene, draw: _Draws) -> Negative | None:
        if op == "replace":
            return self._replaced(scene, draw)
        return self._swapped(scene, draw) if op == "swap" else self._added(scene, draw)

    def _replaced(self, scene: _Scene, draw: _Draws) -> Negative | None:
        for place in self._in_order([(place.entry.rating, place) for place in scene.places], draw):
            entry = place.entry
            fits = [
                (word, weight)
                for (word, kind), weight in zip(entry.candidates, entry.weights, strict=True)
                if weight and kind not in scene.present and word.lower() not in scene.present
            ]
            if fits:
                new = draw.weighted(fits)
                return Negative(scene.edited([(place, new)]), place.word[:2], entry.rating, "replace")
        return None

    def _swapped(self, scene: _Scene, draw: _Draws) -> Negative | None:
        pairs = []
        for at, first in enumerate(scene.places):
            for second in scene.places[at + 1 :]:
                if first.entry.exchanges(second.entry, first.word.low, second.word.low) and not scene.pointless(first, second):
                    pairs.append(((first.entry.rating + second.entry.rating) / 2, (first, second)))
        for first, second in self._in_order(pairs, draw):
            text = scene.edited([(first, second.word.low), (second, first.word.low)])
            return Negative(text, (first.word.start, second.word.end), (first.entry.rating + second.entry.rating) / 2, "swap")
        return None

    def _added(self, scene: _Scene, draw: _Draws) -> Negative | None:
        nouns = [place for place in scene.places if _is_noun(place.word.low) and scene.before(place) in FRAME]
        colors = [word for kind in PLAIN[ATTRIBUTES].split() for word in kind.split("/")[:1] if word not in scene.present]
        for place in self._in_order([(place.entry.rating, place) for place in nouns], draw):
            new = colors[draw.below(len(colors))]
            return Negative(scene.edited([(place, new)], keep=True), place.word[:2], place.entry.rating, "add")
        return None

    def _in_order(self, rated: Sequence[tuple[float, T]], draw: _Draws) -> list[T]:
        """Those that may be edited, the preferred first; ties, and all if there is no preference, in a drawn order."""
        if not rated:
            return []
        shuffled = draw.shuffled(rated)
        if self.prefer == "random":
            return [item for _, item in shuffled]
        sign = -1 if self.prefer == "concrete" else 1
        mean = math.fsum(rating for rating, _ in rated) / len(rated)
        ordered = sorted(shuffled, key=lambda one: sign * one[0])
        # A mean of equal numbers may be rounded away from them.
        return [item for rating, item in ordered if not self.min_gap or sign * (mean - rating) >= self.min_gap]


class _Word(NamedTuple):
    """A word of a caption: where it is, and itself in lower case."""

    start: int
    end: int
    low: str


class _Entry(NamedTuple):
    """What is known of a word: its rating, candidates with their kinds, how often each is drawn; its own kind; its category in the built-in
    lists ("" outside), and whether it is a noun there."""

    rating: float
    candidates: tuple[tuple[str, str], ...]
    weights: tuple[int, ...]
    kind: str
    category: str
    noun: bool

    def exchanges(self, other: _Entry, own: str, its: str) -> bool:
        """Whether the two words may change places."""
        if self.kind == other.kind:
            return False
        return any(word.lower() == its for word, _ in self.candidates) or any(word.lower() == own for word, _ in other.candidates)


class _Place(NamedTuple):
    """A word that can be edited: the how many-th it is, where, and what is known of it."""

    number: int
    word: _Word
    entry: _Entry


class _Scene(NamedTuple):
    """A caption, its words, those that can be edited, and all words and kinds that occur."""

    caption: str
    words: list[_Word]
    places: list[_Place]
    present: frozenset[str]

    def before(self, place: _Place) -> str:
        return self.words[place.number - 1].low if place.number else ""

    def pointless(self, first: _Place, second: _Place) -> bool:
        """Whether the caption says the same, or nothing, with two words exchanged: a dog and a cat, a cat next to a dog, a red cup and a
        blue cup."""
        lows = [word.low for word in self.words]
        own, its = first.word.low, second.word.low
        if lows.count(own) > 1 or lows.count(its) > 1:
            return True
        between = lows[first.number + 1 : second.number]
        if not between and first.entry.category:
            return True
        linked = [word for word in between if word not in DETERMINERS]
        if all(word in LINKS or _is_noun(word) for word in linked) and (linked or "," in self.caption[first.word.end : second.word.start]):
            return True  # members of a list
        if first.entry.noun:
            while linked and (known := known_words().get(linked[-1])) is not None and not known.noun:
                linked.pop()  # adjectives
            return bool(linked) and (linked[-1] in LINKS or linked[-2:] == ["next", "to"])
        after = [_kind(lows[number + 1]) if number + 1 < len(lows) else "" for number in (first.number, second.number)]
        return bool(first.entry.category) and after[0] == after[1]

    def edited(self, changes: Sequence[tuple[_Place, str]], keep: bool = False) -> str:
        """The caption with new words at some places, or before them, in the order of the places."""
        parts, done = [], 0
        for place, new in changes:
            start, end, _ = place.word
            old = self.caption[start:end]
            if place.number and (previous := self.words[place.number - 1]).low in ("a", "an"):
                written = self.caption[previous.start : previous.end]
                parts.append(self.caption[done : previous.start] + _cased(article(new), old if _capitals(old) else written))
                done = previous.end
            parts.append(self.caption[done:start] + (f"{_cased(new, old)} {old}" if keep else _cased(new, old)))
            done = end
        return "".join([*parts, self.caption[done:]])


class _Draws:
    """Numbers that depend on a caption and a key alone: the digits of a long hash, and of its hash when they are used up."""

    def __init__(self, caption: str, key: bytes) -> None:
        self._digest = hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), key=key).digest()
        self._left = int.from_bytes(self._digest, "big")

    def below(self, n: int) -> int:
        if self._left < n << 32:  # or what is left would prefer small numbers
            self._digest = hashlib.blake2b(self._digest).digest()
            self._left = int.from_bytes(self._digest, "big")
        self._left, found = divmod(self._left, n)
        return found

    def shuffled(self, items: Sequence[T]) -> list[T]:
        rest = list(items)
        for i in range(len(rest) - 1, 0, -1):
            j = self.below(i + 1)
            rest[i], rest[j] = rest[j], rest[i]
        return rest

    def weighted(self, items: Sequence[tuple[T, int]]) -> T:
        sums = list(accumulate(weight for _, weight in items))
        return items[bisect_right(sums, self.below(sums[-1]))][0]


def _cased(word: str, like: str) -> str:
    """``word`` written as ``like`` is: in capitals, with a first one, or without."""
    if _capitals(like):
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _capitals(word: str) -> bool:
    return len(word) > 1 and word.isupper()


def _sensible(caption: str, words: list[_Word], number: int, entry: _Entry) -> bool:
    """Whether a word of the lists can be edited alone where it stands."""
    word = words[number]
    before = words[number - 1] if number else None
    after = words[number + 1] if number + 1 < len(words) else None
    left = before.low if before is not None and caption[before.end : word.start] == " " else ""  # what nothing but a space lies between
    right = after.low if after is not None and caption[word.end : after.start] == " " else ""
    if entry.noun:
        if right in HEADS or left in MODIFIERS or _is_noun(right) or _is_noun(left):
            return False  # part of a compound
        if entry.category == PERSONS and any(other.low in GENDERED for other in words):
            return False
    elif left == "to":
        return False  # a verb: to clean, to open
    elif entry.category == POSTURES and not any(other.low in beings() for other in words):
        return False
    return not (left and caption[word.start].isupper() and _is_name(caption, words, word))


def _is_name(caption: str, words: list[_Word], word: _Word) -> bool:
    """Whether a word with a capital inside a sentence is a name: other words have none, so it is not the way the caption is written."""
    return any(caption[other.start].islower() for other in words[1:] if other is not word and other.low not in FUNCTION_WORDS)


def _is_noun(word: str) -> bool:
    known = known_words().get(word)
    return known is not None and known.noun


def _kind(word: str) -> str:
    known = known_words().get(word.lower())
    return word.lower() if known is None else known.kind


def _same(word: str, other: str) -> bool:
    """Whether an exchange would hardly change what is said: forms of one word, one inside the other, or close in the lists."""
    a, b = word.lower(), other.lower()
    if a == b or _kind(a) == _kind(b) or a in base_forms(b) or b in base_forms(a):
        return True
    parts = [set(name.replace("-", " ").split()) for name in (a, b)]
    return parts[0] <= parts[1] or parts[1] <= parts[0]


def _checked(candidates: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(candidates, Mapping) or not candidates:
        bad_input("candidates", candidates, "a mapping of words to the words that may stand in their place, or a callable")
    checked = {}
    for word, others in candidates.items():
        if not isinstance(word, str) or isinstance(others, str) or not all(isinstance(other, str) and other.strip() for other in others):
            bad_input(f"candidates[{word!r}]", others, "a sequence of words")
        checked[word.lower()] = tuple(others)
    return checked
