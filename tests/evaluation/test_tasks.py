"""Answers do not depend on the batch; scores mean what they say."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError
from finetune_lib.evaluation.tasks import (
    LEVELS,
    METRICS,
    evaluate_instructions,
    exact_match,
    generate,
    generate_ids,
    left_pad,
    normalize,
    rouge_l,
    stop_tokens,
    token_f1,
)

ANYTHING = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gpt2"])
def test_a_batch_answers_like_one_by_one_token_for_token(kind, make_model, prompts):
    model = make_model(kind)
    batched = generate_ids(model, prompts, [1], 2, max_new_tokens=12, batch_size=24)
    assert batched == [generate_ids(model, [prompt], [1], 2, max_new_tokens=12)[0] for prompt in prompts]
    assert len({tuple(answer) for answer in batched}) > 3, "a model that says one thing proves nothing"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_is_what_transformers_generates(kind, make_model, prompts):
    model = make_model(kind)
    for prompt, answer in zip(prompts[:6], generate_ids(model, prompts[:6], [1], 2, max_new_tokens=12), strict=True):
        theirs = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                                max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=2)
        assert theirs[0, len(prompt):].tolist() == answer


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_adapted_models_of_both_back_ends_answer_alike_in_batches(backend, make_model, adapt, prompts):
    model = adapt(make_model(), backend)
    batched = generate_ids(model, prompts[:8], [1], 2, max_new_tokens=8)
    assert batched == [generate_ids(model, [prompt], [1], 2, max_new_tokens=8)[0] for prompt in prompts[:8]]


@pytest.mark.parametrize("backend", ["own", "bitsandbytes"])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_4_bit_model_answers_alike_in_batches(backend, adapted, base_folder, adapt, prompts):
    from finetune_lib.qlora.loading import QuantizationConfig, load_base

    model = load_base(base_folder(), QuantizationConfig(), backend, device="cpu")
    model = adapt(model) if adapted else model
    batched = generate_ids(model, prompts[:8], [1], 2, max_new_tokens=8)
    assert batched == [generate_ids(model, [prompt], [1], 2, max_new_tokens=8)[0] for prompt in prompts[:8]]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merged_model_answers_alike_in_batches_and_as_its_adapter_did(kind, make_model, adapt, prompts):
    from finetune_lib.evaluation.merge import merge_adapter

    adapted = adapt(make_model(kind))
    before = generate_ids(adapted, prompts[:8], [1], 2, max_new_tokens=8)
    merged = merge_adapter(adapted)
    assert generate_ids(merged, prompts[:8], [1], 2, max_new_tokens=8) == before
    assert [generate_ids(merged, [prompt], [1], 2, max_new_tokens=8)[0] for prompt in prompts[:8]] == before


def test_answers_end_with_the_first_stop_token_and_never_go_past_it(llama, prompts):
    free = generate_ids(llama, prompts, [], 2, max_new_tokens=12)
    stop = free[0][3]
    for answer, whole in zip(generate_ids(llama, prompts, [stop], 2, max_new_tokens=12), free, strict=True):
        wanted = whole[:whole.index(stop) + 1] if stop in whole else whole
        assert answer == wanted


def test_the_mask_marks_padding_by_position_even_where_a_prompt_holds_the_pad_token():
    ids, mask = left_pad([[2, 7], [2, 2, 9, 2]], 2)
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]] and ids.tolist() == [[2, 2, 2, 7], [2, 2, 9, 2]]


def test_a_prompt_without_room_for_an_answer_is_refused(llama):
    with pytest.raises(DataError, match="1 to 246 tokens .* got 250 in prompt 1"):
        generate_ids(llama, [[5], [5] * 250], [1], 2, max_new_tokens=10)
    with pytest.raises(DataError, match="got 0 in prompt 0"):
        generate_ids(llama, [[]], [1], 2)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        generate_ids(llama, [[5]], [1], 2, max_new_tokens=0)


def test_generated_text_holds_no_prompt_and_no_special_token(llama, tokenizer, prompts):
    for prompt, answer in zip(prompts, generate(llama, tokenizer, prompts, max_new_tokens=6), strict=True):
        assert "<|" not in answer and answer == answer.strip()
        assert tokenizer.decode(prompt, skip_special_tokens=True) not in answer


def test_stop_tokens_are_those_of_the_tokenizer_and_of_the_generation_config(make_model, tokenizer):
    model = make_model()
    model.generation_config.eos_token_id = [1, 40]
    assert stop_tokens(model, tokenizer) == [1, 40]


@settings(deadline=None)
@given(ANYTHING, st.sampled_from(LEVELS))
def test_normalizing_twice_changes_nothing(text, level):
    once = normalize(text, level)
    assert normalize(once, level) == once or level == "words"  # taking out an article can make a new one: "a the"


@settings(deadline=None)
@given(ANYTHING, ANYTHING, st.sampled_from(LEVELS))
def test_exact_match_is_symmetric_and_levels_only_forgive_more(one, other, level):
    assert exact_match(one, other, level) == exact_match(other, one, level)
    assert exact_match(one, one, level) == 1.0
    assert exact_match(one, other, "exact") <= exact_match(one, other, "spaces") <= exact_match(one, other, "words")


def test_spaces_forgives_white_space_and_unicode_forms_but_neither_case_nor_punctuation():
    assert exact_match("  Mara\u00a0lives \n in Tarn. ", "Mara lives in Tarn.") == 1.0
    assert exact_match("Andr\u0065\u0301", "Andr\u00e9") == 1.0
    assert exact_match("mara lives in Tarn.", "Mara lives in Tarn.") == 0.0
    assert exact_match("Mara lives in Tarn", "Mara lives in Tarn.") == 0.0
    assert exact_match("the OWL!", "an owl", "words") == 1.0


@settings(deadline=None)
@given(ANYTHING, ANYTHING)
def test_partial_scores_lie_between_0_and_1_and_are_1_for_the_same_text(one, other):
    for metric in (token_f1, rouge_l):
        assert 0.0 <= metric(one, other) <= 1.0
    assert token_f1(one, one) == 1.0


def test_word_f1_counts_repeated_words_as_often_as_they_stand_there():
    assert token_f1("red red red blue", "red blue blue blue") == pytest.approx(2 * 2 / 8)
    assert token_f1("", "") == 1.0 and token_f1("", "owl") == 0.0


def test_rouge_l_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    said, wanted = "the owl sat in the tall elm", "an owl slept in an elm"
    assert rouge_l(said, wanted) == RougeScorer(["rougeL"]).score(wanted, said)["rougeL"].fmeasure


def test_every_question_is_scored_once_and_means_come_from_the_answers(llama, tokenizer, conversations):
    scores = evaluate_instructions(llama, tokenizer, conversations, max_new_tokens=6, batch_size=7)
    assert [one.id for one in scores.predictions] == [conversation.id for conversation in conversations]
    assert [one.reference for one in scores.predictions] == [one.turns[-1].content for one in conversations]
    assert sum(family["count"] for family in scores.families.values()) == len(conversations)
    for name in METRICS:
        values = [one.scores[name] for one in scores.predictions]
        assert scores.means[name] == pytest.approx(sum(values) / len(values))
    again = evaluate_instructions(llama, tokenizer, conversations[::-1], max_new_tokens=6, batch_size=24)
    assert again.means == pytest.approx(scores.means)


def test_a_metric_of_ones_own_is_one_function(llama, tokenizer, conversations):
    scores = evaluate_instructions(llama, tokenizer, conversations, {"length": lambda said, wanted: len(said)}, 4)
    assert scores.means == {"length": sum(len(one.prediction) for one in scores.predictions) / len(conversations)}


def test_the_protocol_knows_another_template(llama, tokenizer, conversations):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace("' ' + ", "")
    one, two = (evaluate_instructions(llama, each, conversations[:3], max_new_tokens=2) for each in (tokenizer, other))
    assert one.protocol != two.protocol


def test_an_empty_evaluation_set_is_refused(llama, tokenizer):
    with pytest.raises(DataError, match="at least one question"):
        evaluate_instructions(llama, tokenizer, [])


def test_a_question_without_a_reference_is_refused(llama, tokenizer, conversations):
    from dataclasses import replace

    asked = replace(conversations[0], id="no answer", turns=conversations[0].turns[:1])
    with pytest.raises(DataError, match="'no answer'"):
        evaluate_instructions(llama, tokenizer, [*conversations[:2], asked])
