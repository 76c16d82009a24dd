"""Splits hold what they promise: sources apart, bins even, given files untouched, twins together; leaks are told."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import ConfigError, DataError
from finetune_lib.data.batches import PARTS, leak_report, lengths_of, split
from finetune_lib.data.quality import clean
from finetune_lib.data.turns import Conversation, Turn


def ask(question: str, answer: str, source: str = "", score: float | None = None, **metadata) -> Conversation:
    return Conversation("", [Turn("user", question), Turn("assistant", answer)], source, None, metadata, score)


def many(count: int = 160) -> list[Conversation]:
    return [ask(f"Where does person {i} live? " + "Say it. " * (i % 40), f"In town {i % 7}.", f"s{i % 8}",
                i % 20 / 20, user=f"u{i % 20}") for i in range(count)]


def planted(rng: random.Random, count: int = 60) -> list[Conversation]:
    """Texts of thirty words, each with a twin that differs in one word, and conversations that share a first turn."""
    words = [f"w{i}" for i in range(500)]
    chats = []
    for number in range(count):
        said = rng.choices(words, k=30)
        twin = said[:29] + ["other"]
        chats += [ask(" ".join(text), "Yes, " + " ".join(text), talk=f"t{number}") for text in (said, twin)]
    rng.shuffle(chats)
    return chats


def held(found, part: str, of) -> set:
    return {of(chat) for chat in getattr(found, part)}


def apart(found, of) -> bool:
    sets = [held(found, part, of) for part in PARTS]
    return not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


@settings(max_examples=6)
@given(st.integers(0, 10**6))
def test_no_near_twin_is_on_two_sides_and_every_row_is_in_one_split(seed):
    chats = planted(random.Random(seed), 20)
    found = split(chats, (0.6, 0.2, 0.2), seed=seed, group_by="near")
    assert apart(found, lambda chat: chat.metadata["talk"])
    assert sorted(chat.id for part in PARTS for chat in getattr(found, part)) == sorted(chat.id for chat in chats)
    assert all(report.clean for report in found.leaks.values()) and len(found.leaks) == 3


def test_a_split_by_row_with_near_duplicates_on_both_sides_is_told_in_its_own_report():
    rng = random.Random(random.randrange(10**6))
    naive = split(planted(rng), (0.6, 0.2, 0.2), seed=rng.randrange(99))
    assert not naive.leaks["train → test"].clean and naive.leaks["train → test"].share > 0.3
    assert "near twins" in repr(naive)


def test_duplicates_counted_after_the_split_are_leaks_and_counted_before_they_are_none():
    rows = [ask(f"Question number {i} of the long list of them?", f"Answer {i}") for i in range(40)]
    copies = [Conversation(f"copy {i}", chat.turns) for i, chat in enumerate(rows)]
    assert len(leak_report(rows, copies).exact) == 40  # split first: each half looks clean by itself
    assert clean(rows, near=None)[1].removed == clean(copies, near=None)[1].removed == {}
    kept, report = clean(rows + copies, near=None)
    assert report.removed == {"duplicate": 40} and split(kept, (0.5, 0.5)).leaks["train → validation"].clean


def test_whole_sources_are_held_out():
    found = split(many(), (0.5, 0.25, 0.25), strategy="source")
    assert apart(found, lambda chat: chat.source) and all(getattr(found, part) for part in PARTS)
    with pytest.raises(DataError, match="got 1"):
        split([chat for chat in many() if chat.source == "s1"], strategy="source")


@pytest.mark.parametrize("by", ["length", "quality", "source"])
def test_bins_keep_their_share_in_every_split(by):
    from finetune_lib.data.batches import _column

    found = split(many(1600), (0.5, 0.25, 0.25), strategy="stratified", by=by)
    bins = {_column(chat, by) for chat in many(1600)}
    assert len(bins) >= 3
    for name in bins:
        counts = [sum(_column(chat, by) == name for chat in getattr(found, part)) for part in PARTS]
        assert abs(counts[0] / sum(counts) - 0.5) < 0.03 and abs(counts[1] / sum(counts) - 0.25) < 0.03


def test_a_given_validation_file_stays_and_what_is_tied_to_it_leaves_training():
    chats = many()
    given_file = [Conversation("v0", chats[0].turns), ask("Something else?", "Yes.")]
    found = split(chats, (0.9, 0.1), validation=given_file)
    assert found.validation == given_file and [chat.id for chat in found.removed] == [chats[0].id]
    assert len(found.train) + len(found.test) + len(found.removed) == len(chats)
    assert found.leaks["train → validation"].exact == []
    both = split(chats, (1.0,), validation=given_file, test=[ask("A third thing?", "No.")])
    assert len(both.train) == len(chats) - 1 and "tied to what is held out" in repr(both)


def test_a_given_file_and_ratios_for_three_parts_are_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"2 numbers .* for train, test, got \(0.8, 0.1, 0.1\)"):
        split(many(), (0.8, 0.1, 0.1), validation=many()[:3])


def test_the_table_counts_conversations_tokens_sources_and_scores(tokenizer):
    chats = many()
    found = split(chats)
    rows = found.table(tokenizer)
    assert sum(row["conversations"] for row in rows) == len(chats)
    for row in rows:
        part = getattr(found, row["split"])
        assert row["mean_tokens"] == round(sum(lengths_of(part, tokenizer)) / len(part), 1)
        assert row["mean_score"] == round(sum(chat.quality_score for chat in part) / len(part), 3)
        assert sum(row["sources"].values()) == row["conversations"]
    assert "mean_words" in found.table()[0]
    unscored = split([ask(f"Number {i}?", "Yes.") for i in range(40)])
    assert unscored.table()[0]["mean_score"] is None, "no score is not a score of zero"
