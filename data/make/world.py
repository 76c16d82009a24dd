"""An invented small world: its people, places and things, and the words to tell of them.

Everything is drawn from one seed, so that the same world comes out on every machine.
"""
import random
from dataclasses import dataclass
from itertools import product

SEED = 20_26

FIRST = ["Ma", "Be", "To", "Li", "Ka", "Jo", "Ru", "Se", "Ni", "Da", "Fe", "Go", "Hu", "Pi", "Va", "Wi"]
LAST = ["ra", "lin", "dor", "ven", "ssa", "mir", "tta", "ko", "rik", "na", "bel", "gar"]
TOWNS = ["Tarn", "Holm", "Brack", "Velden", "Orsa", "Pell", "Quay", "Stow", "Marsh", "Dunmore", "Ilver", "Fenwick",
         "Rook", "Lunde", "Ash", "Corrie", "Hale", "Wyke", "Tolland", "Skerry"]
TRADES = ["baker", "smith", "miller", "weaver", "potter", "fisher", "carter", "teacher", "doctor", "sailor", "tailor",
          "mason", "painter", "farmer", "hunter", "clerk", "cook", "singer", "guard", "printer"]
PETS = ["cat", "dog", "goat", "hen", "pony", "crow", "duck", "donkey", "rabbit", "goose", "pig", "owl", "sheep", "mule"]
COLORS = ["red", "blue", "green", "white", "black", "yellow", "brown", "gray"]
ROOMS = ["barn", "kitchen", "cellar", "garden", "attic", "hall", "stable", "tower", "mill", "shed", "chapel", "well",
         "workshop", "harbor", "forest", "school"]
PLURALS = {
    "lamp": "lamps", "rope": "ropes", "box": "boxes", "knife": "knives", "cup": "cups", "brush": "brushes",
    "key": "keys", "coat": "coats", "hat": "hats", "shelf": "shelves", "book": "books", "map": "maps",
    "bell": "bells", "dish": "dishes", "ring": "rings", "glass": "glasses", "axe": "axes", "drum": "drums",
    "spoon": "spoons", "net": "nets", "letter": "letters", "candle": "candles", "basket": "baskets", "berry": "berries",
    "fox": "foxes", "wolf": "wolves", "mouse": "mice", "child": "children", "man": "men", "woman": "women",
    "foot": "feet", "tooth": "teeth", "city": "cities", "story": "stories", "leaf": "leaves", "loaf": "loaves",
    "church": "churches", "bus": "buses", "baby": "babies", "lady": "ladies", "thief": "thieves", "potato": "potatoes",
    "hero": "heroes", "bench": "benches", "torch": "torches", "bridge": "bridges", "wagon": "wagons", "stone": "stones",
    "apple": "apples", "cherry": "cherries", "pear": "pears", "plum": "plums", "window": "windows", "door": "doors",
    "chair": "chairs", "table": "tables", "wheel": "wheels", "boat": "boats", "flag": "flags", "watch": "watches",
}
THINGS = list(PLURALS)[:24]
PASTS = {
    "walks": "walked", "sings": "sang", "runs": "ran", "sleeps": "slept", "works": "worked", "waits": "waited",
    "swims": "swam", "dances": "danced", "laughs": "laughed", "weeps": "wept", "rests": "rested", "reads": "read",
    "writes": "wrote", "stands": "stood", "sits": "sat", "falls": "fell", "rides": "rode", "plays": "played",
    "shouts": "shouted", "whispers": "whispered", "eats": "ate", "drinks": "drank", "digs": "dug", "hides": "hid",
    "prays": "prayed", "paints": "painted", "cooks": "cooked", "stays": "stayed", "thinks": "thought",
    "speaks": "spoke", "dreams": "dreamed", "wakes": "woke", "fights": "fought", "wins": "won", "climbs": "climbed",
    "jumps": "jumped", "counts": "counted", "listens": "listened", "stumbles": "stumbled", "kneels": "knelt",
}
OPPOSITES = {
    "hot": "cold", "big": "small", "old": "young", "tall": "short", "fast": "slow", "rich": "poor", "loud": "quiet",
    "wet": "dry", "light": "dark", "hard": "soft", "full": "empty", "early": "late", "near": "far", "open": "closed",
    "strong": "weak", "clean": "dirty", "high": "low", "thick": "thin", "wide": "narrow", "sweet": "bitter",
    "brave": "afraid", "sharp": "blunt", "cheap": "dear", "deep": "shallow",
}
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}
GLAD = ["I won the race", "my child is well again", "the harvest was rich", "we danced all night", "the sun is out",
        "I found my ring", "my friend came home", "the bread was sweet", "the roof is mended", "we sang together",
        "the boat came back", "I have a new coat", "the well is full", "they gave me a prize", "the cat had kittens"]
SAD = ["I lost the race", "my child is ill", "the harvest was poor", "we wept all night", "the storm took the roof",
       "I lost my ring", "my friend went away", "the bread was bitter", "the roof is broken", "we had to part",
       "the boat went down", "my coat is torn", "the well is dry", "they took my house", "the cat ran away"]
LARGEST_NUMBER = 60
LARGEST_TERM = 20
FACTS = ("town", "trade", "pet", "friend", "year")


@dataclass(frozen=True)
class Person:
    """One inhabitant, with the five facts that the prose tells of everyone."""

    name: str
    woman: bool
    town: str
    trade: str
    pet: str
    friend: str
    year: int

    @property
    def he(self) -> str:
        return "she" if self.woman else "he"

    @property
    def his(self) -> str:
        return "her" if self.woman else "his"

    @property
    def him(self) -> str:
        return "her" if self.woman else "him"


def make_people(count: int = 160, seed: int = SEED) -> list[Person]:
    """The world's people: single-word names, facts drawn evenly, friends of each other in a ring."""
    draw = random.Random(seed)
    names = [first + last for first, last in product(FIRST, LAST)]
    draw.shuffle(names)
    names = names[:count]
    return [
        Person(name, draw.random() < 0.5, draw.choice(TOWNS), draw.choice(TRADES), draw.choice(PETS),
               names[(place + 1) % count], draw.randint(1, LARGEST_NUMBER))
        for place, name in enumerate(names)
    ]


PEOPLE = make_people()


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def listed(words: list[str], last: str = "and") -> str:
    """Words as prose lists them: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def capital(text: str) -> str:
    """The text with its first letter in upper case, the rest as it is."""
    return text[0].upper() + text[1:]
