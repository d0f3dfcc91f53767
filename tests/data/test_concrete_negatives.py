from __future__ import annotations

import math
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from counterpoise._errors import InputError
from counterpoise.data import ConcreteNegatives, Negative
from counterpoise.data._caption_words import COUNTED, PLAIN, known_words


class Ratings:
    """A lexicon; words it does not name are rated ``other``."""

    def __init__(self, other: float = 0.5, **ratings: float) -> None:
        self.other, self.ratings = other, ratings

    def score(self, text: str) -> float:
        return self.ratings.get(text, self.other)


CAPTIONS = [
    "A dog sits on a red chair in front of a window.",
    "Two women are walking a large brown horse along the beach.",
    "a plate of broccoli on a wooden table",
    "THE CAT IS UNDER A TABLE",
    "A man in a blue shirt holds a frisbee while a woman watches.",
]


# ---- what it does -----------------------------------------------------------------------------------------------------------------------


def test_the_most_concrete_word_is_edited() -> None:
    caption = "A happy dog on a red sofa."
    lexicon = Ratings(math.nan, happy=0.2, dog=0.9, red=0.7, sofa=0.8)
    for prefer, word in (("concrete", "dog"), ("abstract", "happy")):
        found = ConcreteNegatives(lexicon, ops=("replace",), prefer=prefer)(caption)  # type: ignore[arg-type]
        assert found is not None and caption[slice(*found.edited_span)] == word
        assert found.concreteness == lexicon.score(word) and found.op == "replace"
        start, end = found.edited_span
        assert found.text.startswith(caption[: start - 2]) and found.text.endswith(caption[end:]) and found.text != caption
    spans = {ConcreteNegatives(lexicon, ops=("replace",), prefer="random", generator=seed)(caption).edited_span for seed in range(60)}  # type: ignore[union-attr]
    assert spans == {(2, 7), (8, 11), (17, 20), (21, 25)}


@pytest.mark.parametrize(
    ("caption", "candidates", "text"),
    [
        ("A dog barks.", {"dog": ["elephant"]}, "An elephant barks."),
        ("An elephant eats.", {"elephant": ["dog"]}, "A dog eats."),
        ("It is an old dog.", {"old": ["young"]}, "It is a young dog."),
        ("Dogs bark.", {"dogs": ["cats"]}, "Cats bark."),
        ("A DOG BARKS", {"dog": ["elephant"]}, "AN ELEPHANT BARKS"),
        ("an hour", {"hour": ["year"]}, "a year"),
        ("the dog, a cat", {"cat": ["ox"]}, "the dog, an ox"),
        ("banana dog", {"dog": ["ox"]}, "banana ox"),  # whose last letter is no article
        ("über Köln: ein Dom", {"dom": ["turm"]}, "über Köln: ein Turm"),
    ],
)
def test_case_and_articles(caption: str, candidates: dict[str, list[str]], text: str) -> None:
    found = ConcreteNegatives(Ratings(), ops=("replace",), candidates=candidates)(caption)
    assert found is not None and found.text == text
    assert caption[slice(*found.edited_span)].lower() in candidates


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("A dog chases an elephant.", "An elephant chases a dog."),
        ("A red car behind a blue truck.", None),  # what is swapped is drawn: two ways
        ("a big boat is going down a small river", "a small boat is going down a big river"),
        ("A dog and a cat", None),
        ("A dog with a cat", None),
        ("a zebra standing next to an elephant", None),
        ("a bathroom with a toilet, a sink, a tub", None),
        ("A gray chair and a black chair", None),
        (
            "A blue cup behind a yellow plate in a yellow room",
            "A blue plate behind a yellow cup in a yellow room",
        ),  # not the colors: yellow twice
        ("Two dogs chase a cat.", None),  # another number
        ("A dog chases a puppy.", None),  # one kind
        ("A dog is here.", None),
    ],
)
def test_swaps_say_something_else(caption: str, text: str | None) -> None:
    found = ConcreteNegatives(Ratings(), ops=("swap",))(caption)
    if "behind a blue truck" in caption:
        texts = {ConcreteNegatives(Ratings(), ops=("swap",), generator=seed)(caption).text for seed in range(20)}  # type: ignore[union-attr]
        assert texts == {"A blue car behind a red truck.", "A red truck behind a blue car."}
    elif text is None:
        assert found is None
    else:
        assert found is not None and found.text == text and found.op == "swap"


def test_a_swap_is_rated_by_both_words_and_spans_them() -> None:
    caption = "A dog chases an elephant."
    found = ConcreteNegatives(Ratings(dog=0.8, elephant=1.0), ops=("swap",))(caption)
    assert found == Negative("An elephant chases a dog.", (2, 24), 0.9, "swap")


def test_words_of_ones_own_are_swapped_where_one_is_a_candidate_of_the_other() -> None:
    digits = {word: [other for other in ("one", "two", "six") if other != word] for word in ("one", "two", "six")}
    found = ConcreteNegatives(Ratings(), ops=("swap",), candidates=digits)("two six")
    assert found is not None and found.text == "six two"
    assert ConcreteNegatives(Ratings(), ops=("swap",), candidates=digits)("six six") is None


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog is here.", r"A (\w+) dog is here\."),
        ("An elephant.", None),  # the article of what is added is checked below
        ("The red dog.", None),
        ("A tennis ball.", None),
    ],
)
def test_a_color_is_added_to_a_noun(caption: str, expected: str | None) -> None:
    import re

    found = [ConcreteNegatives(Ratings(), ops=("add",), generator=seed)(caption) for seed in range(20)]
    if expected is not None:
        matches = [re.fullmatch(expected, one.text) for one in found if one is not None]
        assert all(matches) and len({match[1] for match in matches if match}) > 3
        assert {(one.op, one.edited_span, one.concreteness) for one in found if one is not None} == {("add", (2, 5), 0.5)}
    elif caption == "An elephant.":
        assert all(one is not None and one.text.startswith("A ") and one.text.endswith(" elephant.") for one in found)
    else:
        assert found == [None] * 20


def test_a_word_is_not_exchanged_with_its_like() -> None:
    # A form of it, a part of it, one that contains it, one that is close in meaning, one that the caption has.
    like = ["DOG", "dogs", "hot dog", "dog-sled", "puppy", "cat"]
    negatives = ConcreteNegatives(Ratings(), ops=("replace",), candidates={"dog": like})
    assert negatives("A dog sees a cat.") is None
    assert negatives("A dog sees a bone.") == Negative("A cat sees a bone.", (2, 5), 0.5, "replace")
    lists = ConcreteNegatives(Ratings(math.nan, couch=0.9), ops=("replace",))
    texts = {ConcreteNegatives(Ratings(math.nan, couch=0.9), ops=("replace",), generator=seed)("a couch").text for seed in range(80)}  # type: ignore[union-attr]
    assert "a sofa" not in texts and {"a bed", "a chair"} <= texts and lists("a couch") is not None


@pytest.mark.parametrize(
    "caption",
    [
        "a hot dog", "a dog house", "a truck bed", "a bus stop", "a tennis ball",  # compounds
        "a man and his hat's owner", "she is a woman",  # pronouns would give it away
        "a show of the Navy Brown Angels",  # a name
        "a lamp sitting there standing",  # things do both
    ],
)  # fmt: skip
def test_words_that_cannot_be_edited_alone(caption: str) -> None:
    lexicon = Ratings(
        math.nan, **dict.fromkeys(("dog", "truck", "bed", "bus", "ball", "man", "woman", "brown", "sitting", "standing"), 0.9)
    )
    assert ConcreteNegatives(lexicon)(caption) is None
    assert ConcreteNegatives(lexicon)("There is a dog.") is not None


def test_none_where_nothing_is_rated_or_can_be_edited() -> None:
    assert ConcreteNegatives(Ratings(math.nan))("A dog.") is None
    negatives = ConcreteNegatives(Ratings())
    assert negatives("") is None and negatives("...") is None and negatives("colorless ideas sleep furiously") is None


def test_a_gap_is_asked_for() -> None:
    lexicon = Ratings(math.nan, dog=0.9, red=0.5)
    for prefer in ("concrete", "abstract"):
        for gap, found in ((0.0, True), (0.19, True), (0.21, False)):
            negatives = ConcreteNegatives(lexicon, ops=("replace",), min_gap=gap, prefer=prefer)  # type: ignore[arg-type]
            assert (negatives("a red dog") is not None) == found
    assert ConcreteNegatives(lexicon, min_gap=0.1)("a dog") is None
    even = ConcreteNegatives(Ratings(0.1), ops=("replace",))
    assert even("a red dog on a black sofa near a white cat") is not None


# ---- frequencies ------------------------------------------------------------------------------------------------------------------------


def test_replacements_are_drawn_as_often_as_captions_use_them() -> None:
    negatives = ConcreteNegatives(Ratings(), ops=("replace",), candidates={"dog": ["cat", "horse", "cow", "zebra"]})
    plain = Counter(negatives(f"dog {k}").text.split()[0] for k in range(2000))  # type: ignore[union-attr]
    assert plain.keys() == {"cat", "horse", "cow", "zebra"} and max(plain.values()) < 1.3 * min(plain.values())
    assert negatives.fit(["cat Cat cat horse"] * 3) is negatives
    fitted = Counter(negatives(f"dog {k}").text.split()[0] for k in range(2000))  # type: ignore[union-attr]
    assert fitted.keys() == {"cat", "horse"} and 2.5 < fitted["cat"] / fitted["horse"] < 3.6
    assert negatives.fit(["nothing of that kind"])("dog") is not None  # then all alike again


# ---- seeds and workers ------------------------------------------------------------------------------------------------------------------


def test_it_depends_on_seed_epoch_and_caption_alone() -> None:
    a, b = ConcreteNegatives(Ratings(), generator=3), ConcreteNegatives(Ratings(), generator=3)
    first = [a(caption) for caption in CAPTIONS]
    assert [b(caption) for caption in reversed(CAPTIONS)] == first[::-1]
    assert [ConcreteNegatives(Ratings(), generator=4)(caption) for caption in CAPTIONS] != first
    a.set_epoch(1)
    assert [a(caption) for caption in CAPTIONS] != first
    a.set_epoch(0)
    assert [pickle.loads(pickle.dumps(a))(caption) for caption in CAPTIONS] == first
    drawn = ConcreteNegatives(Ratings(), generator=torch.Generator().manual_seed(1))
    again = ConcreteNegatives(Ratings(), generator=torch.Generator().manual_seed(1))
    assert [drawn(caption) for caption in CAPTIONS] == [again(caption) for caption in CAPTIONS]


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    ConcreteNegatives(Ratings())(CAPTIONS[0])
    assert torch.equal(torch.get_rng_state(), before)


class Edited(Dataset[str]):
    def __init__(self) -> None:
        self.negatives = ConcreteNegatives(Ratings(), generator=5)

    def __len__(self) -> int:
        return 3 * len(CAPTIONS)

    def __getitem__(self, i: int) -> str:
        found = self.negatives(CAPTIONS[i % len(CAPTIONS)])
        return "" if found is None else found.text


def test_workers_of_a_loader_give_the_same() -> None:
    alone = [Edited()[i] for i in range(len(Edited()))]
    batches = DataLoader(Edited(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert [text for batch in batches for text in batch] == alone


# ---- the lists --------------------------------------------------------------------------------------------------------------------------


def test_the_lists_hold_each_word_once_with_candidates_of_its_own_category_and_another_kind() -> None:
    plain = [word for line in (*COUNTED.values(), *PLAIN.values()) for kind in line.split() for word in kind.split("/")]
    assert [word for word, count in Counter(plain).items() if count > 1] == []
    words = known_words()
    assert len(words) > 380
    for word, known in words.items():
        assert known.candidates, word
        for other, kind in known.candidates:
            assert words[other].category == known.category and words[other].kind == kind != known.kind
    assert {other for other, _ in words["dogs"].candidates} >= {"cats", "sheep"} and words["puppies"].kind == words["dog"].kind


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lexicon": {"dog": 1.0}}, "lexicon: got 'dict'; expected an object with score"),
        ({"ops": ()}, "ops"),
        ({"ops": "swap"}, "ops"),
        ({"ops": ("swop",)}, "Did you mean 'swap'"),
        ({"candidates": {}}, "candidates"),
        ({"candidates": ["cat"]}, "candidates"),
        ({"candidates": {"dog": "cat"}}, "candidates\\['dog'\\]"),
        ({"candidates": {"dog": [""]}}, "candidates\\['dog'\\]"),
        ({"prefer": "vivid"}, "prefer"),
        ({"min_gap": -0.1}, "min_gap"),
        ({"generator": -1}, "generator"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConcreteNegatives(**({"lexicon": Ratings()} | options))


def test_bad_calls() -> None:
    negatives = ConcreteNegatives(Ratings())
    with pytest.raises(InputError, match=r"caption: got 'list'; .* map\(negatives, captions\)"):
        negatives(["a dog"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="captions"):
        negatives.fit("a dog")
    with pytest.raises(InputError, match="captions: got no word"):
        negatives.fit(["..."])
    with pytest.raises(InputError, match="epoch"):
        negatives.set_epoch(-1)
    with pytest.raises(InputError, match=r"lexicon: got 4.6 for 'dog'; expected ratings in \[0, 1\]"):
        ConcreteNegatives(Ratings(dog=4.6))("a dog")
