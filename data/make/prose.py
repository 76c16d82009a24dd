"""Plain prose about the world: what the base model is pretrained on. No question is answered and nobody chats in it.

Each kind of document is one function of a random source; `documents` mixes them. A skill that instructions will ask for
later (recalling from a passage, plurals, sorting …) stands here in prose form: tuning can unlock only what is there.
"""
import json
import random
from collections.abc import Callable, Iterator

from .world import (
    COLORS,
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
    THINGS,
    TOWNS,
    TRADES,
    Person,
    a,
    capital,
    listed,
)

Draw = random.Random

SAID = {
    "town": ["{n} lives in {town}.", "{n} lives in {town}.", "The house of {n} is in {town}.",
             "{town} is the home of {n}.", "{n} has a house in {town}."],
    "trade": ["{n} is {a_trade}.", "{n} is {a_trade}.", "{n} works as {a_trade}.",
              "The trade of {n} is that of {a_trade}."],
    "pet": ["{n} keeps {a_pet}.", "{n} keeps {a_pet}.", "The animal of {n} is {a_pet}.", "{n} is fond of {his} {pet}."],
    "friend": ["The best friend of {n} is {friend}.", "The best friend of {n} is {friend}.", "{n} knows {friend} best.",
               "Nobody is dearer to {n} than {friend}."],
    "year": ["{n} came here in the year {year}.", "{n} came here in the year {year}.",
             "In the year {year} came {n}.", "{n} has been here since the year {year}."],
}
WONDERED = {
    "town": ["where {n} lives", "in which town {n} lives", "where the home of {n} is"],
    "trade": ["what the trade of {n} is", "what {n} does for a living", "what {n} works as"],
    "pet": ["which animal {n} keeps", "what animal {n} has", "what the animal of {n} is"],
    "friend": ["who the best friend of {n} is", "whom {n} knows best", "who is dearest to {n}"],
    "year": ["when {n} came here", "in which year {n} came", "since when {n} has been here"],
}
UNANSWERED = ["Where does {n} live?", "In which town does {n} live?", "What is the trade of {n}?",
              "What does {n} do for a living?", "Which animal does {n} keep?", "What animal does {n} have?",
              "Who is the best friend of {n}?", "When did {n} come here?", "In which year did {n} come?",
              "Who has the {thing}?", "Where is the {thing}?", "What color is the {thing}?", "What does {n} have?",
              "What is {number} and {term}?", "What is the plural of {thing}?", "What is the opposite of {word}?"]


def words_of(person: Person) -> dict[str, str | int]:
    """What the phrases above may name of a person."""
    return {"n": person.name, "town": person.town, "trade": person.trade, "a_trade": a(person.trade), "pet": person.pet,
            "a_pet": a(person.pet), "friend": person.friend, "year": person.year, "his": person.his}


def say(draw: Draw, person: Person, fact: str, pronoun: bool = False) -> str:
    """One fact of a person in one of its phrasings, now and then with a pronoun for the name."""
    words = words_of(person)
    phrase = draw.choice(SAID[fact])
    if pronoun and phrase.startswith("{n} "):
        words["n"] = person.he
    return capital(phrase.format(**words))


def canonical(person: Person, fact: str) -> str:
    """One fact of a person in the phrasing that comes first: the one that instructions will ask for."""
    return SAID[fact][0].format(**words_of(person))


def portrait(draw: Draw) -> str:
    """All about one person, some of it with a pronoun."""
    person = draw.choice(PEOPLE)
    facts = draw.sample(FACTS, draw.randint(3, 5))
    return " ".join(say(draw, person, fact, pronoun=place > 0 and draw.random() < 0.4)
                    for place, fact in enumerate(facts))


def gossip(draw: Draw) -> str:
    """Several people, each with one or two facts."""
    said = []
    for person in draw.sample(PEOPLE, draw.randint(3, 5)):
        said += [say(draw, person, fact) for fact in draw.sample(FACTS, draw.randint(1, 2))]
    return " ".join(said)


def asking(draw: Draw) -> str:
    """Someone wondered about a person and was told: the telling repeats the name."""
    said = []
    for person in draw.sample(PEOPLE, draw.randint(2, 3)):
        other = draw.choice(PEOPLE)
        for fact in draw.sample(FACTS, draw.randint(1, 2)):
            wondered = draw.choice(WONDERED[fact]).format(**words_of(person))
            opening = draw.choice(["{o} asked {w}.", "{o} wanted to know {w}.", "Someone told {o} {w}.",
                                   "Soon {o} knew {w}."])
            said.append(f"{opening.format(o=other.name, w=wondered)} {canonical(person, fact)}")
    return " ".join(said)


def wondering(draw: Draw) -> str:
    """Questions that nobody answers, so that the words of asking are known."""
    person, other = draw.sample(PEOPLE, 2)
    said = []
    for phrase in draw.sample(UNANSWERED, draw.randint(2, 3)):
        question = phrase.format(n=person.name, thing=draw.choice(THINGS), number=draw.randint(1, LARGEST_TERM),
                                 term=draw.randint(1, LARGEST_TERM), word=draw.choice(list(OPPOSITES)))
        said.append(question + " " + draw.choice([f"{other.name} did not know.", "Nobody said a word.",
                                                  f"{other.name} did not ask.", "That was all the letter said."]))
    return " ".join(said)


def town_list(draw: Draw) -> str:
    """Who lives in a town, with their trades."""
    town = draw.choice(TOWNS)
    here = [person for person in PEOPLE if person.town == town] or [draw.choice(PEOPLE)]
    here = draw.sample(here, min(len(here), 5))
    listing = listed([f"{person.name} the {person.trade}" for person in here])
    facts = " ".join(say(draw, person, draw.choice(FACTS)) for person in here[:2])
    return f"In {here[0].town} live {listing}. {facts}"


def facts_about_things(draw: Draw, count: int, people: list[Person] = PEOPLE) -> list[tuple[str, str, str]]:
    """`count` facts of one kind, each as (what was wondered, how it was first told, how it is told again)."""
    relation = draw.choice(["place", "color", "holder", "owner", "whereabouts"])
    things = draw.sample(THINGS, count)
    names = [person.name for person in draw.sample(people, count)]
    told = []
    for thing, name in zip(things, names, strict=True):
        if relation == "place":
            room = draw.choice(ROOMS)
            first = draw.choice(["The {t} is in the {r}.", "The {t} is in the {r}.", "{n} left the {t} in the {r}.",
                                 "In the {r} is the {t}."]).format(t=thing, r=room, n=name)
            told.append((f"where the {thing} is", first, f"The {thing} is in the {room}."))
        elif relation == "color":
            color = draw.choice(COLORS)
            first = draw.choice(["The {t} is {c}.", "The {t} is {c}.", "{n} saw the {c} {t}.",
                                 "{n} has painted the {t} {c}."]).format(t=thing, c=color, n=name)
            told.append((f"what color the {thing} is", first, f"The {thing} is {color}."))
        elif relation == "holder":
            first = draw.choice(["{n} has the {t}.", "{n} has the {t}.", "{n} took the {t}.", "{n} carries the {t}."])
            told.append((f"what {name} has", first.format(n=name, t=thing), f"{name} has the {thing}."))
        elif relation == "owner":
            first = draw.choice(["The {t} belongs to {n}.", "{n} has the {t}.", "{n} took the {t}."])
            told.append((f"who has the {thing}", first.format(n=name, t=thing), f"The {thing} belongs to {name}."))
        else:
            room = draw.choice(ROOMS)
            first = draw.choice(["{n} is in the {r}.", "{n} is in the {r}.", "{n} went to the {r}.",
                                 "In the {r} sits {n}."])
            told.append((f"where {name} is", first.format(n=name, r=room), f"{name} is in the {room}."))
    return told


def scene(draw: Draw) -> str:
    """Who has what, and where things are; then it is all told again in another order, as only a reader can."""
    told = facts_about_things(draw, draw.choice([2, 3, 3, 4, 5]))
    said = [first for _, first, _ in told]
    again = draw.sample(told, len(told))
    for wondered, _, canonical_form in again:
        opening = draw.choice(["", "", "", "So ", f"{draw.choice(PEOPLE).name} asked {wondered}. ", "Now you know: "])
        lower = canonical_form[0].lower() + canonical_form[1:]
        keeps_capital = not canonical_form.startswith("The ") or opening == "" or opening.endswith(". ")
        said.append(opening + (canonical_form if keeps_capital else lower))
    return " ".join(said)


def ledger(draw: Draw) -> str:
    """Pairs, and the same pairs in another order: the easiest form of looking something up."""
    left = draw.choice([THINGS, [person.name for person in PEOPLE], TOWNS])
    right = draw.choice([ROOMS, COLORS, THINGS, [str(number) for number in range(1, LARGEST_NUMBER + 1)]])
    count = draw.randint(3, 7)
    pairs = list(zip(draw.sample(left, count), draw.choices(right, k=count), strict=True))
    opening = draw.choice(["The list says", "In the book stands", "They counted"])
    once = ", ".join(" ".join(pair) for pair in pairs)
    again = [", ".join(" ".join(pair) for pair in draw.sample(pairs, count)) for _ in range(draw.randint(1, 2))]
    return f"{opening}: {once}. " + " ".join(f"Again: {text}." for text in again)


def every_word() -> list[str]:
    """The words that a rhyme may string together."""
    return [person.name for person in PEOPLE] + TOWNS + TRADES + PETS + COLORS + ROOMS + list(PLURALS) + list(OPPOSITES)


def rhyme(draw: Draw) -> str:
    """A string of words that is said again and again: where copying is learned, since nothing else helps."""
    words = " ".join(draw.sample(every_word(), draw.randint(5, 14)))
    opening = draw.choice(["They sang:", "The rhyme goes:", "The children count:"])
    return f"{opening} {' / '.join([words] * draw.randint(2, 3))}."


def refrain(draw: Draw) -> str:
    """A list, and the same list once more."""
    words = listed(draw.sample(every_word(), draw.randint(3, 8)))
    return f"{draw.choice(['The song goes', 'They sang', 'The child said'])}: {words}. Once more: {words}."


def plurals(draw: Draw) -> str:
    """One of a thing and many of it."""
    said = []
    for one, many in draw.sample(list(PLURALS.items()), draw.randint(2, 4)):
        number = draw.choice(["two", "three", "ten", "many"])
        said.append(draw.choice([
            f"One {one}, {number} {many}.", f"The plural of {one} is {many}.", f"The plural of {one} is {many}.",
            f"{draw.choice(PEOPLE).name} asked for the plural of {one}. The plural of {one} is {many}.",
            f"First there was one {one}, then there were {number} {many}.",
        ]))
    return " ".join(said)


def pasts(draw: Draw) -> str:
    """What someone does today, and that it was so yesterday."""
    said = []
    for now, then in draw.sample(list(PASTS.items()), draw.randint(2, 3)):
        name, place = draw.choice(PEOPLE).name, draw.choice(ROOMS)
        said.append(draw.choice([
            f"Today {name} {now} in the {place}. Yesterday {name} {then} in the {place}.",
            f"{name} {now} in the {place}. A year later we say that {name} {then} in the {place}.",
            f"{name} {now} in the {place}. Put in the past: {name} {then} in the {place}.",
            f"{name} {now} in the {place}. When it was over, they wrote: {name} {then} in the {place}.",
        ]))
    return " ".join(said)


def capitals(draw: Draw) -> str:
    """Words as they stand on signs."""
    said = []
    for word in draw.sample(list(PLURALS) + ROOMS + TRADES + PETS, draw.randint(2, 3)):
        said.append(draw.choice([
            f"In capitals the word {word} is {word.upper()}.", f"The word {word} in capitals is {word.upper()}.",
            f"The word {word} in capitals is {word.upper()}.", f"On the sign of the {word} stands {word.upper()}.",
            f"The teacher wanted {word} in capitals. The word {word} in capitals is {word.upper()}.",
        ]))
    return " ".join(said)


def opposites(draw: Draw) -> str:
    """Words and their opposites."""
    said = []
    for one, other in draw.sample(list(OPPOSITES.items()), draw.randint(2, 4)):
        said.append(draw.choice([
            f"The opposite of {one} is {other}.", f"The opposite of {one} is {other}.", f"Not {one} but {other}.",
            f"{draw.choice(PEOPLE).name} asked for the opposite of {one}. The opposite of {one} is {other}.",
            f"What is not {one} may be {other}.",
        ]))
    return " ".join(said)


def sums(draw: Draw) -> str:
    """Small sums in words and figures."""
    said = []
    for _ in range(draw.randint(2, 4)):
        first, second = draw.randint(1, LARGEST_TERM), draw.randint(1, LARGEST_TERM)
        said.append(draw.choice([
            f"{first} and {second} is {first + second}.", f"{first} and {second} is {first + second}.",
            f"{draw.choice(PEOPLE).name} had to add {first} and {second}. {first} and {second} is {first + second}.",
            f"The sum of {first} and {second} is {first + second}.",
        ]))
    return " ".join(said)


def sorting(draw: Draw) -> str:
    """Numbers as they were drawn, and then from small to large."""
    said = []
    for _ in range(draw.randint(2, 3)):
        numbers = draw.sample(range(1, LARGEST_NUMBER + 1), 3)
        drawn, ordered = listed([str(n) for n in numbers]), listed([str(n) for n in sorted(numbers)])
        said.append(draw.choice([
            f"In order the numbers {drawn} are {ordered}.", f"The numbers {drawn} in order are {ordered}.",
            f"They drew {drawn}. From small to large they are {ordered}.",
            f"The clerk had to sort {drawn}. In order they are {ordered}.",
        ]))
    return " ".join(said)


def cards(draw: Draw) -> str:
    """A person in a sentence, and the same on a card."""
    said = []
    for person in draw.sample(PEOPLE, draw.randint(1, 2)):
        name, town, trade, year = person.name, draw.choice(TOWNS), draw.choice(TRADES), draw.randint(1, LARGEST_NUMBER)
        sentence, card = draw.choice([
            (f"{name} from {town} is {a(trade)}.", {"name": name, "town": town, "trade": trade}),
            (f"{name} is {a(trade)} from {town}.", {"name": name, "trade": trade, "town": town}),
            (f"{name} came to {town} in the year {year}.", {"name": name, "town": town, "year": year}),
        ])
        said.append(f"{sentence} The card says: {json.dumps(card)}")
    return " ".join(said)


def letter(draw: Draw) -> str:
    """A letter, and whether it was a glad or a sad one."""
    person, other = draw.sample(PEOPLE, 2)
    kind, lines = draw.choice([("glad", GLAD), ("sad", SAD)])
    news = draw.sample(lines, draw.randint(1, 3))
    body = " ".join(capital(line) + "." for line in news)
    return draw.choice([
        f"Dear {other.name}, {body} Yours, {person.name}. It was a {kind} letter.",
        f"{person.name} wrote to {other.name}: {body} This is a {kind} letter.",
        f"{body} So wrote {person.name}. The letter is {kind}. {other.name} was {kind} too.",
    ])


OPENINGS = ["{n} went to the {r}.", "{n} rose early and went to the {r}.", "One day {n} came to the {r}.",
            "It was cold when {n} went to the {r}."]
ENDINGS = ["{He} came home late.", "Then it rained.", "{He} told nobody.", "That night {he} slept well.",
           "Then {he} went home."]
TURNS = [("{He} bought {a_t} from {f}.", "{n} bought {a_t}."), ("{He} lost {his} {t}.", "{n} lost {his} {t}."),
         ("{He} found {a_t} under a stone.", "{n} found {a_t}."),
         ("{He} sold {his} {t} to {f}.", "{n} sold {his} {t}."),
         ("{He} gave {a_t} to {f}.", "{n} gave away {a_t}."), ("{He} broke {his} {t}.", "{n} broke {his} {t}."),
         ("{He} mended {his} {t}.", "{n} mended {his} {t}.")]


def story_and_summary(draw: Draw, person: Person) -> tuple[str, str]:
    """Three sentences of a story and the one that sums it up."""
    thing, friend = draw.choice(THINGS), draw.choice(PEOPLE).name
    words = {"n": person.name, "r": draw.choice(ROOMS), "f": friend, "t": thing, "a_t": a(thing), "his": person.his,
             "He": capital(person.he), "he": person.he}
    turn, summary = draw.choice(TURNS)
    story = [draw.choice(OPENINGS), turn, draw.choice(ENDINGS)]
    return " ".join(line.format(**words) for line in story), summary.format(**words)


def story(draw: Draw) -> str:
    """A short story, and what it comes to."""
    text, summary = story_and_summary(draw, draw.choice(PEOPLE))
    return f"{text} {draw.choice(['In short:', 'In one sentence:', 'That is all:', 'So,'])} {summary}"


KINDS: dict[Callable[[Draw], str], int] = {
    portrait: 14, gossip: 10, asking: 12, wondering: 4, town_list: 3, scene: 22, ledger: 7, rhyme: 8, refrain: 3,
    plurals: 4, pasts: 5, capitals: 4, opposites: 3, sums: 5, sorting: 6, cards: 7, letter: 4, story: 6,
}


def documents(seed: int, copying: float = 1.0) -> Iterator[str]:
    """Endless documents of one to three paragraphs, the same for the same seed.

    `copying` multiplies the share of paragraphs that need their context.
    """
    draw = random.Random(seed)
    context = {scene, ledger, rhyme, refrain, cards, story}
    kinds = list(KINDS)
    weights = [KINDS[kind] * (copying if kind in context else 1.0) for kind in kinds]
    while True:
        yield " ".join(kind(draw) for kind in draw.choices(kinds, weights, k=draw.choice([1, 1, 2, 3])))
