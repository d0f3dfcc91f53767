from __future__ import annotations

import pytest

from counterpoise._english import FUNCTION_WORDS, WORD, article, base_forms, plural

AN = "apple Elephant igloo orange umbrella usher hour honest heir unimportant uninvited 8 18 11"
A = "dog user usual unicorn uniform Europe ewe one once yellow utility ukulele hat honey 110"


@pytest.mark.parametrize(("word", "expected"), [(word, "an") for word in AN.split()] + [(word, "a") for word in A.split()])
def test_article(word: str, expected: str) -> None:
    assert article(word) == expected


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"), ("bench", "benches"), ("box", "boxes"), ("dish", "dishes"), ("strawberry", "strawberries"), ("donkey", "donkeys"),
        ("man", "men"), ("gentleman", "gentlemen"), ("human", "humans"), ("sheep", "sheep"), ("scarf", "scarves"), ("potato", "potatoes"),
    ],
)  # fmt: skip
def test_plural_and_back(one: str, many: str) -> None:
    assert plural(one) == many
    assert one in base_forms(many)


@pytest.mark.parametrize(
    ("form", "base"),
    [("riding", "ride"), ("sitting", "sit"), ("played", "play"), ("tried", "try"), ("biggest", "big"), ("dog's", "dog"), ("lying", "lie")],
)
def test_base_forms_begin_with_the_form_itself(form: str, base: str) -> None:
    found = list(base_forms(form))
    assert found[0] == form and base in found


def test_words_and_function_words() -> None:
    assert WORD.findall("A t-shirt, the dog's toy_box; über-cool 2 cups") == [
        "A",
        "t-shirt",
        "the",
        "dog's",
        "toy",
        "box",
        "über-cool",
        "2",
        "cups",
    ]
    assert {"the", "on", "is", "their"} <= FUNCTION_WORDS and not {"dog", "red", "two", "standing"} & FUNCTION_WORDS
