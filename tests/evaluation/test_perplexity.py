"""Perplexity is one number, whatever the batches look like."""
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError, TrainingError
from finetune_lib.evaluation.perplexity import (
    perplexity,
    perplexity_by_length,
    perplexity_by_part,
    pooled,
    relabel,
    sample_nll,
    sliding_windows,
    token_nll,
)


def plain_loop(model, samples) -> float:
    """No batch, no padding, no library: one token after the other."""
    total = count = 0
    with torch.no_grad():
        for sample in samples:
            chances = model(torch.tensor([sample.input_ids])).logits[0].double().softmax(-1)
            for place, label in enumerate(sample.labels):
                if label != -100:
                    total, count = total - math.log(chances[place - 1, label]), count + 1
    return math.exp(total / count)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gpt2"])
def test_it_equals_a_plain_loop_for_every_batch_size_and_order(kind, make_model, samples):
    model = make_model(kind)
    wanted = plain_loop(model, samples)
    for size in (1, 3, 8, 24):
        assert math.isclose(perplexity(model, samples, 2, size).overall, wanted, rel_tol=1e-5)
    assert math.isclose(perplexity(model, samples[::-1], 2, 5).overall, wanted, rel_tol=1e-5)


def test_the_pad_token_does_not_matter(llama, samples):
    values = [perplexity(llama, samples, pad, 8).overall for pad in (0, 1, 2, 77)]
    assert max(values) / min(values) - 1 < 1e-5


def test_it_equals_the_loss_of_transformers(llama, samples):
    with torch.no_grad():
        losses = [llama(input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])).loss.item()
                  for one in samples]
    for (nll, count), loss in zip(sample_nll(llama, samples, 2, 8), losses, strict=True):
        assert math.isclose(nll / count, loss, rel_tol=1e-5)


def test_categories_add_up_to_the_whole(llama, samples):
    whole = perplexity(llama, samples, 2)
    parts = whole.by_category
    assert set(parts) == {"a", "b", "c"}
    assert sum(part.tokens for part in parts.values()) == whole.tokens
    assert math.isclose(sum(part.nll for part in parts.values()), whole.nll, rel_tol=1e-9)


def test_prompt_and_response_add_up_to_the_whole(llama, samples):
    parts = perplexity_by_part(llama, samples, 2)
    assert parts["prompt"].tokens + parts["response"].tokens == parts["overall"].tokens
    assert parts["overall"].tokens == sum(len(sample.input_ids) - 1 for sample in samples)
    assert math.isclose(parts["prompt"].nll + parts["response"].nll, parts["overall"].nll, rel_tol=1e-6)


def test_an_unknown_part_is_refused_with_the_known_ones(samples):
    with pytest.raises(ValueError, match="response, prompt, overall"):
        relabel(samples[0], "answer")


def test_a_model_left_in_training_mode_is_measured_without_dropout_and_left_as_it_was(make_model, samples):
    model = make_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    wanted = perplexity(model, samples, 2).overall
    model.train()
    model.transformer.h[0].eval()
    assert perplexity(model, samples, 2).overall == wanted
    assert model.training and not model.transformer.h[0].training


def test_the_base_is_the_adapter_switched_off_to_the_bit(make_model, adapt, samples):
    from finetune_lib.lora.adapter import adapter_disabled

    before = perplexity(make_model(), samples, 2)
    for backend in ("own", "peft"):
        model = adapt(make_model(), backend)
        assert perplexity(model, samples, 2).nll != before.nll
        with adapter_disabled(model):
            assert perplexity(model, samples, 2).nll == before.nll


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    labels = torch.tensor([[5, 6, 7, -100]])
    nll = token_nll(torch.zeros(1, 4, 50), labels)
    assert nll.shape == (1, 3) and nll[0, 2] == 0
    assert math.isclose(pooled([(nll.sum().item(), 2)]).overall, 50, rel_tol=1e-6)


def test_half_precision_logits_are_widened_before_the_sum():
    logits = torch.randn(2, 5, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.randint(0, 3000, (2, 5), generator=torch.Generator().manual_seed(1))
    assert torch.equal(token_nll(logits, labels), token_nll(logits.float(), labels))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 500)), min_size=1, max_size=30), st.randoms())
def test_pooling_does_not_depend_on_order_or_grouping(pairs, chance):
    whole = pooled(pairs)
    shuffled = chance.sample(pairs, len(pairs))
    cut = chance.randint(0, len(pairs))
    groups = [pooled(group) for group in (shuffled[:cut], shuffled[cut:]) if group]
    again = pooled([(group.nll, group.tokens) for group in groups])
    assert again.tokens == whole.tokens and math.isclose(again.nll, whole.nll, rel_tol=1e-12, abs_tol=1e-12)


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(2, 40), st.data())
def test_windows_score_every_token_but_the_first_exactly_once_with_enough_before_it(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    ids, scored = list(range(length)), []
    for number, piece in enumerate(sliding_windows(ids, window, stride)):
        targets = [place for place, label in enumerate(piece.labels) if label != -100]
        scored += [piece.labels[place] for place in targets]
        assert len(piece.input_ids) <= window
        assert all(piece.labels[place] == piece.input_ids[place] for place in targets)
        assert number == 0 or targets[0] >= window - stride
    assert scored == ids[1:]


def test_one_window_over_a_short_text_is_the_plain_perplexity(llama, samples):
    whole = relabel(samples[0], "overall")
    window = sliding_windows(whole.input_ids, 200, 50)
    assert len(window) == 1
    assert math.isclose(perplexity(llama, window, 2).overall, perplexity(llama, [whole], 2).overall, rel_tol=1e-6)


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_a_stride_outside_the_window_is_refused(stride):
    with pytest.raises(ValueError, match="between 1 and window - 1 = 7"):
        sliding_windows([1, 2, 3], 8, stride)


def test_nan_stops_the_evaluation_and_names_the_sample(make_model, samples):
    model = make_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="finite, got nan for sample 'q"):
        perplexity(model, samples, 2)


def test_nothing_to_score_is_refused(llama, samples):
    silent = replace(samples[0], labels=[-100] * len(samples[0].labels))
    for nothing in ([], [silent]):
        with pytest.raises(DataError, match="at least one target token"):
            perplexity(llama, nothing, 2)


def test_a_batch_size_of_zero_is_refused(llama, samples):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        perplexity(llama, samples, 2, batch_size=0)


def test_bins_of_length_add_up_to_the_whole_and_hold_their_own_samples(llama, samples):
    whole, edges = perplexity(llama, samples, 2), (40, 60)
    bins = perplexity_by_length(llama, samples, 2, edges)
    assert list(bins) == ["1–40", "41–60", "61–"]
    assert sum(one.tokens for one in bins.values()) == whole.tokens
    assert math.isclose(sum(one.nll for one in bins.values()), whole.nll, rel_tol=1e-9)
    short = [sample for sample in samples if len(sample.input_ids) <= 40]
    assert math.isclose(bins["1–40"].overall, perplexity(llama, short, 2).overall, rel_tol=1e-6)
    silent = [replace(sample, labels=[-100] * len(sample.labels)) for sample in short]
    assert list(perplexity_by_length(llama, silent + samples[-1:], 2, (40,))) in (["41–"], ["1–40"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_it_is_the_same_on_a_gpu(llama, samples):
    import copy

    wanted = perplexity(llama, samples, 2).overall
    assert math.isclose(perplexity(copy.deepcopy(llama).cuda(), samples, 2).overall, wanted, rel_tol=1e-5)
