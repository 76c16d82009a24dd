"""Drawn answers follow the model's probabilities, no batch changes them, and intervals count questions."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError
from finetune_lib.evaluation.compare import compare, paired_bootstrap
from finetune_lib.evaluation.sampling import evaluate_sampled, noisy, nucleus, sample_ids, stream
from finetune_lib.evaluation.tasks import evaluate_instructions, generate_ids


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=12), st.floats(0.05, 0.99))
def test_the_nucleus_is_that_of_transformers(logits, top_p):
    from transformers import TopPLogitsWarper

    logits = torch.tensor([logits], dtype=torch.double)
    ours, theirs = nucleus(logits, top_p), TopPLogitsWarper(top_p)(None, logits)
    weights = logits.softmax(-1).sort(descending=True).values.cumsum(-1)
    if (weights - top_p).abs().min() > 1e-9 and logits.unique().numel() == logits.numel():  # ties may go either way
        assert torch.equal(ours, theirs)
    assert ours.isfinite().any() and torch.equal(ours[ours.isfinite()], logits[ours.isfinite()])


@pytest.mark.parametrize("temperature, top_p", [(0.5, 1.0), (1.0, 1.0), (2.0, 0.8)])
def test_draws_have_the_frequencies_of_the_softmax(temperature, top_p):
    logits, count = torch.tensor([1.5, 0.0, -0.5, 1.0, -2.0]), 30_000
    drawn = noisy(logits.expand(count, 5), temperature, top_p, [stream(7, place, 0) for place in range(count)])
    seen = drawn.argmax(-1).bincount(minlength=5) / count
    wanted = nucleus(logits[None] / temperature, top_p).softmax(-1)[0]
    assert (seen - wanted).abs().max() < 5 * (0.25 / count) ** 0.5  # five standard errors


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_batch_changes_what_is_drawn(kind, make_model, prompts):
    model = make_model(kind)
    together = sample_ids(model, prompts[:8], [1], 2, generations=3, max_new_tokens=6, temperature=1.0)
    assert together == sample_ids(model, prompts[:8], [1], 2, 3, 1.0, max_new_tokens=6, batch_size=5)
    assert together[:3] == sample_ids(model, prompts[:3], [1], 2, 3, 1.0, max_new_tokens=6)
    assert [those[:2] for those in together] == sample_ids(model, prompts[:8], [1], 2, 2, 1.0, max_new_tokens=6)
    assert len({tuple(one) for those in together for one in those}) > 12, "a model that says one thing proves nothing"


def test_another_seed_draws_other_answers_and_temperature_0_the_greedy_ones(llama, prompts):
    one, other = (sample_ids(llama, prompts[:6], [1], 2, 2, 1.0, max_new_tokens=6, seed=seed) for seed in (0, 1))
    assert one != other
    cold = sample_ids(llama, prompts[:6], [1], 2, 2, 0, max_new_tokens=6)
    assert cold == [[answer] * 2 for answer in generate_ids(llama, prompts[:6], [1], 2, max_new_tokens=6)]


def test_a_drawn_answer_ends_with_its_first_stop_token(llama, prompts):
    free = sample_ids(llama, prompts[:6], [], 2, 2, 1.0, max_new_tokens=8)
    stop = free[0][0][2]
    for those, whole in zip(sample_ids(llama, prompts[:6], [stop], 2, 2, 1.0, max_new_tokens=8), free, strict=True):
        assert those == [one[:one.index(stop) + 1] if stop in one else one for one in whole]


@pytest.mark.parametrize("fields, message", [
    ({"generations": 0}, "generations must be at least 1, got 0"),
    ({"temperature": -1}, "temperature must be 0 or more"),
    ({"temperature": float("nan")}, "temperature"), ({"top_p": 0}, "top_p must lie above 0"),
    ({"top_p": 1.1}, "at most 1, got 1.1")])
def test_settings_that_cannot_be_drawn_with_are_refused(fields, message, llama, prompts):
    with pytest.raises(ValueError, match=message):
        sample_ids(llama, prompts[:1], [1], 2, **fields)


def test_means_are_those_of_all_answers_and_every_answer_is_kept(llama, tokenizer, conversations):
    metrics = {"length": lambda said, wanted: float(len(said))}
    found = evaluate_sampled(llama, tokenizer, conversations[:9], metrics, 3, 1.0, max_new_tokens=4)
    assert [len(those) for those in found.answers] == [3] * 9
    lengths = [[len(one.prediction) for one in those] for those in found.answers]
    assert found.intervals["length"].difference == pytest.approx(np.mean(lengths))
    assert [one.scores["length"] for one in found.questions.predictions] == pytest.approx(np.mean(lengths, 1))
    assert found.intervals["length"].low <= np.mean(lengths) <= found.intervals["length"].high
    plain = found.to_dict()
    assert len(plain["answers"]) == 27 and plain["intervals"]["length"]["mean"] == found.intervals["length"].difference
    assert "<td>length</td>" in found._repr_html_()


def test_two_sampled_evaluations_can_be_compared_if_they_were_drawn_alike(llama, tokenizer, conversations):
    base, tuned = (evaluate_sampled(llama, tokenizer, conversations[:6], generations=2, max_new_tokens=3) for _ in "ab")
    assert compare(base.questions, tuned.questions).ties == 6
    other = evaluate_sampled(llama, tokenizer, conversations[:6], generations=2, max_new_tokens=3, temperature=1.0)
    greedy = evaluate_instructions(llama, tokenizer, conversations[:6], max_new_tokens=3)
    for strange in (other.questions, greedy):
        with pytest.raises(DataError, match="one protocol"):
            compare(base.questions, strange)


def test_no_question_is_refused(llama, tokenizer):
    with pytest.raises(DataError, match="at least one question"):
        evaluate_sampled(llama, tokenizer, [])


@pytest.mark.slow
def test_an_interval_over_questions_holds_the_truth_and_one_over_answers_does_not():
    chance, held = np.random.default_rng(0), {"questions": 0, "answers": 0}
    for number in range(1_000):
        hard = chance.beta(0.6, 0.4, 150)  # each question has its own chance of a right answer; their mean is 0.6
        right = (chance.random((8, 150)) < hard).T.astype(float)
        for name, values in (("questions", right.mean(1)), ("answers", right.ravel())):
            interval = paired_bootstrap(np.zeros(len(values)), values, resamples=200, seed=number)
            held[name] += interval.low <= 0.6 <= interval.high
    assert 0.93 <= held["questions"] / 1_000 <= 0.97 and held["answers"] / 1_000 < 0.75
