"""Every row is recognized or refused by name, and becomes a conversation or a problem."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_lib.core import ConfigError, DataError
from finetune_lib.data.files import Problem, RecordError
from finetune_lib.data.records import (
    exchanges,
    load_conversations,
    load_text,
    read_conversations,
    recognize,
    write_conversations,
)
from finetune_lib.data.turns import Conversation, InstructionSample, Turn, content_id, to_turns

TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
FILLED = TEXT.filter(str.strip)
Q, A = "Where does Mara live?", "Mara lives in Tarn."
CHAT = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
SHAPES = {
    "alpaca": {"instruction": Q, "input": "", "output": A},
    "dolly": {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
    "instruction/response": {"question": Q, "answer": A},
    "prompt/completion": {"prompt": Q, "completion": A},
    "sharegpt": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "messages": {"messages": CHAT},
    "openassistant": {
        "prompt": {
            "text": Q,
            "role": "prompter",
            "replies": [
                {"text": "No.", "role": "assistant", "rank": 1, "replies": []},
                {"text": A, "role": "assistant", "rank": 0, "replies": []},
            ],
        }
    },
    "self-instruct": {"instruction": Q, "instances": [{"input": "", "output": A}]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_recognized_and_says_the_same(tmp_path, shape):
    assert recognize(SHAPES[shape]).format == shape
    (tmp_path / "a.jsonl").write_text(json.dumps(SHAPES[shape]))
    chats, problems = load_conversations(tmp_path / "a.jsonl")
    assert not problems and [(t.role, t.content) for t in chats[0].turns] == [("user", Q), ("assistant", A)]
    assert chats[0].id == content_id(chats[0].turns)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": Q, "chosen": A, "rejected": "No."}, "preference"),
        ({"text": "Prose."}, "text"),
        ({"a": 1}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name_with_its_columns(tmp_path, row, shape):
    assert recognize(row).format == shape and not recognize(row).usable
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=f"format_{shape}"):
        load_conversations(tmp_path / "a.jsonl")


@given(FILLED, FILLED, TEXT, TEXT)
def test_an_instruction_becomes_a_conversation_and_back_without_loss(instruction, response, system, context):
    sample = InstructionSample(instruction, response, system, context, source="x", quality_score=0.5)
    chat = sample.to_conversation()
    assert InstructionSample.from_conversation(chat) == sample
    assert (
        instruction in chat.turns[-2].content
        and context in chat.turns[-2].content
        and chat.turns[-1].content == response
    )


@given(st.lists(st.tuples(FILLED, FILLED), min_size=1, max_size=6), st.sampled_from(["sharegpt", "messages"]))
def test_all_pairs_of_a_chat_are_extracted_in_order(pairs, dialect):
    said = [part for pair in pairs for part in zip(("user", "assistant"), pair, strict=True)]
    names = {"user": "human", "assistant": "gpt"}
    items = [
        {"from": names[role], "value": text} if dialect == "sharegpt" else {"role": role, "content": text}
        for role, text in said
    ]
    assert [(turn.role, turn.content) for turn in to_turns(items)] == said


def test_tool_calls_keep_their_name_and_arguments():
    turns = to_turns(
        [
            {"from": "human", "value": Q},
            {"from": "function_call", "value": '{"name": "find", "arguments": {"who": "Mara"}}'},
            {"from": "observation", "value": "Tarn"},
            {"from": "gpt", "value": A},
        ]
    )
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1].tool_calls[0]["function"] == {"name": "find", "arguments": {"who": "Mara"}}
    openai = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"who": "Mara"}'}}
            ],
        }
    ]
    assert to_turns(openai)[0].tool_calls[0]["function"]["arguments"] == {"who": "Mara"}


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([{"role": "narrator", "content": "x"}], "unknown_role"),
        ([{"role": "user", "content": 3}], "not_text"),
        ([{"role": "user"}], "missing_field"),
        (["x"], "not_text"),
        ([{"from": "function_call", "value": "not json"}], "bad_tool_call"),
        ([{"role": "user", "content": "\ud800"}], "encoding"),
    ],
)
def test_a_bad_message_is_a_record_error_with_its_reason(items, reason):
    with pytest.raises(RecordError) as caught:
        to_turns(items)
    assert caught.value.reason == reason


@pytest.mark.parametrize("missing", ["instruction", "response"])
def test_validation_names_the_required_field(missing):
    with pytest.raises(DataError, match=missing):
        InstructionSample(**{"instruction": Q, "response": A, missing: None})


ROWS = st.recursive(
    st.none() | st.booleans() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "instruction",
                    "output",
                    "input",
                    "messages",
                    "role",
                    "content",
                    "instances",
                    "prompt",
                    "replies",
                    "text",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(ROWS, min_size=1, max_size=8))
def test_whatever_a_row_holds_it_is_counted_once(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    reading = read_conversations(path)
    records = list(reading)
    assert reading.rows == len(rows) <= reading.records == len(records)
    assert reading.conversations == sum(isinstance(record, Conversation) for record in records)
    for record in records:
        if isinstance(record, Problem):
            assert record.file == "a.jsonl" and 1 <= record.line <= len(rows) and record.reason


def test_written_conversations_are_read_back_the_same(tmp_path):
    chats = [
        Conversation("a", to_turns(CHAT), "src", ({"name": "find"},), {"family": "places"}, 0.5),
        Conversation(
            "b",
            [Turn("system", "Be kind."), *to_turns(CHAT), Turn("user", "More?"), Turn("assistant", "No.", train=False)],
        ),
    ]
    assert write_conversations(tmp_path / "a.jsonl", chats) == 2
    back, _ = load_conversations(tmp_path / "a.jsonl")
    assert back[0] == chats[0] and back[1].turns == chats[1].turns


def test_ids_differ_where_contents_do(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"id": 1, "prompt": Q, "completion": str(i)}) for i in range(5))
    )
    chats, _ = load_conversations(tmp_path / "a.jsonl")
    assert len({chat.id for chat in chats}) == 5


def test_one_sample_for_each_exchange_keeps_the_history_untrained():
    chat = Conversation("c", to_turns(CHAT * 3))
    parts = list(exchanges(chat))
    assert [len(part.turns) for part in parts] == [2, 4, 6] and len({part.id for part in parts}) == 3
    assert all([turn.train for turn in part.turns if turn.role == "assistant"][:-1].count(True) == 0 for part in parts)


def test_a_mapping_overrides_and_a_wrong_one_fails_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"ask": Q, "reply": A}))
    chats, _ = load_conversations(tmp_path / "a.jsonl", mapping={"instruction": "ask", "response": "reply"})
    assert chats[0].turns[1].content == A
    with pytest.raises(ConfigError, match="instruction"):
        read_conversations(tmp_path / "a.jsonl", mapping={"instructon": "ask"})
    with pytest.raises(FileNotFoundError):
        read_conversations(tmp_path / "b*.jsonl")


COUNTS = {
    "alpaca_en_demo.json": (999, "alpaca"),
    "glaive_toolcall_en_demo.json": (300, "sharegpt"),
    "identity.json": (91, "alpaca"),
    "self_instruct_seed_tasks.jsonl": (175, "self-instruct"),
    "c4_120.jsonl": (120, "text"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_files_made_by_others_are_read_whole_or_refused_by_name(wild, name):
    reading = read_conversations(wild / name)
    records = list(reading)
    count, shape = COUNTS[name]
    assert reading.rows == reading.records == len(records) == count and {f for _, f, _ in reading.recognized} == {shape}
    if shape == "text":
        assert reading.problems == {"format_text": count} and len(load_text(wild / name)) == count
    else:
        assert reading.conversations == count


def test_tool_calls_and_tools_of_glaive_are_kept(wild):
    chats, _ = load_conversations(wild / "glaive_toolcall_en_demo.json")
    assert sum(bool(turn.tool_calls) for chat in chats for turn in chat.turns) == 211
    assert sum(turn.role == "tool" for chat in chats for turn in chat.turns) == 211 and any(
        chat.tools for chat in chats
    )
