"""Checks of milestone 1: nothing is lost silently, and nothing is learned that should not be."""
import random

import pytest

from milestones.expecting import expect, refuses, same


@pytest.mark.task("1.1", points=5)
def test_roles_of_all_dialects_become_ours(lib, seed):
    items = [
        {"from": "system", "value": "Be short"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"role": "User", "content": "And?"},
        {"role": "assistant", "content": "Well", "weight": 0},
        {"role": "prompter", "text": "So?"},
        {"role": "assistant", "content": "So", "train": False},
    ]
    turns = lib.to_turns(items)
    roles, learned = [turn.role for turn in turns], [turn.train for turn in turns]
    same(roles, ["system", "user", "assistant", "user", "assistant", "user", "assistant"], "the roles", {
        "the system turn is lost": roles[:1] == ["user"], "human and gpt are kept as they are": "human" in roles})
    same([turn.content for turn in turns], ["Be short", "Hi", "Hello", "And?", "Well", "So?", "So"], "the contents")
    same(learned, [True, True, True, True, False, True, False], "what is to be learned", {
        "a message that says nothing of weight or train is left out": not any(learned),
        "weight 0 is not looked at: the turn would be learned": learned[4:5] == [True],
        "our own train: false is not looked at: the turn would be learned after all": learned[6:] == [True]})


@pytest.mark.task("1.1", points=4, values=False)
def test_what_is_no_message_is_refused_and_a_call_says_nothing(lib, seed):
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": 3}'}}
    said = '{"name": "look", "arguments": {"at": 3}}'
    for item, what, mistake in (
        ({"role": "assistant", "content": None, "tool_calls": [call]}, "a message that only calls a tool",
         "the call is lost"),
        ({"from": "function_call", "value": said}, "ShareGPT's function_call",
         "the call stays a text: the model would learn to say it"),
    ):
        turn = lib.to_turns([item])[0]
        expect(turn.content == "" and turn.tool_calls, f"{what} has no content and its call", "'' and one call",
               f"{turn.content!r} and {turn.tool_calls!r}", {mistake: not turn.tool_calls})
        given = turn.tool_calls[0]["function"]["arguments"]
        same(given, {"at": 3}, "the arguments of the call", {"they are still JSON text": isinstance(given, str)})
    for items, what in (
        ([{"role": "wizard", "content": "Hi"}], "an unknown role"),
        ([{"role": "user", "content": 3}], "a number for text"),
        ([{"role": "user"}], "a message without content"),
        (["Hi"], "a message that is no object"),
    ):
        refuses(lambda items=items: lib.to_turns(items), what, lib.RecordError)


@pytest.mark.task("1.2", points=8, hint="look for what only one format has, and look for it first")
def test_known_formats_are_recognized(lib, seed):
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    spoken = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = {
        "alpaca": {"instruction": "Add", "input": "1 2", "output": "3", "text": "Add 1 2: 3"},
        "dolly": {"instruction": "Add", "context": "1 2", "response": "3", "category": "sums"},
        "prompt/completion": {"prompt": "Add", "completion": "3"},
        "instruction/response": {"question": "Where?", "answer": "Here", "topic": "places"},
        "sharegpt": {"id": seed, "conversations": said},
        "messages": {"messages": spoken},
        "self-instruct": {"instruction": "Add", "instances": [{"input": "1 2", "output": "3"}]},
        "openassistant": {"prompt": {"text": "Hi", "role": "prompter", "replies": []}},
    }
    for name, row in [*rows.items(), ("messages", {"conversations": spoken}), ("sharegpt", {"conversation": said})]:
        got = lib.recognize(row)
        same(got.format, name, f"the format of a row with {', '.join(row)}", {
            "from/value is not told from role/content": {got.format, name} == {"sharegpt", "messages"},
            "a row that also has the whole as text is taken for text": got.format == "text",
            "instances are not looked at": name == "self-instruct",
            "a tree of replies is taken for a prompt": name == "openassistant",
            "only the two columns are looked at, not context and category": name == "dolly",
            "a pair is called by its own columns, where the course has one name for all of them": "/" in got.format})
        expect(got.usable, f"{name} can be used", "usable=True", "usable=False")


@pytest.mark.task("1.2", points=5, values=False)
def test_each_column_plays_its_part_and_what_cannot_be_used_is_told(lib, seed):
    row = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be short"}
    want = {"instruction": "instruction", "response": "output", "input_context": "input", "system_prompt": "system"}
    got = lib.recognize(row).mapping
    same(got, want, "the parts of instruction, input, output and system", {
        "the system prompt is lost": got == {k: v for k, v in want.items() if k != "system_prompt"},
        "the input is lost": "input_context" not in got})
    got = lib.recognize({"input": "Add 1 2", "output": "3"}).mapping
    same({ours: theirs for ours, theirs in got.items() if theirs}, {"instruction": "input", "response": "output"},
         "the parts of input and output", {
             "input is the question here, and its context as well: it would be asked twice": "input_context" in got})
    for row, name in (({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, "preference"),
                      ({"prompt": "Hi", "completion": "Go", "label": False}, "preference"),
                      ({"text": "Once"}, "text"), ({"x": 1, "y": 2}, "unknown")):
        got = lib.recognize(row)
        same(
            (got.format, got.usable, got.columns),
            (name, False, tuple(row)),
            f"(format, usable, columns) of {', '.join(row)}",
            {"a preference pair is taken for a prompt: half of each must not be learned": name == "preference"},
        )


@pytest.mark.task("1.3", points=9, hint="a and b, b and c: then a and c as well, in whatever order the pairs come")
def test_what_hangs_together_is_one_cluster(lib, seed):
    names = list(range(60))
    random.shuffle(names)
    groups = [
        sorted(names[:12]),
        sorted(names[12:25]),
        sorted(names[25:27]),
    ]  # two long chains, one pair, the rest alone
    pairs = [(a, b, 0.9) for start, end in ((0, 12), (12, 25), (25, 27))
             for a, b in zip(names[start:end], names[start + 1:end], strict=False)]
    random.shuffle(pairs)
    want = list(range(60))
    for group in groups:
        for member in group:
            want[member] = group[0]
    got = lib.clusters(60, pairs)
    number = len(set(got)) if got is not None else 0
    same(got, want, "the clusters of two chains and a pair among 60 texts", {
        "nothing is joined": list(range(60)),
        "only direct pairs are joined, not pairs of pairs": number > len(set(want)),
        "the cluster is not called by its smallest member": number == len(set(want))})


def rendered(messages, generation_prompt):
    """A template without marks: each turn opened by its role, closed by a stop token and a line break."""
    text = "<s>" + "".join(f"<|{m['role']}|> {m['content']}<|end|>\n" for m in messages)
    return text + "<|assistant|>" * generation_prompt


@pytest.mark.task(
    "1.4", points=9, hint="render up to the answer with its opening, and up to its end; the answer lies between"
)
def test_spans_are_the_answers_with_their_stop_tokens(lib, seed):
    messages = [{"role": "system", "content": "Short"}]
    for number in range(2 + seed % 2):
        messages += [
            {"role": "user", "content": f"Q{number}" * (1 + seed % 3)},
            {"role": "tool", "content": f"T{number}"},
            {"role": "assistant", "content": f"A{number + seed}"},
        ]
    whole, got = rendered(messages, False), lib.spans_by_prefix(messages, rendered)
    answers = [f" A{number + seed}<|end|>" for number in range(2 + seed % 2)]
    texts = [whole[start:end] for start, end in got]
    same(
        texts,
        answers,
        "the text of the spans",
        {
            "the line break behind the stop token is learned too": [answer + "\n" for answer in answers],
            "the stop token is left out: the model never learns to stop": [
                answer.removesuffix("<|end|>") for answer in answers
            ],
            "the generation prompt is learned too": ["<|assistant|>" + answer for answer in answers],
            "only what was said is found, not the stop token behind it": [
                answer.removesuffix("<|end|>").strip() for answer in answers
            ],
            "only the last answer is found": answers[-1:],
            "only the first answer is found": answers[:1],
            "a span is (start, end) in characters of the whole text, not (start, length)": len(got) > 1 and all(
                end < start for start, end in got[1:]
            ),
            "user turns are learned too": len(texts) > len(answers),
        },
    )


@pytest.mark.task("1.4", points=5, values=False)
def test_a_template_whose_prefixes_disagree_is_refused(lib, seed):
    def numbered(messages, generation_prompt):
        return f"{len(messages)} turns\n" + rendered(messages, generation_prompt)
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}] * 2
    wrong = lib.UntrainableError
    refuses(lambda: lib.spans_by_prefix(messages, numbered), "a template that renders a prefix differently", wrong)

    def opened(messages, generation_prompt):
        return rendered(messages, False) + "<|bot|>" * generation_prompt
    what = "a template whose opening is not how an answer begins"
    refuses(lambda: lib.spans_by_prefix(messages, opened), what, wrong)


def tokens_of(*widths):
    """Offsets of tokens of these widths, and their ids."""
    ends = [sum(widths[:i + 1]) for i in range(len(widths))]
    return [(end - width, end) for end, width in zip(ends, widths, strict=True)]


@pytest.mark.task("1.5", points=12, hint="the label is the id itself, at its own place; the model shifts")
def test_labels_are_the_ids_inside_the_spans(lib, seed):
    offsets = tokens_of(3, 2, 4, 1, 5, 2, 3, 1)
    ids = random.sample(range(10, 99), 7) + [2]
    ids[3] = ids[7]  # the stop token also stands at the end, where it may be taken for padding
    spans = [(3, 10), (15, 21)]
    inside = [False, True, True, True, False, True, True, True]
    want = [token if learned else -100 for token, learned in zip(ids, inside, strict=True)]
    given = list(ids)
    got = lib.label_tokens(given, offsets, spans)
    same(given, ids, "the ids after the call", {"labels are written into the ids themselves; take a list of your own":
                                                given != ids})
    same(
        got,
        want,
        "the labels",
        {
            "nothing is masked: the prompt is learned": ids,
            "the labels are shifted, and the model shifts them again": [*want[1:], -100],
            "only the first span is learned": [*want[:4], *[-100] * 4],
            "only the last span is learned": [*[-100] * 5, *want[5:]],
            "the last token of each span, its stop token, is left out": [
                -100 if i in (3, 7) else t for i, t in enumerate(want)
            ],
            "prompt and answer are exchanged": [
                -100 if learned else token for token, learned in zip(ids, inside, strict=True)
            ],
            "ones stand where the ids should": [1 if learned else -100 for learned in inside],
            "0 masks, not -100": [token if learned else 0 for token, learned in zip(ids, inside, strict=True)],
        },
    )


@pytest.mark.task("1.5", points=5, values=False)
def test_a_token_across_the_beginning_of_an_answer_is_refused(lib, seed):
    refuses(lambda: lib.label_tokens([5, 6, 7], tokens_of(3, 4, 2), [(5, 9)]), "a token with one foot in the prompt",
            lib.UntrainableError)
    got = lib.label_tokens([5, 6, 7], tokens_of(3, 4, 2), [(3, 6)])
    same(got, [-100, 6, -100], "the labels where a token covers an answer's end and what follows", {
        "a token that reaches behind the span is left out, though the answer ends in it": got == [-100] * 3})
    same(lib.label_tokens([5, 6, 7], tokens_of(3, 4, 2), []), [-100] * 3, "the labels without any span")


@pytest.mark.task(
    "1.6", points=6, values=False, hint="a group goes whole; the seed and the name decide, never the order"
)
def test_the_split_depends_on_names_and_seed_alone(lib, seed):
    names = [f"group {number}" for number in range(300)]
    sizes = {name: 1 + (number * 7) % 5 for number, name in enumerate(names)}
    shuffled = dict(random.sample(list(sizes.items()), len(sizes)))
    asked, own = [], hash
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.hash", lambda value: asked.append(value) or own(value))
        once, again, other = (
            lib.assign_groups(s, (0.8, 0.1, 0.1), n) for s, n in ((sizes, seed), (shuffled, seed), (sizes, seed + 1))
        )
    expect(not asked, "the split is the same in every process", "a hash from hashlib", "Python's own hash()",
           {"hash() of a text is another number each time that Python starts": True})
    expect(once.keys() == sizes.keys(), "every group has a split", str(len(sizes)), str(len(once)))
    moved = sum(once[name] != again[name] for name in names)
    same(moved, 0, "groups that move when the file's order changes", {
        "the order of the file decides, or chance without the seed": moved > 20})
    moved = sum(once[name] != other[name] for name in names)
    expect(
        moved > 20,
        "another seed gives another split",
        "many groups move",
        f"{moved} groups move",
        {"all groups go to one split": len(set(once.values())) == 1, "the seed is not used": True},
    )


@pytest.mark.task("1.6", points=4, values=False)
def test_the_splits_have_the_asked_sizes(lib, seed):
    asked, found = (0.7, 0.2, 0.1), []
    for part in range(3):
        sizes = {f"{seed} {part} {number}": 1 if number % 4 else 9 for number in range(400)}
        place, total = lib.assign_groups(sizes, asked, seed), sum(sizes.values())
        found.append([sum(sizes[name] for name in sizes if place[name] == split) / total for split in range(3)])
    got = max(found, key=lambda shares: max(abs(share - ratio) for share, ratio in zip(shares, asked, strict=True)))
    near = all(abs(share - ratio) < 0.01 for share, ratio in zip(got, asked, strict=True))
    expect(
        near,
        "the splits have 70, 20 and 10 % of the conversations",
        "0.70, 0.20, 0.10",
        ", ".join(f"{share:.2f}" for share in got),
        {
            "the ratios are taken the other way round": abs(got[0] - 0.1) < 0.05,
            "groups are shared out in turn, whatever the ratios": max(got) - min(got) < 0.05,
            "groups are counted, not the conversations in them; or each is placed by itself, so that chance decides":
                max(abs(share - ratio) for share, ratio in zip(got, asked, strict=True)) < 0.15,
            "all goes to one split": max(got) > 0.99,
        },
    )


def sample(lib, ids, prompt):
    labels = [-100] * prompt + ids[prompt:]
    return lib.TokenizedSample("one", ids, [1] * len(ids), labels, prompt, len(ids) - prompt, len(ids))


@pytest.mark.task("1.7", points=10, hint="what padding is differs for each of the three tensors")
def test_padding_is_neither_seen_nor_learned(lib, seed):
    import torch

    stop = 2
    rows = [[5 + seed % 9, 6, 7, stop], [8, stop], [9, stop, 4, 3, stop]]
    batch = lib.collate([sample(lib, ids, 1) for ids in rows], stop, 8)
    same(sorted(batch), ["attention_mask", "input_ids", "labels"], "the names in a batch")
    width = 8

    def filled(value, lists):
        return torch.tensor([list(row) + [value] * (width - len(row)) for row in lists])
    learned = [[-100, *ids[1:]] for ids in rows]
    same(batch["input_ids"], filled(stop, rows), "input_ids", {
        "padding stands in front": torch.tensor([[stop] * (width - len(row)) + row for row in rows]),
        "the length is not rounded up to a multiple of 8": batch["input_ids"].shape[1] == 5,
        "rows are cut to the shortest": batch["input_ids"].shape[1] == 2}, dtype=torch.long)
    same(batch["attention_mask"], filled(0, [[1] * len(row) for row in rows]), "attention_mask", {
        "padding is attended to": torch.ones(3, width, dtype=torch.long),
        "the prompt is masked here: that is the labels' part": filled(0, [[0, *[1] * (len(row) - 1)] for row in rows]),
        "the mask is made from the ids, so stop tokens are hidden": (filled(stop, rows) != stop).long()})
    same(
        batch["labels"],
        filled(-100, learned),
        "labels",
        {
            "padding is learned": filled(stop, learned),
            "0 stands for padding, which is a token": filled(0, learned),
            "every token that equals the pad token is masked, the stop token too": torch.tensor(
                [[-100 if token == stop else token for token in row] for row in filled(-100, learned).tolist()]
            ),
        },
        dtype=torch.long,
    )
    whole = lib.collate([sample(lib, list(range(8)), 1)], stop, 8)["input_ids"].shape[1]
    same(whole, 8, "the length of a batch whose longest sample has 8 tokens", {
        "a length that is a multiple of 8 already is made longer": whole > 8})


@pytest.mark.task("1.8", points=5, hint="each sample believes that it stands alone")
def test_positions_begin_again_with_each_sample(lib, seed):
    rows = [[5, 6, 7], [8, 9], [4] * (22 + seed % 5)]
    packed = lib.join([sample(lib, ids, 1) for ids in rows])
    same(packed.input_ids, sum(rows, []), "the ids of the row")
    same(list(packed.position_ids), [p for row in rows for p in range(len(row))], "the positions", {
        "positions run on through the row": list(range(sum(map(len, rows)))),
        "positions begin at 1": [p + 1 for row in rows for p in range(len(row))]})
    same(packed.total_length, sum(map(len, rows)), "the length")


@pytest.mark.task("1.8", points=3)
def test_no_sample_is_predicted_from_its_neighbor(lib, seed):
    samples = [sample(lib, ids, 0) for ids in ([5, 6, 7], [8, 9, 3])]
    packed = lib.join(samples)
    kept = [list(one.labels) for one in samples]
    same(kept, [[5, 6, 7], [8, 9, 3]], "the samples' own labels after the call", {
        "-100 is written into the samples, which are packed anew in the next epoch": kept[0][0] == -100})
    same(list(packed.ids), ["one", "one"], "the ids of the samples in the row")
    same(list(packed.labels), [-100, 6, 7, -100, 9, 3], "the labels", {
        "the first token of a sample is predicted from its neighbor's last": [5, 6, 7, 8, 9, 3],
        "only the row's first label is taken out": [-100, 6, 7, 8, 9, 3],
        "the first label of the first sample is left": [5, 6, 7, -100, 9, 3],
        "the last label of each is taken out, not the first": [5, 6, -100, 8, 9, -100]})
