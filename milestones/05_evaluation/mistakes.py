"""Known mistakes of milestone 5, each with the check that catches it and the words that it says."""
from milestones.listed import Mistake

NLL, HALF = "test_each_target_costs_minus_its_log_probability", "test_the_loss_of_16_bit_logits_is_computed_in_float32"
POOLED, LEFT = "test_perplexity_is_of_all_tokens_together", "test_prompts_end_in_the_same_column"
GREEDY, WORDS = "test_a_batch_gives_what_each_prompt_gives_alone", "test_each_level_takes_away_what_it_says_and_no_more"
PAIRED, ENDS = "test_the_interval_is_that_of_paired_differences", "test_the_p_value_at_both_ends"
MERGED, SQUARE = "test_the_update_is_added_scaled", "test_a_square_conv1d_gets_the_turned_update"
ONCE = "test_16_bit_weights_are_merged_in_float32_and_rounded_once"
FAR, NAN = "test_the_largest_difference_is_measured_in_the_size_of_what_was_wanted", "test_nan_is_infinitely_far"

MISTAKES = [
    Mistake("shift forgotten", "5.1", "logits[:, :-1], labels[:, 1:]", "logits, labels", NLL, "not shifted"),
    Mistake("shifted twice", "5.1", "logits[:, :-1], labels[:, 1:]", "logits[:, :-2], labels[:, 2:]", NLL, "twice"),
    Mistake("labels changed", "5.1", "    # 3. one", "    labels[labels == -100] = 0\n    # 3. one", NLL, "in place"),
    Mistake("cut but not shifted", "5.1", "labels[:, 1:]", "labels[:, :-1]", NLL, "cut, but not shifted"),
    Mistake(
        "padding counted",
        "5.1",
        "guesses.transpose(1, 2), targets, ignore_index=-100",
        "guesses.transpose(1, 2), targets.clamp(min=0)",
        NLL,
        "are counted",
    ),
    Mistake("sum in 16 bits", "5.1", "guesses = guesses.float()", "guesses = guesses", HALF, "in 16 bits"),
    Mistake(
        "mean of perplexities",
        "5.2",
        "return Perplexity(nll, tokens)",
        "return Perplexity(tokens * math.log(sum(math.exp(a / b) for a, b in sums) / len(sums)), tokens)",
        POOLED,
        "perplexities are averaged",
    ),
    Mistake(
        "mean of means",
        "5.2",
        "return Perplexity(nll, tokens)",
        "return Perplexity(tokens * sum(a / b for a, b in sums) / len(sums), tokens)",
        POOLED,
        "mean losses are averaged",
    ),
    Mistake(
        "by samples",
        "5.2",
        "return Perplexity(nll, tokens)",
        "return Perplexity(nll, len(sums))",
        POOLED,
        "number of samples",
    ),
    Mistake(
        "no tokens accepted",
        "5.2",
        "if tokens == 0:",
        "if tokens < 0:",
        "test_no_target_at_all_is_refused",
        "not checked",
    ),
    Mistake(
        "right padding",
        "5.3",
        "[pad_token_id] * (width - len(prompt)) + list(prompt)",
        "list(prompt) + [pad_token_id] * (width - len(prompt))",
        LEFT,
        "behind the prompt",
    ),
    Mistake(
        "mask from ids",
        "5.3",
        "mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]",
        "mask = [[int(token != pad_token_id) for token in row] for row in ids]",
        LEFT,
        "taken for padding",
    ),
    Mistake(
        "everything attended",
        "5.3",
        "[0] * (width - len(prompt)) + [1] * len(prompt)",
        "[1] * width",
        LEFT,
        "everything is attended to",
    ),
    Mistake(
        "padding counted as positions",
        "5.4",
        "positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)",
        "positions = torch.arange(input_ids.shape[1])[None].repeat(len(input_ids), 1)",
        GREEDY,
        "counted as positions",
    ),
    Mistake(
        "padding attended to",
        "5.4",
        "    stop, cache, chosen =",
        "    attention_mask = torch.ones_like(attention_mask)\n    stop, cache, chosen =",
        GREEDY,
        "padding is attended to",
    ),
    Mistake(
        "finished rows go on", "5.4", ".masked_fill(finished, pad_token_id)", "", GREEDY, "not filled with padding"
    ),
    Mistake(
        "ends with the first row", "5.4", "if finished.all():", "if finished.any():", GREEDY, "when one row has ended"
    ),
    Mistake("never ends", "5.4", "if finished.all():", "if False:", GREEDY, "when every row has ended"),
    Mistake(
        "prompt left in the answer",
        "5.4",
        "device=input_ids.device), None, []",
        "device=input_ids.device), None, list(input_ids.T)\n    max_new_tokens += input_ids.shape[1]",
        GREEDY,
        "prompt is left in",
    ),
    Mistake("positions stand still", "5.4", "positions[:, -1:] + 1", "positions[:, -1:]", GREEDY, "does not move on"),
    Mistake(
        "one token too many",
        "5.4",
        "while len(chosen) < max_new_tokens",
        "while len(chosen) <= max_new_tokens",
        GREEDY,
        "overrun by one",
    ),
    Mistake("sampling", "5.4", ".argmax(-1)", ".softmax(-1).multinomial(1)[:, 0]", GREEDY, "not the likeliest"),
    Mistake("articles in words", "5.5", r'r"\b(a|an|the)\b"', 'r"(a|an|the)"', WORDS, "cut out of words"),
    Mistake("case kept", "5.5", "text.lower()", "text", WORDS, "case stays"),
    Mistake(
        "case taken in spaces",
        "5.5",
        'unicodedata.normalize("NFC", text).split()',
        'unicodedata.normalize("NFC", text).lower().split()',
        WORDS,
        "case is taken away too",
    ),
    Mistake(
        "spaces kept",
        "5.5",
        '" ".join(unicodedata.normalize("NFC", text).split())',
        'unicodedata.normalize("NFC", text).strip()',
        WORDS,
        "white space is not evened out",
    ),
    Mistake("letters in two signs", "5.5", 'unicodedata.normalize("NFC", text)', "text", WORDS, "NFC joins them"),
    Mistake(
        "unpaired",
        "5.6",
        "means = [differences[random.integers(0, count, count)].mean() for _ in range(resamples)]",
        "a, b = np.asarray(tuned, float), np.asarray(base, float)\n"
        "    means = [a[random.integers(0, count, count)].mean() - b[random.integers(0, count, count)].mean()\n"
        "             for _ in range(resamples)]",
        PAIRED,
        "unpaired",
    ),
    Mistake(
        "sign turned",
        "5.6",
        "np.asarray(tuned, float) - np.asarray(base, float)",
        "np.asarray(base, float) - np.asarray(tuned, float)",
        PAIRED,
        "wrong way round",
    ),
    Mistake(
        "level not looked at",
        "5.6",
        "[(1 - level) / 2, (1 + level) / 2]",
        "[0.025, 0.975]",
        PAIRED,
        "level is not looked at",
    ),
    Mistake(
        "level not split",
        "5.6",
        "[(1 - level) / 2, (1 + level) / 2]",
        "[1 - level, level]",
        PAIRED,
        "not split",
    ),
    Mistake(
        "without replacement",
        "5.6",
        "random.integers(0, count, count)",
        "random.permutation(count)",
        PAIRED,
        "without replacement",
    ),
    Mistake(
        "seed not used",
        "5.6",
        "np.random.default_rng(seed)",
        "np.random.default_rng()",
        "test_the_same_seed_draws_the_same_and_lists_must_pair",
        "seed is not used",
    ),
    Mistake(
        "seed not used",
        "5.7",
        "np.random.default_rng(seed)",
        "np.random.default_rng()",
        "test_the_p_value_counts_both_sides",
        "seed is not used",
    ),
    Mistake("p of zero", "5.7", "(1 + as_far) / (1 + permutations)", "as_far / permutations", ENDS, "p is 0"),
    Mistake(
        "only farther ones",
        "5.7",
        ">= abs(differences.sum()) - 1e-9",
        "> abs(differences.sum()) + 1e-9",
        ENDS,
        "not those as far",
    ),
    Mistake(
        "one-sided",
        "5.7",
        "np.abs(sums) >= abs(differences.sum())",
        "sums >= differences.sum()",
        "test_the_p_value_counts_both_sides",
        "one-sided",
    ),
    Mistake(
        "weight changed in place",
        "5.8",
        "return (weight.float() + update).to(weight.dtype)",
        "weight += update\n    return weight",
        MERGED,
        "changed in place",
    ),
    Mistake(
        "A times B",
        "5.8",
        "lora_B.float() @ lora_A.float()",
        "lora_A.float().T @ lora_B.float().T",
        MERGED,
        "the wrong order",
    ),
    Mistake("merge without scale", "5.8", "scaling * (lora_B", "1.0 * (lora_B", MERGED, "not scaled"),
    Mistake("alpha alone", "5.8", "scaling * (lora_B", "scaling * len(lora_A) * (lora_B", MERGED, "alpha alone"),
    Mistake(
        "Conv1D not turned",
        "5.8",
        "update.T if transposed else update",
        "update.T if transposed and weight.shape != update.shape else update",
        SQUARE,
        "not turned",
    ),
    Mistake(
        "product in 16 bits",
        "5.8",
        "(lora_B.float() @ lora_A.float())",
        "(lora_B.to(weight.dtype) @ lora_A.to(weight.dtype))",
        ONCE,
        "16 bits",
    ),
    Mistake(
        "rounded before adding",
        "5.8",
        "(weight.float() + update).to(weight.dtype)",
        "weight + update.to(weight.dtype)",
        ONCE,
        "rounded before",
    ),
    Mistake(
        "left in float32",
        "5.8",
        "(weight.float() + update).to(weight.dtype)",
        "weight.float() + update",
        ONCE,
        "left in float32",
    ),
    Mistake("mean of a tensor", "5.9", "(one - other).abs().max()", "(one - other).abs().mean()", FAR, "averaged"),
    Mistake("size of what was got", "5.9", "for other in wanted))", "for other in got))", FAR, "of what was got"),
    Mistake("signs kept", "5.9", "(one - other).abs().max()", "(one - other).max()", FAR, "signs are not"),
    Mistake(
        "not relative",
        "5.9",
        "return difference / max(1.0, max(other.abs().max().item() for other in wanted))",
        "return difference",
        FAR,
        "not measured in parts",
    ),
    Mistake(
        "NaN compared",
        "5.9",
        "if any(not torch.isfinite(tensor).all() for tensor in got):",
        "if False:",
        NAN,
        "NaN is compared",
    ),
]

PAGE = {  # mistakes that this milestone must catch → the entry above, or the test of the library, that does
    "mean of batch perplexities": "5.2 mean of perplexities",
    "padding in the loss": "5.1 padding counted",
    "shift forgotten": "5.1 shift forgotten",
    "shift doubled": "5.1 shifted twice",
    "prompt counted as response": "tests/evaluation/test_perplexity.py::test_prompt_and_response_add_up_to_the_whole",
    "evaluation in train mode":
        "tests/evaluation/test_perplexity.py"
        "::test_a_model_left_in_training_mode_is_measured_without_dropout_and_left_as_it_was",
    "different templates for the two models":
        "tests/evaluation/test_compare.py"
        "::test_other_questions_another_order_or_another_protocol_are_refused",
    "right padding in batched generation": "5.3 right padding",
    "prompt left in the answer": "5.4 prompt left in the answer",
    "metric that hides case": "5.5 case taken in spaces",
    "metric that hides spaces": "5.5 spaces kept",
    "sampling when greedy was meant": "5.4 sampling",
    "no base line": "tests/evaluation/test_compare.py::test_a_report_needs_a_base",
    "leaked samples scored": "tests/evaluation/test_compare.py::test_questions_seen_in_training_are_found_and_left_out",
    "unpaired test": "5.6 unpaired",
    "merge without scale": "5.8 merge without scale",
    "merge with alpha alone": "5.8 alpha alone",
    "order of A and B": "5.8 A times B",
    "accumulated in 16 bits": "5.8 product in 16 bits",
    "merged twice": "tests/evaluation/test_merge.py::test_merging_twice_is_refused",
    "Conv1D not transposed": "5.8 Conv1D not turned",
    "adapter left active after the merge":
        "tests/evaluation/test_merge.py"
        "::test_a_merged_model_answers_like_the_adapted_one",
    "dropout counted": "tests/evaluation/test_merge.py::test_weights_are_those_of_peft_merge_and_unload",
    "tied head broken":
        "tests/evaluation/test_merge.py"
        "::test_a_merge_into_a_tied_head_leaves_the_embedding_alone_and_unties_the_two",
    "merged onto another base than trained":
        "tests/evaluation/test_merge.py"
        "::test_an_adapter_for_another_base_is_refused_and_nothing_is_written",
    "tokenizer or template not saved":
        "tests/evaluation/test_export.py"
        "::test_the_chat_template_renders_the_ids_of_training",
    "export not loaded back":
        "tests/evaluation/test_export.py"
        "::test_an_export_that_answers_otherwise_leaves_nothing_behind",
}
