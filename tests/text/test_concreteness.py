from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import pytest

from counterpoise._errors import InputError
from counterpoise.text import ConcretenessLexicon

HEADER = "Word\tBigram\tConc.M\tPercent_known\n"
ROWS = "dog\t0\t4.6\t1\nIdea\t0\t1.4\t1\nfire hydrant\t1\t5\t0.97\nfire\t0\t4.2\t1\nride\t0\t3\t1\nzyzzyva\t0\t2\t0.5\nunrated\t0\t\t1\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.txt"
    path.write_text(HEADER + ROWS)
    return path


def test_a_file_of_ratings(file: Path) -> None:
    lexicon = ConcretenessLexicon.from_csv(file)
    assert len(lexicon) == 6 and repr(lexicon) == "ConcretenessLexicon(6 words)"
    assert lexicon.score("dog") == pytest.approx(0.9) and lexicon.score("idea") == pytest.approx(0.1)
    assert "dog" in lexicon and "unrated" not in lexicon


def test_words_that_few_knew_can_be_left_out(file: Path) -> None:
    assert "zyzzyva" in ConcretenessLexicon.from_csv(file)
    assert "zyzzyva" not in ConcretenessLexicon.from_csv(file, min_known=0.95)
    assert len(ConcretenessLexicon.from_csv(file, min_known=0.98)) == 4


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_separators_are_found(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "ratings.csv.gz"
    path.write_bytes(gzip.compress(f'w{separator}r\ndog{separator}9\n"ice cream"{separator}7\n'.encode()))
    for given in (None, separator):
        lexicon = ConcretenessLexicon.from_csv(path, word="w", score="r", lo=0, hi=10, separator=given)
        assert lexicon.score("dog") == 0.9 and lexicon.score("ice cream") == 0.7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dogs", 0.9),
        ("a dog rides", (0.9 + 0.5) / 2),
        ("riding an idea", (0.5 + 0.1) / 2),
        ("two fire hydrants", 1.0),  # "two" has no rating here
        ("fire near a hydrant", 0.8),
        ("dog-fire", (0.9 + 0.8) / 2),
        ("fire-hydrant", 1.0),
        (["dog", "idea"], 0.5),
        (("Dog",), 0.9),
        ("DOG", 0.9),
        ("the unknown", None),
        ("", None),
        ([], None),
    ],
)
def test_scores(file: Path, text: Any, expected: float | None) -> None:
    found = ConcretenessLexicon.from_csv(file).score(text)
    assert math.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-12)


def test_coverage_counts_content_words(file: Path) -> None:
    lexicon = ConcretenessLexicon.from_csv(file)
    assert lexicon.coverage(["the dog of an idea", "a fire hydrant by the xylophone", ["dog", "qwert"]]) == 4 / 6
    assert math.isnan(lexicon.coverage(["of the", ""]))


def test_the_norms(data_folder: Path) -> None:
    path = data_folder / "concreteness" / "Concreteness_ratings_Brysbaert_et_al_BRM.txt.gz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    lexicon = ConcretenessLexicon.from_csv(path)
    assert len(lexicon) == 39954
    assert lexicon.score("banana") == 1.0 and lexicon.score("although") != lexicon.score("although")
    assert lexicon.score("hope") < 0.3 < 0.6 < lexicon.score("red") < lexicon.score("zebras")
    assert len(ConcretenessLexicon.from_csv(path, min_known=0.95)) < 37000


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ({}, "ratings"),
        ([("dog", 1)], "ratings"),
        ({"dog": 4.6}, "ratings\\['dog'\\]: got 4.6; expected a number in \\[0, 1\\]"),
        ({"dog": math.nan}, "ratings\\['dog'\\]"),
        ({"": 0.5}, "ratings"),
        ({1: 0.5}, "ratings"),
    ],
)
def test_bad_ratings(ratings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConcretenessLexicon(ratings)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "It is not there"),
        ("Word\n", {}, "two columns"),
        ("Word\tRating\ndog\t4\n", {}, "no column 'Conc.M'"),
        (HEADER, {}, "no rating"),
        (HEADER + ROWS, {"hi": 4}, "got 4.6 for 'dog'; expected ratings in \\[1, 4\\]"),
        (HEADER + ROWS, {"lo": 5, "hi": 1}, "lo and hi"),
        (HEADER + ROWS, {"min_known": 2}, "min_known"),
        ("Word\tConc.M\ndog\t4\n", {"min_known": 0.9}, "no column 'Percent_known'"),
        (b"\xff\xfe\x00", {}, "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, content: Any, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "ratings.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        ConcretenessLexicon.from_csv(path, **options)


def test_a_text_is_not_a_list_of_texts(file: Path) -> None:
    lexicon = ConcretenessLexicon.from_csv(file)
    with pytest.raises(InputError, match="texts"):
        lexicon.coverage("a dog")
    with pytest.raises(InputError, match="text"):
        lexicon.score([1, 2])  # type: ignore[list-item]
