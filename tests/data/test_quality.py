"""read == kept + quarantined + removed, near duplicates are found, and quarantined rows can be mended."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_lib.core import ConfigError, DataError
from finetune_lib.data.quality import (
    QualityReport,
    clean,
    clusters,
    jaccard,
    near_duplicates,
    quality_score,
    shingles,
    write_quarantine,
)
from finetune_lib.data.records import read_conversations
from finetune_lib.data.turns import Conversation, Turn

WORDS = st.lists(
    st.sampled_from("Mara lives in Tarn by the river and the mill was old â€™ \ufffd click here".split()), max_size=30
)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), WORDS), max_size=4)


def chat_of(asked: str, said: str, name: str = "") -> Conversation:
    return Conversation(name, [Turn("user", asked), Turn("assistant", said)])


@given(st.lists(TURNS, max_size=12), st.sampled_from([None, 0.8]), st.sampled_from([0.0, 0.9]))
def test_every_conversation_is_kept_quarantined_or_removed(parts, near, min_score):
    chats = [
        Conversation("", [Turn(role, " ".join(words)) for role, words in part], source=str(len(part))) for part in parts
    ]
    problems = []
    kept, report = clean(chats, near=near, min_score=min_score, problems=problems)
    assert report.read == len(chats) == len(kept) + sum(report.quarantined.values()) + sum(report.removed.values())
    assert len(problems) == sum(report.quarantined.values())
    assert sum(source["kept"] for source in report.sources.values()) == len(kept)
    assert all(0 <= chat.quality_score <= 1 for chat in kept)


def test_a_report_that_does_not_add_up_cannot_be_made():
    with pytest.raises(DataError, match="10"):
        QualityReport(read=10, kept=7, quarantined={"empty": 1}, removed={})


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (chat_of("Name it.", "  "), "empty"),
        (Conversation("", [Turn("assistant", "Hi."), Turn("user", "Ho.")]), "role_order"),
        (Conversation("", [Turn("user", "Hi.")]), "role_order"),
        (chat_of("Who?", "It\u00e2\u20ac\u2122s Odo."), "broken_text"),
        (chat_of("Who?", "\ufffd\ufffd"), "broken_text"),
        (
            chat_of("Tell me.", "This is a long sentence about the town and its mill that goes on and on until the"),
            "cut_off",
        ),
        (chat_of("Say it.", "very " * 40 + "good."), "repeated"),
        (chat_of("Buy?", "Click here to win."), "spam"),
    ],
)
def test_each_rule_finds_what_it_is_for(chat, reason):
    _, report = clean([chat])
    assert (report.quarantined | report.removed) == {reason: 1}


@pytest.mark.parametrize("said", ["Tarn", "- one\n- two\n- three", "東京", "x = 1\nprint(x)", "a, b", "Grüße 🦊"])
def test_short_answers_lists_and_code_are_left_alone(said):
    assert len(clean([chat_of("What?", said)])[0]) == 1


def test_duplicates_that_differ_in_case_and_spaces_are_removed_once():
    kept, report = clean([chat_of("Where is Mara?", "In Tarn."), chat_of("where  is mara?", "in tarn. ")], near=None)
    assert len(kept) == 1 and report.removed == {"duplicate": 1}


def test_near_duplicates_are_found_with_a_recall_of_at_least_095_and_nothing_else():
    rng = random.Random(random.randrange(10**6))
    words = [f"w{i}" for i in range(3000)]
    texts = [" ".join(rng.choices(words, k=rng.randrange(20, 80))) for _ in range(400)]
    planted = []
    for i in range(200):
        changed = texts[i].split()
        changed[rng.randrange(len(changed))] = "other"
        if jaccard(shingles(texts[i]), shingles(" ".join(changed))) >= 0.8:
            planted.append((i, len(texts)))
            texts.append(" ".join(changed))
    found = {(i, j) for i, j, _ in near_duplicates(texts, 0.8)}
    assert len(found & set(planted)) >= 0.95 * len(planted) and found == found & set(planted)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=14))
    )
)
def test_clusters_are_the_connected_parts_of_the_graph(case):
    count, pairs = case
    label = list(range(count))  # the slow way: spread the smallest label until nothing changes
    for _ in range(count):
        for i, j in pairs:
            label[i] = label[j] = min(label[i], label[j])
    assert clusters(count, pairs) == label


def test_quarantined_rows_are_mended_in_the_file_and_read_again(tmp_path):
    rows = [
        {"instruction": "Name it.", "output": ""},
        {"instruction": "Name it.", "output": None},
        {"instruction": "Hi.", "output": "Ho."},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    problems = []
    kept, report = clean(read_conversations(tmp_path / "a.jsonl"), problems=problems)
    assert report.quarantined == {"empty": 1, "missing_field": 1} and len(kept) == 1
    assert write_quarantine(tmp_path / "quarantine.jsonl", problems) == 2
    mended = []
    for line in (tmp_path / "quarantine.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "messages" in entry["row"]:
            entry["row"]["messages"][-1]["content"] = "Tarn."
        else:
            entry["row"]["output"] = "Olm."
        mended.append(json.dumps(entry))
    (tmp_path / "mended.jsonl").write_text("\n".join(mended))
    assert len(clean(read_conversations(tmp_path / "mended.jsonl"))[0]) == 2


def test_a_given_score_is_kept_and_a_missing_one_computed():
    kept, _ = clean(
        [
            Conversation("", chat_of("Hi.", "Ho.").turns, quality_score=0.3),
            chat_of("Who is it?", "It is Odo, the miller."),
        ]
    )
    assert kept[0].quality_score == 0.3 and kept[1].quality_score == quality_score(kept[1])


def test_token_limits_need_a_tokenizer(tokenizer):
    with pytest.raises(ConfigError, match="tokenizer"):
        clean([chat_of("Hi.", "Ho.")], max_tokens=3)
    _, report = clean(
        [chat_of("Hi.", "Mara lives in Tarn, the fox was old and the boats were red.")], tokenizer, max_tokens=10
    )
    assert report.removed == {"too_long": 1}


@pytest.mark.parametrize(
    "name",
    [
        "alpaca_en_demo.json",
        "glaive_toolcall_en_demo.json",
        "identity.json",
        "self_instruct_seed_tasks.jsonl",
        "c4_120.jsonl",
    ],
)
def test_every_row_of_files_made_by_others_is_accounted_for(wild, name):
    reading = read_conversations(wild / name)
    kept, report = clean(reading)
    assert report.read == reading.records == reading.rows
    assert len(kept) == 0 if name.startswith("c4") else len(kept) > 0.8 * report.read
