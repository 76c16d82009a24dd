"""What is cached comes back the same, and nothing that decides the samples can change without a new name."""

import pytest

from finetune_lib.data.cache import cache_key, tokenize_cached, tokenizer_hash
from finetune_lib.data.chat import tokenize_all
from finetune_lib.data.turns import Conversation, Turn

CHATS = [
    Conversation(f"c{i}", [Turn("user", f"Where is Liko, {i}?"), Turn("assistant", "Liko lives in Velden. " * i)])
    for i in range(1, 9)
]


def test_what_comes_back_equals_what_was_made_problems_too(tokenizer, tmp_path):
    for options in ({}, {"max_length": 40}, {"max_length": 40, "overlong": "truncate_response"}):
        made = tokenize_all(CHATS, tokenizer, **options)
        assert tokenize_cached(CHATS, tokenizer, tmp_path, **options) == made
        assert tokenize_cached(CHATS, tokenizer, tmp_path, **options) == made
    assert len(list(tmp_path.iterdir())) == 3


def test_a_hit_is_read_and_not_made_again(tokenizer, tmp_path, monkeypatch):
    made = tokenize_cached(CHATS, tokenizer, tmp_path)
    monkeypatch.setattr("finetune_lib.data.cache.tokenize_stream", None)
    assert tokenize_cached(iter(CHATS), tokenizer, tmp_path) == made


def changed_turn(**values) -> list[Conversation]:
    answer = {"role": "assistant", "content": CHATS[0].turns[1].content} | values
    return [Conversation("c1", [CHATS[0].turns[0], Turn(**answer)]), *CHATS[1:]]


@pytest.mark.parametrize(
    ("chats", "options"),
    [
        (CHATS, {"template": "chatml"}),
        (CHATS, {"max_length": 100}),
        (CHATS, {"train_on": "last"}),
        (CHATS, {"overlong": "proportional"}),
        (CHATS[::-1], {}),
        (CHATS[1:], {}),
        (changed_turn(train=False), {}),
        (changed_turn(content="No."), {}),
        ([Conversation("c1", CHATS[0].turns, tools=({"name": "f"},)), *CHATS[1:]], {}),
        ([Conversation("c1", CHATS[0].turns, metadata={"category": "x"}), *CHATS[1:]], {}),
    ],
    ids="template max_length train_on overlong order fewer train_flag content tools category".split(),
)
def test_whatever_decides_the_samples_changes_the_name(tokenizer, chats, options):
    assert cache_key(chats, tokenizer, **options) != cache_key(CHATS, tokenizer)


def test_a_changed_template_is_never_served_stale(tokenizers, tmp_path):
    from copy import deepcopy

    tokenizer = deepcopy(tokenizers["course"])
    before, _ = tokenize_cached(CHATS, tokenizer, tmp_path)
    tokenizer.chat_template = tokenizer.chat_template.replace("' ' + message", "'  ' + message")
    after, _ = tokenize_cached(CHATS, tokenizer, tmp_path)
    assert after == tokenize_all(CHATS, tokenizer)[0] and after[0].input_ids != before[0].input_ids


def test_another_tokenizer_has_another_hash_and_a_used_one_the_same(tokenizers):
    from copy import deepcopy

    tokenizer = deepcopy(tokenizers["course"])
    before = tokenizer_hash(tokenizer)
    tokenizer(["Liko lives in Velden."], truncation=True, max_length=2, padding="max_length")
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["<|new|>"])
    assert tokenizer_hash(tokenizer) != before != tokenizer_hash(tokenizers["zephyr"])


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5], lambda raw: raw[:50] + b"7" + raw[51:], lambda raw: b""])
def test_a_damaged_entry_is_found_by_its_checksum_and_made_again(tokenizer, tmp_path, damage):
    made = tokenize_cached(CHATS, tokenizer, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert tokenize_cached(CHATS, tokenizer, tmp_path) == made
    assert tokenize_cached(CHATS, tokenizer, tmp_path) == made and len(list(tmp_path.iterdir())) == 1
