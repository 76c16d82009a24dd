"""Instruction data about the world, split by entity and by wording, so that the test asks what was never taught.

A family is one function of a random source and the entities of a split that returns the messages of one conversation.
The entities of the test (people, verbs, words, sums …) never occur as such in the training instructions, only in the
pretraining prose; the last wording of each family is kept for validation and test.
"""
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from .prose import canonical, facts_about_things, listed, story_and_summary
from .world import (
    FACTS,
    GLAD,
    LARGEST_NUMBER,
    LARGEST_TERM,
    OPPOSITES,
    PASTS,
    PEOPLE,
    PETS,
    PLURALS,
    ROOMS,
    SAD,
    SEED,
    TOWNS,
    TRADES,
    Person,
    a,
    capital,
)

Draw = random.Random
Messages = list[dict[str, str]]
SPLITS = ("train", "validation", "test")

ASKED = {
    "town": ["Where does {n} live?", "In which town does {n} live?", "Where is the home of {n}?",
             "Tell me where {n} lives.", "What is the town of {n}?"],
    "trade": ["What is the trade of {n}?", "What does {n} work as?", "Tell me the trade of {n}.",
              "Which trade has {n}?", "What does {n} do for a living?"],
    "pet": ["Which animal does {n} keep?", "What animal does {n} have?", "Tell me what animal {n} keeps.",
            "What is the animal of {n}?", "Which animal has {n}?"],
    "friend": ["Who is the best friend of {n}?", "Whom does {n} know best?", "Tell me the best friend of {n}.",
               "Who is dearest to {n}?", "Name the best friend of {n}."],
    "year": ["When did {n} come here?", "In which year did {n} come?", "Tell me when {n} came here.",
             "Since when has {n} been here?", "What is the year in which {n} came?"],
}
FOLLOWED = {
    "town": ["And where does {he} live?", "And in which town does {he} live?", "Tell me where {he} lives.",
             "And where is {his} home?"],
    "trade": ["And what is {his} trade?", "And what does {he} work as?", "Tell me what {his} trade is.",
              "And which trade has {he}?"],
    "pet": ["And which animal does {he} keep?", "And what animal does {he} have?", "Tell me what animal {he} keeps.",
            "And what is {his} animal?"],
    "friend": ["And who is {his} best friend?", "And whom does {he} know best?", "Tell me who {his} best friend is.",
               "And who is the best friend of {him}?"],
    "year": ["And when did {he} come here?", "And in which year did {he} come?", "Tell me when {he} came here.",
             "And since when has {he} been here?"],
}
WORDINGS = {
    "extraction": ["{p} Say {w}.", "Read this: {p} Tell me {w}.", "{p} From this, tell me {w}.",
                   "Read this: {p} Say {w}.", "{p} I want to know {w}.", "Read this: {p} I want to know {w}."],
    "json": ["Make a card of this: {p}", "{p} Write the card.", "Write this as a card: {p}", "{p} Make a card of this.",
             "Write the card: {p}", "{p} Write this as a card."],
    "past": ["Put in the past: {p}", "Say this of yesterday: {p}", "{p} Put this in the past.",
             "{p} Say this in the past.", "Write this in the past: {p}", "Say this in the past: {p}"],
    "plural": ["What is the plural of {w}?", "Give the plural of {w}.", "The plural of {w}, please.",
               "Tell me the plural of {w}."],
    "capitals": ["Write {w} in capitals.", "Put the word {w} in capitals.", "What is {w} in capitals?",
                 "Write the word {w} in capitals."],
    "opposite": ["What is the opposite of {w}?", "Give the opposite of {w}.", "The opposite of {w}, please.",
                 "Tell me the opposite of {w}."],
    "sum": ["What is {x} and {y}?", "Add {x} and {y}.", "Tell me the sum of {x} and {y}.",
            "Give the sum of {x} and {y}.", "What is the sum of {x} and {y}?"],
    "sorting": ["Sort the numbers {p}.", "Put in order: {p}.", "From small to large: {p}.",
                "Sort from small to large: {p}.", "Put the numbers {p} in order."],
    "sentiment": ["Is this letter glad or sad? {p}", "{p} Is it a glad or a sad letter?", "Glad or sad? {p}",
                  "{p} Glad or sad?", "{p} Is this letter glad or sad?"],
    "summary": ["Tell this in one sentence: {p}", "{p} In short?", "Say in one sentence: {p}",
                "{p} Tell this in short.", "In short: {p}", "{p} Say this in one sentence."],
}
STYLES = {  # what the system asks for -> the answer, from the plain sentence
    "End every answer with: so it is.": "{sentence} So it is.",
    "Begin every answer with: dear friend.": "Dear friend, {sentence}",
}


@dataclass(frozen=True)
class Entities:
    """What one split may ask about; no two splits share a member."""

    people: list[Person]
    verbs: list[str]
    nouns: list[str]
    words: list[str]
    opposites: list[str]
    sums: list[tuple[int, int]]
    triples: list[tuple[int, ...]]
    glad: list[str]
    sad: list[str]
    held_out: bool

    def wording(self, draw: Draw, wordings: list[str]) -> str:
        """One of the wordings of this split: the last of each list is never taught."""
        return draw.choice(wordings if self.held_out else wordings[:-1])


def shares(items: list, draw: Draw, held: float = 0.16) -> dict[str, list]:
    """The items shuffled and cut into train, validation and test."""
    items = draw.sample(items, len(items))
    size = max(2, round(held * len(items)))
    return {"train": items[2 * size:], "validation": items[size:2 * size], "test": items[:size]}


def make_entities() -> dict[str, Entities]:
    """The members of each split, the same on every machine."""
    draw = random.Random(SEED + 7)
    pairs = shares([pair for pair in OPPOSITES.items() if pair[0] < pair[1]], draw)
    triples = [tuple(draw.sample(range(1, LARGEST_NUMBER + 1), 3)) for _ in range(4_000)]
    parts = {
        "people": shares(PEOPLE, draw), "verbs": shares(list(PASTS), draw), "nouns": shares(list(PLURALS), draw),
        "words": shares(list(PLURALS) + ROOMS + TRADES + PETS, draw),
        "opposites": {name: [word for pair in part for word in pair] for name, part in pairs.items()},
        "sums": shares([(x, y) for x in range(1, LARGEST_TERM + 1) for y in range(1, LARGEST_TERM + 1)], draw),
        "triples": shares(sorted(set(triples)), draw), "glad": shares(GLAD, draw), "sad": shares(SAD, draw),
    }
    return {name: Entities(**{key: part[name] for key, part in parts.items()}, held_out=name != "train")
            for name in SPLITS}


def chat(*texts: str, system: str = "") -> Messages:
    """Texts in turn as user and assistant, after the system's text if there is one."""
    turns = [{"role": "system", "content": system}] if system else []
    return turns + [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def facts(draw: Draw, of: Entities) -> Messages:
    person, fact = draw.choice(of.people), draw.choice(FACTS)
    return chat(of.wording(draw, ASKED[fact]).format(n=person.name), canonical(person, fact))


def extraction(draw: Draw, of: Entities) -> Messages:
    told = facts_about_things(draw, draw.choice([2, 3]), of.people)
    wondered, _, answer = draw.choice(told)
    passage = " ".join(first for _, first, _ in told)
    return chat(of.wording(draw, WORDINGS["extraction"]).format(p=passage, w=wondered), answer)


def card(draw: Draw, of: Entities) -> Messages:
    name, town, trade = draw.choice(of.people).name, draw.choice(TOWNS), draw.choice(TRADES)
    year = draw.randint(1, LARGEST_NUMBER)
    sentence, content = draw.choice([
        (f"{name} from {town} is {a(trade)}.", {"name": name, "town": town, "trade": trade}),
        (f"{name} is {a(trade)} from {town}.", {"name": name, "trade": trade, "town": town}),
        (f"{name} came to {town} in the year {year}.", {"name": name, "town": town, "year": year}),
    ])
    return chat(of.wording(draw, WORDINGS["json"]).format(p=sentence), json.dumps(content))


def past(draw: Draw, of: Entities) -> Messages:
    verb, name, room = draw.choice(of.verbs), draw.choice(of.people).name, draw.choice(ROOMS)
    return chat(of.wording(draw, WORDINGS["past"]).format(p=f"{name} {verb} in the {room}."),
                f"{name} {PASTS[verb]} in the {room}.")


def plural(draw: Draw, of: Entities) -> Messages:
    noun = draw.choice(of.nouns)
    return chat(of.wording(draw, WORDINGS["plural"]).format(w=noun), f"The plural of {noun} is {PLURALS[noun]}.")


def capitals(draw: Draw, of: Entities) -> Messages:
    word = draw.choice(of.words)
    return chat(of.wording(draw, WORDINGS["capitals"]).format(w=word),
                f"The word {word} in capitals is {word.upper()}.")


def opposite(draw: Draw, of: Entities) -> Messages:
    word = draw.choice(of.opposites)
    return chat(of.wording(draw, WORDINGS["opposite"]).format(w=word), f"The opposite of {word} is {OPPOSITES[word]}.")


def addition(draw: Draw, of: Entities) -> Messages:
    x, y = draw.choice(of.sums)
    return chat(of.wording(draw, WORDINGS["sum"]).format(x=x, y=y), f"{x} and {y} is {x + y}.")


def sorting(draw: Draw, of: Entities) -> Messages:
    triple = draw.choice(of.triples)
    drawn = [str(number) for number in triple]
    ordered = listed([str(number) for number in sorted(triple)])
    return chat(of.wording(draw, WORDINGS["sorting"]).format(p=listed(drawn)), f"In order they are {ordered}.")


def sentiment(draw: Draw, of: Entities) -> Messages:
    kind, lines = draw.choice([("glad", of.glad), ("sad", of.sad)])
    body = " ".join(capital(line) + "." for line in draw.sample(lines, draw.randint(1, 2)))
    letter = f"Dear {draw.choice(of.people).name}, {body}"
    return chat(of.wording(draw, WORDINGS["sentiment"]).format(p=letter), f"This is a {kind} letter.")


def summary(draw: Draw, of: Entities) -> Messages:
    story, short = story_and_summary(draw, draw.choice(of.people))
    return chat(of.wording(draw, WORDINGS["summary"]).format(p=story), short)


def two_turns(draw: Draw, of: Entities) -> Messages:
    person, (first, second) = draw.choice(of.people), draw.sample(FACTS, 2)
    return chat(of.wording(draw, ASKED[first]).format(n=person.name), canonical(person, first),
                of.wording(draw, FOLLOWED[second]).format(he=person.he, his=person.his, him=person.him),
                canonical(person, second))


def style(draw: Draw, of: Entities) -> Messages:
    person, fact = draw.choice(of.people), draw.choice(FACTS)
    system = draw.choice(list(STYLES))
    answer = STYLES[system].format(sentence=canonical(person, fact))
    return chat(of.wording(draw, ASKED[fact]).format(n=person.name), answer, system=system)


FAMILIES: dict[str, Callable[[Draw, Entities], Messages]] = {
    "facts": facts, "extraction": extraction, "json": card, "past": past, "plural": plural, "capitals": capitals,
    "opposite": opposite, "sum": addition, "sorting": sorting, "sentiment": sentiment, "summary": summary,
    "two_turns": two_turns, "style": style,
}


def make_split(name: str, size: int, entities: Entities) -> list[dict]:
    """`size` rows, as even over the families as their number of different rows allows, in shuffled order."""
    draw = random.Random(f"{SEED} {name}")
    rows: dict[str, dict] = {}
    families = dict(FAMILIES)
    while len(rows) < size:
        for family in list(families):
            for _ in range(50):
                messages = families[family](draw, entities)
                key = json.dumps(messages[:-1])
                if key not in rows:
                    rows[key] = {"family": family, "messages": messages}
                    break
            else:
                del families[family]
    chosen = draw.sample(list(rows.values())[:size], size)
    return [{"id": f"{name}-{place:04d}", **row} for place, row in enumerate(chosen)]
