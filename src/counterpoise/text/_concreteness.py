"""How concrete words are, from ratings by people: 0 for what is only thought, 1 for what can be touched.

Edits of abstract words change nothing that a picture shows, so negatives made of them teach a model of pictures nothing (arXiv:2604.13313).
Ratings of 40,000 English words are those of Brysbaert, Warriner and Kuperman (2014, Behavior Research Methods 46): means from 1 (abstract)
to 5 (concrete), :math:`c = (rating - 1) / 4`. Concreteness is not imageability, which is rated in other norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from counterpoise._english import FUNCTION_WORDS, WORD, base_forms
from counterpoise._errors import InputError, bad_input, check_range

__all__ = ["ConcretenessLexicon"]

KNOWN = "Percent_known"  # the column of shares of raters who knew the word
SEPARATORS = "\t;,|"


class ConcretenessLexicon:
    """Ratings of words in [0, 1], and the mean over the content words of a text.

    A word is looked up as it stands, then as what it may be a form of (``dogs``, ``riding``), then without its hyphens or by its parts.
    Two words that have a rating together, such as ``fire hydrant``, get it. Function words do not count, and words without a rating are
    left out of the mean.

    Parameters
    ----------
    ratings : mapping of str to float in [0, 1]
        Words, in any case, of one part or several.

    Raises
    ------
    InputError
        If there is no rating, a word is not text, or a rating is not in [0, 1].

    Examples
    --------
    >>> lexicon = ConcretenessLexicon({"dog": 0.75, "fire hydrant": 1.0, "fire": 0.9, "idea": 0.25, "red": 0.75})
    >>> lexicon.score("the dogs"), lexicon.score("a red fire hydrant"), lexicon.score(["dog", "idea"])
    (0.75, 0.875, 0.5)
    >>> lexicon.score("of the"), lexicon.coverage(["a red dog", "a green dog"])
    (nan, 0.75)
    """

    def __init__(self, ratings: Mapping[str, float]) -> None:
        if not isinstance(ratings, Mapping) or not ratings:
            bad_input("ratings", ratings, "a mapping of words to ratings in [0, 1]", "from_csv(path) reads one from a file.")
        for word, rating in ratings.items():
            if not isinstance(word, str) or not word.strip():
                bad_input("ratings", word, "words as text")
            check_range(f"ratings[{word!r}]", rating, low=0, high=1)
        self._ratings = {" ".join(word.lower().split()): float(rating) for word, rating in ratings.items()}
        self._pairs = any(" " in word for word in self._ratings)
        self._seen: dict[str, float] = {}  # of single words, as they were looked up

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        word: str = "Word",
        score: str = "Conc.M",
        lo: float = 1,
        hi: float = 5,
        separator: str | None = None,
        min_known: float | None = None,
    ) -> ConcretenessLexicon:
        """A lexicon from a delimited file with a header, plain or gzip-compressed.

        Parameters
        ----------
        path : str or Path
        word, score : str, default those of Brysbaert et al.
            Columns of the words and of their ratings. Rows without a rating are left out; of a word that comes twice, the last counts.
        lo, hi : float, default 1 and 5
            What is mapped to 0 and 1.
        separator : str, optional
            Default: tab, semicolon, comma or bar, whichever the header has most of (the file of Brysbaert et al. has tabs).
        min_known : float in [0, 1], optional
            Leave out words that a smaller share of the raters knew (column ``Percent_known``); the norms' authors advise 0.95 where rare
            words matter. Default: all words.

        Raises
        ------
        InputError
            If the file is not there or cannot be read, a column is missing, or a rating lies outside [lo, hi].
        """
        import polars as pl

        if not lo < hi:
            bad_input("lo and hi", f"{lo} and {hi}", "two numbers, the smaller one first")
        if min_known is not None:
            check_range("min_known", min_known, low=0, high=1)
        file = Path(path)
        if not file.is_file():
            bad_input("path", str(path), "a file with a header, one word in a row", "It is not there.")
        if separator is None:
            separator = _separator(file)
        try:
            table = pl.read_csv(file, separator=separator, infer_schema=False, quote_char=None if separator == "\t" else '"')
        except (pl.exceptions.PolarsError, OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}).") from error
        for name in (word, score, *([KNOWN] if min_known is not None else [])):
            if name not in table.columns:
                columns = ", ".join(table.columns[:8])
                bad_input("path", f"no column {name!r}", f"a file with it; this one has {columns}", "word= and score= name the columns.")
        if min_known is not None:
            table = table.filter(pl.col(KNOWN).cast(pl.Float64, strict=False) >= min_known)
        ratings = table.select(pl.col(word).alias("word"), pl.col(score).cast(pl.Float64, strict=False).alias("score"))
        ratings = ratings.filter(pl.col("word").str.strip_chars().str.len_chars() > 0, pl.col("score").is_finite())
        outside = ratings.filter(~pl.col("score").is_between(lo, hi))
        if outside.height:
            found = f"{outside['score'][0]:g} for {outside['word'][0]!r}"
            bad_input("path", found, f"ratings in [{lo:g}, {hi:g}]", "lo= and hi= say what the scale is.")
        if not ratings.height:
            bad_input("path", "no rating", f"a column {score!r} of numbers")
        return cls({name: (value - lo) / (hi - lo) for name, value in ratings.iter_rows()})

    def score(self, text: str | Sequence[str]) -> float:
        """Mean rating of the content words of a text, or of words as a sequence; NaN if none of them has one."""
        if isinstance(text, str) and text.isalpha():
            return self._word(text)
        found = [rating for rating in self._each(text) if not math.isnan(rating)]
        return math.fsum(found) / len(found) if found else math.nan

    def coverage(self, texts: Iterable[str | Sequence[str]]) -> float:
        """Share of the content words of many texts that have a rating; NaN if there is no content word."""
        if isinstance(texts, str):
            bad_input("texts", texts, "a list of texts", "[text] is one.")
        rated = total = 0
        for text in texts:
            for rating in self._each(text):
                total += 1
                rated += not math.isnan(rating)
        return rated / total if total else math.nan

    def __len__(self) -> int:
        return len(self._ratings)

    def __contains__(self, word: str) -> bool:
        return not math.isnan(self.score(word))

    def __repr__(self) -> str:
        return f"ConcretenessLexicon({len(self)} words)"

    def _each(self, text: str | Sequence[str]) -> Iterator[float]:
        """Ratings of the content words in their order; NaN for those without."""
        words = _words(text)
        skip = False
        for word, following in zip_longest(words, words[1:], fillvalue=""):
            if skip:
                skip = False
            elif self._pairs and following and (pair := self._pair(word, following)) is not None:
                skip = True
                yield pair
            elif word not in FUNCTION_WORDS:
                yield self._word(word)

    def _pair(self, word: str, following: str) -> float | None:
        for form in base_forms(following):
            if (rating := self._ratings.get(f"{word} {form}")) is not None:
                return rating
        return None

    def _word(self, word: str) -> float:
        found = self._seen.get(word)
        if found is None:
            found = self._seen[word] = self._look_up(word.lower())
        return found

    def _look_up(self, word: str) -> float:
        if word in FUNCTION_WORDS:
            return math.nan
        for form in base_forms(word):
            if form in self._ratings:
                return self._ratings[form]
        if "-" not in word:
            return math.nan
        for form in (word.replace("-", ""), word.replace("-", " ")):
            if form in self._ratings:
                return self._ratings[form]
        return self.score(word.split("-"))


def _words(text: str | Sequence[str]) -> list[str]:
    if isinstance(text, str):
        return WORD.findall(text.lower())
    if not isinstance(text, Sequence) or not all(isinstance(word, str) for word in text):
        bad_input("text", text, "a text, or a sequence of words")
    return [word.lower() for word in text]


def _separator(file: Path) -> str:
    import gzip

    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            header = lines.readline()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a table ({error}).") from error
    counts = [header.count(mark) for mark in SEPARATORS]
    if not any(counts):
        bad_input("path", header.strip(), "a header of at least two columns", "separator= says what stands between them.")
    return SEPARATORS[counts.index(max(counts))]
