"""Words of captions that may take each other's place: same part of speech and number, and visibly not the same.

A line is one category. Words of it that are joined by a slash are close in meaning, or one is a kind of the other, so that they never take
each other's place: the edited caption could still be true. Words with two meanings (an orange, a glass, a bat) are left out.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from counterpoise._english import plural

__all__ = [
    "ATTRIBUTES", "DETERMINERS", "FRAME", "GENDERED", "HEADS", "LINKS", "MODIFIERS", "PERSONS", "PLAIN", "POSTURES", "Known", "beings",
    "known_words",
]  # fmt: skip

PERSONS, ANIMALS, POSTURES = "persons", "animals", "postures"
ATTRIBUTES = "colors"  # what is added to a noun

# Nouns that are counted: their plurals are added.
COUNTED = {
    PERSONS: "man/guy/gentleman/boy woman/lady/girl",
    ANIMALS: "dog/puppy cat/kitten horse/pony cow/bull/calf sheep/lamb goat elephant giraffe zebra monkey rabbit/bunny bear lion tiger "
    "deer pig camel fox bird/duck/seagull/pigeon/parrot/owl/goose",
    "vehicles": "car/taxi/cab/sedan/van/suv/jeep truck/lorry/pickup bus train/tram/trolley motorcycle/motorbike/scooter/bicycle/bike "
    "boat/ship/sailboat/canoe airplane/plane/jet helicopter tractor",
    "furniture": "chair/stool/armchair table/desk couch/sofa bed bench dresser/cabinet/cupboard bookcase/bookshelf",
    "dishes": "pizza sandwich/burger/hamburger cake/cupcake donut/doughnut salad pie cookie",
    "fruit": "banana apple carrot tomato potato lemon strawberry pear cucumber",
    "vessels": "plate/dish/platter/tray bowl cup/mug bottle basket box vase bucket jar",
    "cutlery": "knife fork spoon",
    "clothes": "hat/cap helmet shirt/t-shirt/blouse/sweater/sweatshirt jacket/coat dress/skirt scarf apron necktie",
    "baggage": "backpack suitcase purse/handbag",
    "gear": "frisbee kite skateboard surfboard snowboard ball",
    "devices": "laptop/computer phone/cellphone/smartphone television/tv camera keyboard lamp clock",
    "rooms": "kitchen bathroom/restroom bedroom office classroom",
    "waters": "river/stream lake/pond ocean/sea",
    "buildings": "house barn church castle skyscraper",
    "appliances": "refrigerator/fridge/freezer oven/stove microwave toaster dishwasher",
    "fixtures": "toilet sink bathtub/tub",
    "plants": "tree bush/shrub flower/rose/tulip cactus",
}
# All other words, as they stand.
PLAIN = {
    "foods": "broccoli rice bread/toast cheese pasta/spaghetti soup meat/beef/steak/bacon/ham lettuce/spinach",
    "drinks": "coffee wine beer milk juice tea water",
    "grounds": "grass snow sand mud/dirt",
    "legwear": "pants/trousers/jeans shorts",
    ATTRIBUTES: "red blue green yellow black white brown pink purple gray/grey",
    "patterns": "striped spotted plaid/checkered",
    "materials": "wooden metal/steel plastic brick stone leather",
    "sizes": "large/big/huge/giant small/little/tiny",
    "moods": "happy/smiling/cheerful sad/crying angry",
    "looks": "beautiful/pretty/lovely/attractive ugly",
    "styles": "modern/contemporary antique/vintage/old-fashioned",
    "wetness": "wet dry",
    "doors": "open closed/shut",
    "cleanliness": "clean dirty/filthy",
    "bustle": "busy/crowded quiet/deserted",
    "skies": "sunny cloudy/overcast rainy",
    "numbers": "two three four five six seven eight nine ten",
    POSTURES: "standing sitting/seated lying/laying/sleeping/resting walking running/jogging jumping/leaping",
    "meals": "eating drinking",
    "efforts": "pushing pulling",
}
UNCOUNTED = ("foods", "drinks", "grounds", "legwear")  # the nouns among them


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What may stand before an added color: a color before another adjective, or inside a compound, sounds wrong.
FRAME = _words("a an the two three four five six seven eight nine ten large big small little")
# Of a compound the last word says what it is, and no word in it can be exchanged alone: bus stop, tennis ball, hot dog.
HEADS = _words(
    "stop station track tracks court player players game match sign signs light lights hydrant paper seat seats room rooms lot curtain pot "
    "rack mouse top tops driver rider stand shop store park field house yard fence bell horn engine wheel wheels tire tires food juice "
    "cream pan board boards ball balls bat racket racquet bin case cutter handle cover cloth tag skin head face"
)
MODIFIERS = _words(
    "hot teddy tennis soccer dining coffee picnic baseball cell fire traffic stop water wine beer toy stuffed christmas computer kitchen "
    "bathroom toilet tea egg ice polar sea living bed bath bus train dog cat wii panda"
)
# A pronoun elsewhere in the caption would give away which persons were exchanged.
GENDERED = _words("he him his himself she her hers herself")
# Who sits or stands; of a thing on a table, both are said of the same picture.
BEINGS = _words(
    "people person persons child children kid kids baby toddler couple family crowd player players skier skiers surfer surfers snowboarder "
    "skateboarder rider riders animal animals group officer worker workers"
)
# What two nouns say around these words they say as well when they are exchanged.
LINKS = _words("and or with near beside by alongside")
DETERMINERS = _words("a an the some two three four five")


class Known(NamedTuple):
    """What may stand in place of a word, each with its kind; the word's own kind; its category, and whether it is a noun."""

    candidates: tuple[tuple[str, str], ...]
    kind: str
    category: str
    noun: bool


@cache
def known_words() -> dict[str, Known]:
    """Every word of the lists, in lower case."""
    found: dict[str, Known] = {}
    for category, line in COUNTED.items():
        for form in (str, plural):
            _take(found, category, [[form(word) for word in kind.split("/")] for kind in line.split()], noun=True)
    for category, line in PLAIN.items():
        _take(found, category, [kind.split("/") for kind in line.split()], noun=category in UNCOUNTED)
    return found


def _take(found: dict[str, Known], category: str, kinds: list[list[str]], noun: bool) -> None:
    # A kind has one name in both numbers, so that `dog` and `puppies` are known to be the same.
    for position, words in enumerate(kinds):
        others = tuple((word, f"{category}/{other}") for other, rest in enumerate(kinds) if other != position for word in rest)
        for word in words:
            found[word] = Known(others, f"{category}/{position}", category, noun)


@cache
def beings() -> frozenset[str]:
    """Words of persons and animals."""
    return BEINGS | {word for word, known in known_words().items() if known.category in (PERSONS, ANIMALS)}
