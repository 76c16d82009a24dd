"""What must hold for any data: all pairs are extracted, nothing of them is lost, errors name the row and the field."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError, FinetuneError
from finetune_lib.data.files import Problem
from finetune_lib.data.quality import clean
from finetune_lib.data.records import read_conversations
from finetune_lib.data.turns import Conversation, InstructionSample, Turn

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(str.strip)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def shaped(shape: str, asked: str, said: str) -> dict:
    """One exchange as a row of a format."""
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {
        "alpaca": {"instruction": asked, "input": "", "output": said},
        "dolly": {"instruction": asked, "context": "", "response": said, "category": "x"},
        "prompt/completion": {"prompt": asked, "completion": said},
        "messages": {"messages": messages},
        "sharegpt": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]},
        "self-instruct": {"instruction": asked, "instances": [{"input": "", "output": said}]},
        "openassistant": {
            "prompt": {
                "role": "prompter",
                "text": asked,
                "replies": [{"role": "assistant", "text": said, "replies": []}],
            }
        },
    }[shape]


SHAPES = st.sampled_from(
    ["alpaca", "dolly", "prompt/completion", "messages", "sharegpt", "self-instruct", "openassistant"]
)


@many
@given(PAIRS, SHAPES, st.sampled_from(["json", "jsonl"]))
def test_parsing_extracts_all_pairs_in_order(tmp_path_factory, pairs, shape, kind):
    path = tmp_path_factory.mktemp("pairs") / f"a.{kind}"
    rows = [shaped(shape, *pair) for pair in pairs]
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    got = [tuple(turn.content for turn in chat.turns) for chat in read_conversations(path)]
    assert got == pairs


@many
@given(
    pairs=st.lists(
        st.tuples(
            st.text("abc xyzäö", min_size=1, max_size=20).filter(str.strip),
            st.text("abc xyzäö", min_size=1, max_size=20).filter(str.strip),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_the_formatted_text_contains_both_parts_of_every_pair(tokenizer, pairs):
    turns = [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    messages = [turn.to_message() for turn in Conversation("", turns).turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    for turn in turns:
        assert turn.content.strip() in text
        text = text[text.index(turn.content.strip()) + len(turn.content.strip()) :]  # once, and in order


@given(TEXT, TEXT, st.sampled_from(["instruction", "response"]), st.sampled_from([None, 3, ["x"], {"a": 1}]))
def test_validation_names_the_required_field(asked, said, field, wrong):
    with pytest.raises(DataError, match=f"{field} must be text"):
        InstructionSample(**({"instruction": asked, "response": said} | {field: wrong}))


@many
@given(st.lists(st.sampled_from(["good", "no answer", "no question", "bad role", "not text"]), min_size=1, max_size=12))
def test_errors_carry_the_file_the_line_and_the_id_of_their_row(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("errors") / "a.jsonl"
    made = {
        "good": {"prompt": "Hi.", "completion": "Ho."},
        "no answer": {"prompt": "Hi."},
        "no question": {"output": "Ho."},
        "bad role": {"messages": [{"role": "wizard", "content": "Hi."}]},
        "not text": {"prompt": "x", "completion": 3},
    }
    path.write_text("\n".join(json.dumps({"id": f"row-{n}", **made[kind]}) for n, kind in enumerate(kinds)))
    named = {"no answer": "response", "no question": "instruction", "bad role": "wizard", "not text": "response"}
    for number, (kind, record) in enumerate(zip(kinds, read_conversations(path), strict=True)):
        assert isinstance(record, Problem) == (kind != "good")
        if kind != "good":
            assert (record.file, record.line, record.record_id) == ("a.jsonl", number + 1, f"row-{number}")
            assert named[kind] in record.detail and record.row["id"] == f"row-{number}"


@many
@given(st.data())
def test_an_instruction_and_a_conversation_are_one_or_the_other_without_loss(data):
    sample = InstructionSample(
        data.draw(TEXT),
        data.draw(TEXT),
        data.draw(st.text(max_size=10)),
        data.draw(st.text(max_size=10)),
        metadata=data.draw(st.dictionaries(TEXT, st.integers())),
    )
    assert InstructionSample.from_conversation(sample.to_conversation()) == sample
    turns = data.draw(
        st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXT, st.booleans()), max_size=4)
    )
    chat = Conversation("x", turns, "y", data.draw(st.sampled_from([None, ({"name": "find"},)])), {"family": "places"})
    try:
        back = InstructionSample.from_conversation(chat)
    except DataError as error:
        assert "x" in str(error)
    else:
        assert back.to_conversation() == chat


@many
@given(st.binary(max_size=400), st.sampled_from(["json", "jsonl", "csv", "tsv", "parquet", "jsonl.gz", "json.gz"]))
def test_any_bytes_end_in_an_error_or_a_sum_that_comes_out(tmp_path_factory, data, kind):
    path = tmp_path_factory.mktemp("bytes") / f"a.{kind}"
    path.write_bytes(data)
    accounted(path)


PIECES = st.sampled_from(
    [
        '{"prompt": "Hi.", "completion": "Ho."}',
        "[",
        "]",
        "{",
        "}",
        ",",
        "\n",
        '"',
        "\\",
        '{"a": 1}',
        '"messages": [',
        '{"data": [',
        "NaN",
        "\ufeff",
        "é",
        "\udce9",
        "1e999",
        r'"\ud800"',
        "prompt,completion",
    ]
)


@many
@given(st.lists(PIECES, max_size=14), st.sampled_from(["json", "jsonl", "csv"]))
def test_any_pieces_of_json_end_in_an_error_or_a_sum_that_comes_out(tmp_path_factory, pieces, kind):
    path = tmp_path_factory.mktemp("pieces") / f"a.{kind}"
    path.write_bytes("".join(pieces).encode("utf-8", "surrogateescape"))
    accounted(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "value",
                    "text",
                    "input",
                    "output",
                    "replies",
                    "tool_calls",
                    "function",
                    "name",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
)
COLUMNS = st.sampled_from(
    [
        "instruction",
        "output",
        "prompt",
        "completion",
        "messages",
        "conversations",
        "instances",
        "tools",
        "text",
        "id",
        "chosen",
        "rejected",
        "system",
        "message_id",
        "parent_id",
        "quality_score",
        "row",
    ]
)


@many
@given(st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), min_size=1, max_size=6))
def test_any_rows_end_in_a_sum_that_comes_out(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    reading = accounted(path)
    assert reading.rows == len(rows)


def accounted(path):
    """The reading of a file whose every record was kept, quarantined or removed; or an error of ours."""
    reading, problems = read_conversations(path), []
    try:
        kept, report = clean(reading, near=None, problems=problems)
    except FinetuneError as error:
        assert path.name in str(error)
        return reading
    lost = sum(report.quarantined.values()) + sum(report.removed.values())
    assert report.read == reading.records == len(kept) + lost and len(problems) == sum(report.quarantined.values())
    assert all(problem.file == path.name and problem.line >= 1 for problem in problems)
    return reading
