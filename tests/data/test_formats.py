"""Files in the shapes of data sets that people use: each is recognized, and says what it said."""

import gzip
import json

import pytest
from datasets.utils.logging import disable_progress_bar

from finetune_lib.core import ConfigError, DataError
from finetune_lib.data.files import Problem
from finetune_lib.data.hub import damaged, hub_rows, is_hub_name, load_checked, with_retries
from finetune_lib.data.records import load_conversations, read_conversations, recognize
from finetune_lib.data.turns import Conversation

disable_progress_bar()
Q, A = "Where does Mara live?", "Mara lives in Tarn."
MESSAGES = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"who": "Mara"}'}}
TREE = {
    "message_id": "1",
    "role": "prompter",
    "text": Q,
    "replies": [
        {"message_id": "2", "role": "assistant", "text": "No.", "rank": 1, "replies": []},
        {
            "message_id": "3",
            "role": "assistant",
            "text": A,
            "rank": 0,
            "replies": [
                {
                    "message_id": "4",
                    "role": "prompter",
                    "text": "Why?",
                    "rank": None,
                    "replies": [{"message_id": "5", "role": "assistant", "text": "Work.", "rank": None, "replies": []}],
                },
                {"message_id": "6", "role": "prompter", "text": "Never answered?", "replies": []},
            ],
        },
    ],
}


def flat(node: dict, parent: str | None = None) -> list[dict]:
    """The messages of a tree as rows, as OpenAssistant also publishes them."""
    mine = {**node, "parent_id": parent}
    return [
        {name: mine[name] for name in mine if name != "replies"},
        *(row for reply in node["replies"] for row in flat(reply, node["message_id"])),
    ]


def written(folder, rows, name="a.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return folder / name


def said(chats) -> list[list[str]]:
    return [[turn.content for turn in chat.turns] for chat in chats]


# the columns of 40 published instruction sets; by hand, from their cards
PUBLISHED = {
    "alpaca": {"instruction": Q, "input": "", "output": A, "text": f"### {Q} {A}"},
    "alpaca-cleaned": {"output": A, "input": "", "instruction": Q},
    "dolly-15k": {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
    "no_robots": {"prompt": Q, "prompt_id": "x", "messages": MESSAGES, "category": "open"},
    "ultrachat_200k": {"prompt": Q, "prompt_id": "x", "messages": MESSAGES},
    "OpenHermes-2.5": {"custom_instruction": None, "system_prompt": None, "conversations": SHAREGPT, "title": None},
    "OpenOrca": {"id": "niv.1", "system_prompt": "", "question": Q, "response": A},
    "SlimOrca": {"conversations": [SHAREGPT[0] | {"weight": None}, SHAREGPT[1] | {"weight": 1}]},
    "evol_instruct_70k": {"instruction": Q, "output": A},
    "evol_instruct_V2": {"idx": "x", "conversations": SHAREGPT},
    "gsm8k": {"question": Q, "answer": A},
    "MetaMathQA": {"type": "x", "query": Q, "original_question": "x", "response": A},
    "camel": {"role_1": "x", "topic;": "x", "message_1": Q, "message_2": A},
    "python_code_instructions": {"instruction": Q, "input": "", "output": A, "prompt": "x"},
    "lima": {"conversations": [Q, A], "source": "x"},
    "oasst trees": {"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": TREE},
    "oasst rows": flat(TREE)[0],
    "vicuna": {"id": "x_0", "conversations": SHAREGPT},
    "FLAN": {"inputs": Q, "targets": A, "task": "x"},
    "natural-instructions": {"task_name": "x", "id": "x", "definition": Q, "inputs": "Mara", "targets": A},
    "P3": {"inputs_pretokenized": Q, "targets_pretokenized": A},
    "NuminaMath": {"source": "x", "problem": Q, "solution": A, "messages": MESSAGES},
    "OpenMathInstruct-2": {"problem": Q, "generated_solution": A, "expected_answer": "7"},
    "Magpie": {"uuid": "x", "instruction": Q, "response": A, "conversations": SHAREGPT},
    "tulu-3": {"id": "x", "messages": MESSAGES, "source": "x"},
    "self-instruct seeds": {"id": "s", "name": "x", "instruction": Q, "instances": [{"input": "", "output": A}]},
    "self-instruct pairs": {"prompt": Q, "completion": A},
    "GPTeacher": {"instruction": Q, "input": "", "response": A},
    "GPT4All": {"prompt": Q, "response": A, "source": "x"},
    "LaMini": {"instruction": Q, "response": A, "instruction_source": "x"},
    "Firefly": {"kind": "x", "input": Q, "target": A},
    "CodeFeedback": {"query": Q, "answer": A, "resource": "x", "lang": "en"},
    "toolace": {"system": "Use tools.", "conversations": SHAREGPT},
    "hermes functions": {"id": "x", "conversations": SHAREGPT, "tools": json.dumps([TOOL]), "category": "x"},
    "aya": {"inputs": Q, "targets": A, "language": "English", "annotation_type": "x"},
    "platypus": {"input": "", "output": A, "instruction": Q, "data_source": "x"},
    "Capybara": {"source": "x", "conversation": [{"input": Q, "output": A}]},
    "lmsys-chat": {"conversation_id": "x", "model": "x", "conversation": MESSAGES, "turn": 1, "language": "English"},
    "WildChat": {"conversation_hash": "x", "conversation": MESSAGES, "toxic": False},
    "a sheet": {"Question": Q, " Answer ": A},
    "conversational prompt": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "text prompt, list completion": {"prompt": Q, "completion": MESSAGES[1:]},
    "list prompt, text completion": {"prompt": MESSAGES[:1], "completion": A},
    "glaive-code": {"question": Q, "answer": A},
}


def test_at_least_95_percent_of_published_shapes_need_no_mapping(tmp_path):
    missed = []
    for name, row in PUBLISHED.items():
        chats = [record for record in read_conversations(written(tmp_path, [row])) if isinstance(record, Conversation)]
        contents = " ".join(text for chat in said(chats) for text in chat)
        if Q not in contents or (A not in contents and name != "oasst rows"):
            missed.append(name)
    assert len(missed) <= 0.05 * len(PUBLISHED), missed


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_tools_calls_and_their_answers_are_kept_in_openai_shape(tmp_path, suffix):
    row = {
        "messages": [
            MESSAGES[0],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Tarn"},
            MESSAGES[1],
        ],
        "tools": [TOOL],
    }
    chats, problems = load_conversations(written(tmp_path, [row], f"a.{suffix}"))
    assert not problems and chats[0].tools == (TOOL,)
    assert chats[0].turns[1].tool_calls[0]["function"] == {"name": "find", "arguments": {"who": "Mara"}}
    assert chats[0].turns[2].to_message() == {"role": "tool", "tool_call_id": "call_1", "content": "Tarn"}
    again, _ = load_conversations(written(tmp_path, [chats[0].to_row()]))
    assert again == chats


def test_the_older_function_call_and_functions_are_understood(tmp_path):
    row = {
        "messages": [
            MESSAGES[0],
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "find", "content": "Tarn"},
            MESSAGES[1],
        ],
        "functions": [TOOL],
    }
    chats, problems = load_conversations(written(tmp_path, [row]))
    assert not problems and chats[0].tools and chats[0].turns[1].tool_calls[0]["function"]["name"] == "find"
    assert (chats[0].turns[2].role, chats[0].turns[2].name) == ("tool", "find")


@pytest.mark.parametrize("shuffled", [False, True])
def test_trees_give_the_best_path_or_every_path_nested_and_flat(tmp_path, shuffled):
    rows = flat(TREE)[::-1] if shuffled else flat(TREE)
    nested = written(tmp_path, [{"message_tree_id": "1", "prompt": TREE}], "nested.jsonl")
    for path in (nested, written(tmp_path, rows, "flat.jsonl")):
        best = [record for record in read_conversations(path)]
        assert said(best) == [[Q, A, "Why?", "Work."]]
        every = read_conversations(path, every_path=True)
        assert said(every) == [[Q, A, "Why?", "Work."], [Q, "No."]] and every.problems == {}
    assert every.rows == 6 and every.tree_rows == {"in a conversation": 5, "on no chosen path": 1}


def test_every_flat_message_is_in_a_path_on_none_or_a_problem(tmp_path):
    lost = {"message_id": "9", "parent_id": "8", "role": "assistant", "text": "Who knows."}
    reading = read_conversations(written(tmp_path, [*flat(TREE), lost, flat(TREE)[1]]))
    problems = [record for record in reading if isinstance(record, Problem)]
    assert [(problem.line, problem.reason) for problem in problems] == [(7, "no_parent"), (8, "no_parent")]
    assert reading.rows == sum(reading.tree_rows.values()) + len(problems)


def test_several_conversations_of_one_row_have_several_ids(tmp_path):
    row = {
        "id": "seed_1",
        "instruction": "Plural?",
        "instances": [{"input": "fox", "output": "foxes"}, {"input": "ox", "output": "oxen"}],
    }
    records = list(read_conversations(written(tmp_path, [row])))
    assert [record.id for record in records] == ["seed_1-0", "seed_1-1"]


def test_a_file_a_list_and_a_pattern_read_the_same(tmp_path):
    rows = [{"prompt": f"{Q} {n}", "completion": A} for n in range(4)]
    paths = [written(tmp_path, rows[:2], "a.jsonl"), written(tmp_path, rows[2:], "b.jsonl")]
    by_list = list(read_conversations(paths))
    assert (
        list(read_conversations(tmp_path / "*.jsonl")) == list(read_conversations(str(tmp_path / "?.jsonl"))) == by_list
    )
    assert len(by_list) == 4 and by_list[3].place == ("b.jsonl", 2)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        read_conversations(tmp_path / "*.csv")


@pytest.mark.parametrize("packed", [False, True])
def test_an_object_around_one_list_gives_its_rows_with_their_lines(tmp_path, packed):
    data = json.dumps({"version": 1, "tools": [TOOL], "data": [{"prompt": Q, "completion": A}] * 2}, indent=1).encode()
    path = tmp_path / ("a.json.gz" if packed else "a.json")
    path.write_bytes(gzip.compress(data) if packed else data)
    chats = list(read_conversations(path))
    lines = data.decode().splitlines()
    assert len(chats) == 2 and all(lines[chat.place[1] - 1].strip() == "{" for chat in chats)


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"prompt": Q, "chosen": A, "rejected": "No."}, "{'instruction': 'prompt', 'response': 'chosen'}"),
        ({"chosen": MESSAGES, "rejected": MESSAGES}, "{'messages': 'chosen'}"),
    ],
)
def test_a_preference_set_is_refused_with_its_columns_and_a_mapping_that_works(tmp_path, row, mapping):
    path = written(tmp_path, [row])
    with pytest.raises(DataError) as caught:
        load_conversations(path)
    assert "format_preference" in str(caught.value) and "chosen, rejected" in str(caught.value)
    assert f"mapping={mapping}" in str(caught.value)
    chats, _ = load_conversations(path, mapping=json.loads(mapping.replace("'", '"')))
    assert said(chats) == [[Q, A]]


def test_a_mapping_of_a_column_that_is_not_there_fails_before_the_first_row(tmp_path):
    path = written(tmp_path, [{"ask": Q, "reply": A}])
    with pytest.raises(ConfigError, match="did you mean 'reply'"):
        read_conversations(path, mapping={"instruction": "ask", "response": "repl"})


def test_recognition_says_which_columns_and_why():
    found = recognize({"Question": Q, "Answer": A, "topic": "x"})
    assert found.reason == "Question asks and Answer answers" and found.columns == ("Question", "Answer", "topic")


@pytest.fixture
def folder(tmp_path):
    """A data set as the hub holds it: a folder with files."""
    (tmp_path / "towns").mkdir()
    written(tmp_path / "towns", [{"prompt": f"Town {n}?", "completion": "Tarn."} for n in range(20)], "train.jsonl")
    return tmp_path / "towns"


def test_a_data_set_is_read_by_name_like_a_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    by_name = read_conversations(f"hub:{folder}")
    assert said(by_name) == said(read_conversations(folder / "train.jsonl")) and by_name.rows == 20


@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_damaged_cache_entry_is_found_and_made_again(folder, tmp_path, harm):
    first = list(load_checked(str(folder), cache=tmp_path / "cache"))
    table = next((tmp_path / "cache").rglob("*.arrow"))
    whole = table.read_bytes()
    if harm == "gone":
        table.unlink()
    else:
        table.write_bytes(whole.replace(b"Town 7?", b"Town 8?") if harm == "changed" else whole[: len(whole) // 2])
    assert damaged(table.parent) == [table.name]
    assert list(load_checked(str(folder), cache=tmp_path / "cache")) == first and not damaged(table.parent)


def test_only_what_may_pass_is_tried_again_and_the_wait_doubles():
    waits, calls = [], []

    def never():
        calls.append(1)
        raise ConnectionError("no route")

    with pytest.raises(ConnectionError):
        with_retries(never, attempts=4, wait=0.5, sleep=waits.append)
    assert waits == [0.5, 1.0, 2.0] and len(calls) == 4
    with pytest.raises(FileNotFoundError):
        with_retries(lambda: open("nowhere"), sleep=waits.append)
    assert len(waits) == 3


def test_a_typing_error_in_a_path_is_no_request_to_a_server(tmp_path):
    assert is_hub_name("owner/name") and is_hub_name("owner/name:test") and is_hub_name("hub:squad")
    assert not any(
        map(is_hub_name, ["data.jsonl", "data/train.jsonl", "data/train.csv.gz", str(tmp_path / "x"), tmp_path])
    )
    with pytest.raises(DataError, match="cannot be loaded"):
        list(hub_rows(f"hub:{tmp_path / 'none'}", tmp_path / "cache"))
