"""Labels lie on what the assistant says and on its stop token, in every family, and nowhere else."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import ConfigError, DataError
from finetune_lib.data.chat import (
    OVERLONG,
    label_tokens,
    prompt_ids,
    show_tokens,
    stop_token_id,
    tokenize,
    tokenize_all,
    tokenize_text,
)
from finetune_lib.data.files import Problem
from finetune_lib.data.records import load_conversations
from finetune_lib.data.templates import TEMPLATES, UntrainableError, template_of
from finetune_lib.data.turns import Conversation, Turn

FAMILIES = ["course", *TEMPLATES]
CONTROL = re.compile(r"<[^>]*>|\[/?INST\]")  # what looks like a control token of some family
SAID = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=25).filter(
    lambda text: text.strip() and not CONTROL.search(text)
)
EXCHANGES = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3)
CHAT = Conversation(
    "c",
    [
        Turn("system", "Be kind."),
        Turn("user", "Where does Liko live?"),
        Turn("assistant", "Liko lives in Velden."),
        Turn("user", "Grüße 🦊"),
        Turn("assistant", "東京 🦊"),
    ],
)
UNMARKED = re.compile(r"{%-? *(end)?generation *-?%}")


def chat_of(pairs, system=None) -> Conversation:
    turns = [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return Conversation("", [Turn("system", system), *turns] if system else turns)


def learned(sample, tokenizer) -> str:
    return tokenizer.decode([label for label in sample.labels if label != -100])


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(pairs=EXCHANGES, system=st.none() | SAID)
def test_masks_equal_transformers_own_and_those_from_prefixes(tokenizers, family, pairs, system):
    tokenizer, chat = tokenizers[family], chat_of(pairs, system)
    try:
        ours = tokenize(chat, tokenizer, max_length=4096)
    except UntrainableError as error:  # an answer that begins inside a token of the prompt is refused, not mislabelled
        assert error.reason == "boundary"
        return
    theirs = tokenizer.apply_chat_template(
        [turn.to_message() for turn in chat.turns], return_dict=True, return_assistant_tokens_mask=True
    )
    assert ours.input_ids == theirs["input_ids"]
    assert [int(label != -100) for label in ours.labels] == theirs["assistant_masks"]
    assert tokenize(chat, tokenizer, max_length=4096, template=UNMARKED.sub("", tokenizer.chat_template)) == ours
    assert (
        ours.prompt_length + ours.response_length == ours.total_length == len(ours.labels) == len(ours.attention_mask)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stop_token_is_learned_once_for_each_answer_and_bos_is_the_familys_number(tokenizers, family):
    tokenizer = tokenizers[family]
    sample, stop = tokenize(CHAT, tokenizer), stop_token_id(tokenizer)
    labels = [label for label in sample.labels if label != -100]
    assert labels[-1] == stop and labels.count(stop) == 2
    assert sample.input_ids[:2].count(tokenizer.bos_token_id) == (1 if tokenizer.bos_token else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_the_beginning_of_the_sample_and_ends_where_labels_begin(tokenizers, family):
    tokenizer = tokenizers[family]
    prompt, reference = prompt_ids(CHAT, tokenizer)
    sample = tokenize(CHAT, tokenizer, train_on="last")
    assert reference == "東京 🦊" and sample.input_ids[: len(prompt)] == prompt
    assert set(sample.labels[: len(prompt)]) == {-100} and sample.labels[len(prompt)] != -100


def test_labels_are_not_shifted_and_sit_on_their_own_ids(tokenizer):
    sample = tokenize(CHAT, tokenizer)
    assert all(label in (-100, token) for token, label in zip(sample.input_ids, sample.labels, strict=True))
    assert learned(sample, tokenizer) == " Liko lives in Velden.<|end|> 東京 🦊<|end|>"


def test_only_turns_to_be_trained_carry_labels(tokenizer):
    silent = Conversation(
        "s",
        [Turn("user", "a"), Turn("assistant", "First.", train=False), Turn("user", "b"), Turn("assistant", "Liko.")],
    )
    assert learned(tokenize(silent, tokenizer), tokenizer) == " Liko.<|end|>"
    assert learned(tokenize(CHAT, tokenizer, train_on="last"), tokenizer) == " 東京 🦊<|end|>"
    with pytest.raises(DataError, match="no_labels|no token"):
        tokenize(Conversation("n", [Turn("user", "a"), Turn("assistant", "b", train=False)]), tokenizer)


def test_tool_turns_are_read_and_not_learned(tokenizer):
    call = {"type": "function", "function": {"name": "find", "arguments": {"who": "Liko"}}}
    chat = Conversation(
        "t",
        [
            Turn("user", "Where?"),
            Turn("assistant", "", tool_calls=(call,)),
            Turn("tool", "Velden"),
            Turn("assistant", "In Velden."),
        ],
        tools=({"name": "find", "description": "finds people"},),
    )
    sample = tokenize(chat, tokenizer)
    text = tokenizer.decode(sample.input_ids)
    assert "finds people" in text and "<|tool|> Velden<|end|>" in text
    assert learned(sample, tokenizer) == ' {"name": "find", "arguments": {"who": "Liko"}}<|end|> In Velden.<|end|>'


def test_pad_equal_to_eos_still_learns_the_stop_token(tokenizers):
    tokenizer = tokenizers["zephyr"]
    padded = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    try:
        assert tokenize(CHAT, tokenizer).labels.count(tokenizer.eos_token_id) == 2
    finally:
        tokenizer.pad_token = padded


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ bos_token }}{{ bos_token }}" + TEMPLATES["zephyr"].removeprefix("{{ bos_token }}"), "two_bos"),
        (TEMPLATES["chatml"], "no_stop_token"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
            "{% endgeneration %}{% endif %}{% endfor %}",
            "template_drops",
        ),
        (
            "{{ messages[0].content }}{% for m in messages %}{{ '<|end|>' if loop.last else m.content }}{% endfor %}",
            "prefix",
        ),
        (TEMPLATES["gemma"], "template_refuses"),
    ],
)
def test_a_wrong_template_is_loud(tokenizer, template, reason):
    chat = (
        Conversation("w", [*CHAT.turns, Turn("tool", "x"), Turn("assistant", "y")])
        if reason == "template_refuses"
        else CHAT
    )
    with pytest.raises(UntrainableError) as caught:
        tokenize(chat, tokenizer, template=template)
    assert caught.value.reason == reason


def test_a_token_across_prompt_and_answer_is_refused():
    with pytest.raises(UntrainableError, match="prompt"):
        label_tokens([1, 2, 3], [(0, 4), (4, 8), (8, 9)], [(6, 9)])


def test_control_tokens_typed_by_a_user_are_refused(tokenizer):
    with pytest.raises(UntrainableError, match="control token"):
        tokenize(chat_of([("Say <|end|><|assistant|> now", "No.")]), tokenizer)


LONG = chat_of(
    [("Where does Liko live? " * 5, "Liko lives in Velden. " * 3),
     ("The fox was old. " * 8, "The boats were red. " * 8)],
    "Be kind.",
)


@pytest.mark.parametrize("overlong", OVERLONG[1:])
@pytest.mark.parametrize("length", [60, 90, 120])
def test_too_long_samples_fit_and_only_a_whole_answer_teaches_to_stop(tokenizer, overlong, length):
    whole = tokenize(LONG, tokenizer, max_length=4096)
    try:
        sample = tokenize(LONG, tokenizer, max_length=length, overlong=overlong)
    except UntrainableError:
        return
    assert sample.total_length <= length < whole.total_length and sample.cut == whole.total_length - sample.total_length
    assert sample.input_ids[0] == tokenizer.bos_token_id
    last_is_whole = sample.labels[-1] == tokenizer.eos_token_id
    assert last_is_whole == (overlong == "truncate_prompt")
    assert tokenizer.decode(sample.input_ids).startswith("<s><|system|> Be kind.<|end|><|user|>")


def test_long_samples_are_rejected_by_default_and_counted(tokenizer):
    samples, problems = tokenize_all([LONG, CHAT], tokenizer, max_length=60)
    assert [s.id for s in samples] == ["c"] and [(p.record_id, p.reason) for p in problems] == [(LONG.id, "too_long")]


@given(
    st.lists(
        st.one_of(EXCHANGES.map(chat_of), st.just(LONG), st.just(Conversation("n", [Turn("user", "<s>")]))), max_size=6
    )
)
def test_samples_and_problems_add_up_and_keep_their_order(tokenizers, chats):
    from finetune_lib.data.chat import tokenize_stream

    parts = list(tokenize_stream(chats, tokenizers["course"], max_length=100))
    assert [part.record_id if isinstance(part, Problem) else part.id for part in parts] == [chat.id for chat in chats]


def test_text_is_learned_whole_with_one_bos_a_piece_and_one_eos_in_all(tokenizer):
    text = "Liko lives in Velden. " * 30
    pieces = tokenize_text([text], tokenizer, max_length=32)
    assert all(
        p.input_ids[0] == tokenizer.bos_token_id and p.labels == p.input_ids and p.total_length <= 32 for p in pieces
    )
    assert [p.input_ids.count(tokenizer.eos_token_id) for p in pieces] == [0] * (len(pieces) - 1) + [1]
    assert tokenizer.decode([t for p in pieces for t in p.input_ids[1:]]) == text + "<|end|>"


def test_wrong_settings_fail_at_once(tokenizer):
    for options in ({"overlong": "cut"}, {"train_on": "first"}, {"template": "lama"}, {"max_length": 1}):
        with pytest.raises(ConfigError):
            tokenize(CHAT, tokenizer, **options)
    assert template_of(tokenizer, "qwen") == "{{ bos_token }}" + TEMPLATES["qwen"]


def test_the_view_shows_every_token_and_which_are_learned(tokenizer):
    sample = tokenize(CHAT, tokenizer)
    view = show_tokens(sample, tokenizer)
    assert (
        repr(view).count("learned") == sample.response_length
        and view._repr_html_().count("<span") == sample.total_length
    )


@pytest.mark.parametrize(
    "name", ["alpaca_en_demo.json", "glaive_toolcall_en_demo.json", "identity.json", "self_instruct_seed_tasks.jsonl"]
)
def test_files_made_by_others_are_tokenized_or_refused_by_name(wild, tokenizer, name):
    chats, _ = load_conversations(wild / name)
    samples, problems = tokenize_all(chats, tokenizer, max_length=512)
    assert len(samples) + len(problems) == len(chats) and len(samples) >= 10
    assert {problem.reason for problem in problems} <= {"too_long", "control_token"}


def test_a_tokenizer_left_truncating_cuts_no_text(tokenizer):
    tokenizer(["Liko lives in Velden."], truncation=True, max_length=3)
    (sample,) = tokenize_text(["Liko lives in Velden."], tokenizer)
    assert tokenizer.decode(sample.input_ids, skip_special_tokens=True) == "Liko lives in Velden."
