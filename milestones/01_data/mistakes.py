"""Known mistakes of milestone 1, each with the check that catches it and the words that it says."""
from milestones.listed import Mistake

FORMATS, PARTS = "test_known_formats_are_recognized", "test_each_column_plays_its_part_and_what_cannot_be_used_is_told"
ROLES, CALLS = "test_roles_of_all_dialects_become_ours", "test_what_is_no_message_is_refused_and_a_call_says_nothing"
CLUSTER, SPANS = "test_what_hangs_together_is_one_cluster", "test_spans_are_the_answers_with_their_stop_tokens"
PREFIX, LABELS = "test_a_template_whose_prefixes_disagree_is_refused", "test_labels_are_the_ids_inside_the_spans"
ACROSS, ORDER = (
    "test_a_token_across_the_beginning_of_an_answer_is_refused",
    "test_the_split_depends_on_names_and_seed_alone",
)
SIZES, PADDING = "test_the_splits_have_the_asked_sizes", "test_padding_is_neither_seen_nor_learned"
POSITIONS, NEIGHBOR = "test_positions_begin_again_with_each_sample", "test_no_sample_is_predicted_from_its_neighbor"

MISTAKES = [
    Mistake("weight ignored", "1.1", 'bool(item.get("train", item.get("weight", 1)))', "True", ROLES, "weight 0"),
    Mistake("own flag ignored", "1.1", 'item.get("train", item.get("weight", 1))', 'item.get("weight", 1)', ROLES,
            "train: false"),
    Mistake(
        "system turn lost",
        "1.1",
        "    return tuple(turns)",
        '    return tuple(t for t in turns if t.role != "system")',
        ROLES,
        "system turn is lost",
    ),
    Mistake(
        "unknown role passed on",
        "1.1",
        "        if role is None:",
        '        role = role or "user"\n        if role is None:',
        CALLS,
        "not checked",
    ),
    Mistake("call lost", "1.1", "calls and tuple(_call(call) for call in _calls(calls))", "None", CALLS, "is lost"),
    Mistake(
        "preference pair taken for a prompt",
        "1.2",
        'if "chosen" in row and "rejected" in row or',
        "if False or",
        PARTS,
        "preference",
    ),
    Mistake(
        "system column lost",
        "1.2",
        '                   "system_prompt": _first(SYSTEMS, row)}',
        "                   }",
        PARTS,
        "system prompt is lost",
    ),
    Mistake(
        "input column lost",
        "1.2",
        '"input_context": _first(CONTEXTS, row, (asked,))',
        '"input_context": None',
        PARTS,
        "input is lost",
    ),
    Mistake("input asked twice", "1.2", "_first(CONTEXTS, row, (asked,))", "_first(CONTEXTS, row)", PARTS,
            "asked twice"),
    Mistake("pair called by its columns", "1.2", '(asked, said), "instruction/response"',
            '(asked, said), f"{asked}/{said}"', FORMATS, "one name for all"),
    Mistake(
        "ShareGPT taken for messages",
        "1.2",
        '"sharegpt" if "from" in messages_of(row[listed])[0] else "messages"',
        '"messages"',
        FORMATS,
        "not told from role/content",
    ),
    Mistake(
        "instances not seen",
        "1.2",
        'if "instances" in row and "instruction" in row:',
        "if False:",
        FORMATS,
        "instances",
    ),
    Mistake(
        "Dolly not told",
        "1.2",
        'if {"context", "category"} <= set(row) else',
        "if False else",
        FORMATS,
        "context and category",
    ),
    Mistake(
        "direct pairs only",
        "1.3",
        "        a, b = sorted((find(i), find(j)))\n        parent[b] = a",
        "        parent[max(i, j)] = min(parent[i], parent[j])",
        CLUSTER,
        "pairs of pairs",
    ),
    Mistake("larger one wins", "1.3", "parent[b] = a", "parent[a] = b", CLUSTER, "smallest member"),
    Mistake(
        "nothing joined", "1.3", "    for i, j, *_ in pairs:", "    for i, j, *_ in []:", CLUSTER, "nothing is joined"
    ),
    Mistake(
        "stop token not learned",
        "1.4",
        "len(through.rstrip())",
        'len(through.rstrip().removesuffix("<|end|>"))',
        SPANS,
        "never learns to stop",
    ),
    Mistake("line break learned", "1.4", "len(through.rstrip())", "len(through)", SPANS, "line break"),
    Mistake(
        "generation prompt left in",
        "1.4",
        "render_text(messages[:i], True)",
        "render_text(messages[:i], False)",
        SPANS,
        "generation prompt",
    ),
    Mistake("last turn only", "1.4", "    return spans", "    return spans[-1:]", SPANS, "only the last"),
    Mistake(
        "tool turns learned",
        "1.4",
        'message["role"] != "assistant"',
        'message["role"] not in ("assistant", "tool")',
        SPANS,
        "renders turn",
    ),
    Mistake(
        "opening not compared",
        "1.4",
        "whole.startswith(before) and whole.startswith(through) and len(before) <= len(through)",
        "whole.startswith(through)",
        PREFIX,
        "not checked",
    ),
    Mistake(
        "hash of Python",
        "1.6",
        'sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())',
        'sorted(sizes, key=lambda name: hash(f"{seed}:{name}"))',
        ORDER,
        "each time that Python starts",
    ),
    Mistake(
        "one multiple too long",
        "1.7",
        "-(-longest // pad_to_multiple_of) * pad_to_multiple_of",
        "(longest // pad_to_multiple_of + 1) * pad_to_multiple_of",
        PADDING,
        "made longer",
    ),
    Mistake(
        "samples changed by packing",
        "1.8",
        "labels += [-100, *sample.labels[1:]]",
        "sample.labels[0] = -100\n        labels += sample.labels",
        NEIGHBOR,
        "packed anew",
    ),
    Mistake(
        "user turns learned",
        "1.4",
        'message["role"] != "assistant"',
        'message["role"] == "system"',
        SPANS,
        "renders turn",
    ),
    Mistake(
        "prefixes not compared",
        "1.4",
        "if not (whole.startswith(before) and whole.startswith(through) and len(before) <= len(through)):",
        "if False:",
        PREFIX,
        "not checked",
    ),
    Mistake(
        "labels not masked", "1.5", "labels = [-100] * len(ids)", "labels = list(ids)", LABELS, "the prompt is learned"
    ),
    Mistake(
        "shifted by hand", "1.5", "    return labels", "    return labels[1:] + [-100]", LABELS, "shifts them again"
    ),
    Mistake(
        "stop token masked as padding",
        "1.5",
        "labels[first:behind] = ids[first:behind]",
        "labels[first:behind] = [-100 if token == ids[-1] else token for token in ids[first:behind]]",
        LABELS,
        "stop token, is left out",
    ),
    Mistake(
        "last span only",
        "1.5",
        "    for start, end in spans:",
        "    for start, end in spans[-1:]:",
        LABELS,
        "only the last span",
    ),
    Mistake("token across the end left out", "1.5", "bisect_left(offsets, end, key=lambda pair: pair[0])",
            "bisect_right(offsets, end, key=lambda pair: pair[1])", ACROSS, "reaches behind the span"),
    Mistake("0 for -100", "1.5", "[-100] * len(ids)", "[0] * len(ids)", LABELS, "0 masks"),
    Mistake(
        "boundary not checked",
        "1.5",
        "if first < behind and offsets[first][0] < start:",
        "if False:",
        ACROSS,
        "not checked",
    ),
    Mistake(
        "order of the file",
        "1.6",
        'sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())',
        "list(sizes)",
        ORDER,
        "order of the file",
    ),
    Mistake("seed not used", "1.6", 'f"{seed}:{name}"', 'f"{name}"', ORDER, "seed is not used"),
    Mistake("ratios reversed", "1.6", "for ratio in ratios]", "for ratio in ratios[::-1]]", SIZES, "other way round"),
    Mistake(
        "in turn",
        "1.6",
        "wanted = [ratio * total for ratio in ratios]",
        "wanted = [total / len(ratios) for ratio in ratios]",
        SIZES,
        "shared out in turn",
    ),
    Mistake(
        "padding learned",
        "1.7",
        '"labels": torch.full(shape, -100)',
        '"labels": torch.full(shape, pad_token_id)',
        PADDING,
        "padding is learned",
    ),
    Mistake(
        "stop token masked with padding",
        "1.7",
        "    return batch",
        '    batch["labels"][batch["input_ids"] == pad_token_id] = -100\n    return batch',
        PADDING,
        "the stop token too",
    ),
    Mistake(
        "padding attended to",
        "1.7",
        "torch.zeros(shape, dtype=torch.long)",
        "torch.ones(shape, dtype=torch.long)",
        PADDING,
        "attended to",
    ),
    Mistake(
        "not rounded up",
        "1.7",
        "-(-longest // pad_to_multiple_of) * pad_to_multiple_of",
        "longest",
        PADDING,
        "rounded up",
    ),
    Mistake(
        "padding in front",
        "1.7",
        "tensor[row, :sample.total_length]",
        "tensor[row, length - sample.total_length:]",
        PADDING,
        "in front",
    ),
    Mistake(
        "positions run on",
        "1.8",
        "    return PackedSample(tuple(sample.id for sample in samples), ids, labels, positions, len(ids))",
        "    return PackedSample(tuple(sample.id for sample in samples), ids, labels, list(range(len(ids))), len(ids))",
        POSITIONS,
        "run on",
    ),
    Mistake(
        "predicted from the neighbor",
        "1.8",
        "labels += [-100, *sample.labels[1:]]",
        "labels += sample.labels",
        NEIGHBOR,
        "neighbor's last",
    ),
]

PAGE = {  # mistakes that this milestone must catch → the entry above, or the test of the library, that does
    "labels not masked": "1.5 labels not masked",
    "shifted by hand as well as by the model": "1.5 shifted by hand",
    "eos masked with pad": "1.7 stop token masked with padding",
    "two BOS": "tests/data/test_chat.py::test_a_wrong_template_is_loud",
    "wrong stop token": "1.4 stop token not learned",
    "generation prompt left in": "1.4 generation prompt left in",
    "template of another family": "tests/data/test_chat.py::test_a_wrong_template_is_loud",
    "truncation that removes the answer":
        "tests/data/test_chat.py"
        "::test_too_long_samples_fit_and_only_a_whole_answer_teaches_to_stop",
    "response cut, stop token kept":
        "tests/data/test_chat.py"
        "::test_too_long_samples_fit_and_only_a_whole_answer_teaches_to_stop",
    "split by row, near-duplicates on both sides":
        "tests/data/test_splits.py"
        "::test_a_split_by_row_with_near_duplicates_on_both_sides_is_told_in_its_own_report",
    "ratio of the wrong side": "1.6 ratios reversed",
    "unseeded shuffle": "1.6 seed not used",
    "duplicates counted after the split":
        "tests/data/test_splits.py"
        "::test_duplicates_counted_after_the_split_are_leaks_and_counted_before_they_are_none",
    "padding in the loss": "1.7 padding learned",
    "attention across packed samples":
        "tests/data/test_batches.py"
        "::test_the_block_mask_lets_a_token_see_its_own_sample_up_to_itself",
    "position ids not restarted": "1.8 positions run on",
    "dropped records not counted": "tests/data/test_quality.py::test_every_conversation_is_kept_quarantined_or_removed",
    "system turn lost": "1.1 system turn lost",
    "tool turn trained on": "tests/data/test_chat.py::test_tool_turns_are_read_and_not_learned",
    "last batch dropped silently":
        "tests/data/test_batches.py"
        "::test_every_sample_is_in_one_batch_of_an_epoch_and_limits_hold",
    "ids not unique": "tests/data/test_records.py::test_ids_differ_where_contents_do",
    "CSV quoting by hand": "tests/data/test_files.py::test_every_format_brings_back_what_was_written",
}
