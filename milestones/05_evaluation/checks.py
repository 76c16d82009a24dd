"""Checks of milestone 5: what is measured is what was meant, and what is merged is what was trained."""
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from milestones.expecting import expect, refuses, same

STOP, PAD = 1, 0


def tiny_gpt2():
    """A random GPT-2 of two layers: it has a vector for each position, so that a wrong position can be seen."""
    config = GPT2Config(vocab_size=60, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.6,
                        bos_token_id=2, eos_token_id=STOP)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.task("5.1", points=7, hint="the guess at position t is about the token at t + 1: cut one end off each")
def test_each_target_costs_minus_its_log_probability(lib, seed):
    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[0, :3] = labels[2, 4:] = -100
    log = logits.log_softmax(-1)
    want = torch.zeros(3, 5)
    for row in range(3):
        for t in range(5):
            if labels[row, t + 1] != -100:
                want[row, t] = -log[row, t, labels[row, t + 1]]
    asked, unshifted = (
        labels.clamp(min=0),
        torch.where(labels == -100, 0.0, -log.gather(2, labels.clamp(min=0)[..., None])[..., 0]),
    )
    same(lib.token_nll(logits, labels), want, "the nats of each target", {
        "guesses and labels are not shifted against each other": unshifted,
        "they are cut, but not shifted": unshifted[:, :-1],
        "prompt and padding, labelled -100, are counted": -log[:, :-1].gather(2, asked[:, 1:, None])[..., 0],
        "the probabilities stand there, not their negative logarithms": (-want).exp()}, rtol=1e-4)


@pytest.mark.task("5.1", points=4, values=False)
def test_the_loss_of_16_bit_logits_is_computed_in_float32(lib, seed):
    logits, labels = (torch.randn(1, 5, 400) * 3).bfloat16(), torch.randint(0, 400, (1, 5))
    got = lib.token_nll(logits, labels)
    want = -logits.float().log_softmax(-1)[:, :-1].gather(2, labels[:, 1:, None])[..., 0]
    same(got.float(), want, "the nats from bfloat16 logits", {
        "the logarithms are taken in 16 bits": got.dtype == torch.bfloat16}, rtol=1e-4)


@pytest.mark.task("5.2", points=9, hint="one sum of nats, one sum of tokens, one exponential at the end")
def test_perplexity_is_of_all_tokens_together(lib, seed):
    sums = [(3.0 + seed % 5, 2), (40.0, 12), (2.5, 7)]
    nll, tokens = sum(a for a, _ in sums), sum(b for _, b in sums)
    got = lib.pooled(sums)
    same(got.overall, math.exp(nll / tokens), "the perplexity of all", {
        "perplexities are averaged": sum(math.exp(a / b) for a, b in sums) / 3,
        "mean losses are averaged, whatever their number of tokens": math.exp(sum(a / b for a, b in sums) / 3),
        "the sum is divided by the number of samples": math.exp(nll / 3)})
    same([got.nll, got.tokens], [nll, tokens], "[nats, tokens]")


@pytest.mark.task("5.2", points=3, values=False)
def test_no_target_at_all_is_refused(lib, seed):
    refuses(lambda: lib.pooled([(0.0, 0), (0.0, 0)]), "no target token at all", mentions="target token")


@pytest.mark.task("5.3", points=8, hint="the next token is read behind the last column: all prompts must end there")
def test_prompts_end_in_the_same_column(lib, seed):
    prompts = [[5, 6, 7, 8], [9], [3, PAD, 4]]
    ids, mask = lib.left_pad(prompts, PAD)
    same(ids, torch.tensor([[5, 6, 7, 8], [0, 0, 0, 9], [0, 3, 0, 4]]), "input_ids", {
        "padding stands behind the prompt": torch.tensor([[5, 6, 7, 8], [9, 0, 0, 0], [3, 0, 4, 0]]),
        "prompts are cut to the shortest": ids.shape[1] == 1})
    want = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]])
    same(mask, want, "attention_mask", {
        "a pad token inside a prompt is taken for padding": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 1]]),
        "everything is attended to": torch.ones_like(want), "mask and padding are exchanged": 1 - want})
    expect(ids.dtype == mask.dtype == torch.int64, "both are int64", "torch.int64", f"{ids.dtype}, {mask.dtype}")


def one_by_one(model, prompt, stops, count):
    """Greedy decoding without padding and without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in stops:
                break
    return ids[len(prompt):]


@pytest.mark.task(
    "5.4", points=14, values=False, hint="what is generated for a prompt does not depend on its neighbors"
)
def test_a_batch_gives_what_each_prompt_gives_alone(lib, seed):
    model = tiny_gpt2()
    draw = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(2, 60, (length,), generator=draw).tolist() for length in (6, 2, 4)]
    free = [one_by_one(model, prompt, [], 8) for prompt in prompts]
    stops = [free[0][2], free[1][4], free[2][5]]  # tokens that end each answer before the eighth, the first one early
    want = [one_by_one(model, prompt, stops, 8) for prompt in prompts]
    width = max(map(len, want))
    want = torch.tensor([answer + [PAD] * (width - len(answer)) for answer in want])
    ids = torch.tensor([[PAD] * (6 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (6 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = [len(one_by_one(model, prompt, stops, 8)) for prompt in prompts]
    with torch.no_grad():
        got = lib.greedy(model, ids, mask, 8, stops, PAD)
    alike = [torch.equal(got[row, :end], want[row, :end][:got.shape[1]]) for row, end in enumerate(ends)]
    same(got, want, "the generated tokens", {
        "the prompt is left in the answer": got.shape[1] > 8,
        "a row that has ended is not filled with padding": alike[0] and got[0, ends[0]:].ne(PAD).any().item(),
        "rows with padding come out different: padding is attended to, or counted as positions":
            alike[0] and not all(alike),
        "generation goes on when every row has ended": all(alike) and got.shape[1] > width,
        "it stops when one row has ended": all(alike) and got.shape[1] < width,
        "not the likeliest token is taken": not any(alike)})


@pytest.mark.task("5.5", points=10, values=False)
def test_each_level_takes_away_what_it_says_and_no_more(lib, seed):
    text = "  The  Baker's\tan\n apple, in A THEATRE. "
    cases = [("exact", text, {}), ("spaces", "The Baker's an apple, in A THEATRE.", {
        "case is taken away too": "the baker's an apple, in a theatre."}), ("words", "bakers apple in theatre", {
            "articles are cut out of words": "bakers pple in tre", "articles stay": "the bakers an apple in a theatre",
            "punctuation stays": "baker's apple, in theatre.", "case stays": "The Bakers apple in A THEATRE"})]
    for level, want, reasons in cases:
        got = lib.normalize(text, level)
        same(got, want, f"level {level!r} of {text!r}", {
            "white space is not evened out": level != "exact" and "  " in got, **reasons})
    same(lib.normalize("Cafe\u0301", "spaces"), "Caf\u00e9", "a letter written in two signs", {
        "two ways to write one letter stay different: NFC joins them": True})
    refuses(lambda: lib.normalize("a", "nonsense"), "an unknown level", mentions="level")


def scores(seed, count=400):
    """Two models on the same questions: hard ones are hard for both, the second is a little better."""
    draw = torch.Generator().manual_seed(seed)
    hard, noise = (torch.randn(count, generator=draw, dtype=torch.float64) for _ in range(2))
    return hard.tolist(), (hard + 0.1 + 0.3 * noise).tolist()


@pytest.mark.task("5.6", points=8, values=False, hint="take the difference of each question first, then draw questions")
def test_the_interval_is_that_of_paired_differences(lib, seed):
    base, tuned = scores(seed)
    differences = torch.tensor(tuned) - torch.tensor(base)
    got, mean, half = lib.paired_bootstrap(base, tuned), differences.mean().item(), 1.96 * differences.std().item() / 20
    same(got.difference, mean, "the difference", {"the sign is the wrong way round": -mean}, rtol=1e-4)
    unpaired = 1.96 * math.sqrt(torch.tensor(base).var().item() + torch.tensor(tuned).var().item()) / 20
    width = (got.high - got.low) / 2
    expect(
        0.8 * half < width < 1.25 * half,
        "half the interval's width is about 1.96 standard errors of the differences",
        f"about {half:.4f}",
        f"{width:.4f}",
        {
            "the two lists are drawn apart from each other, unpaired": 0.8 * unpaired < width < 1.25 * unpaired,
            "single differences are drawn, not their mean": width > 10 * half,
            "questions are drawn without replacement": width < 1e-6,
            "one end has all that is cut off, or the level is not split": 0.6 * half < width <= 0.85 * half,
        },
    )
    expect(got.low < mean < got.high, "the difference lies inside", f"{mean:.4f}", f"{got.low:.4f} … {got.high:.4f}")
    narrow = lib.paired_bootstrap(base, tuned, level=0.5)
    expect((narrow.high - narrow.low) / 2 < 0.5 * width, "half the level gives a narrower interval",
           got=f"{(narrow.high - narrow.low) / 2:.4f} for 0.5", reasons={"the level is not looked at": True})


@pytest.mark.task("5.6", points=2, values=False)
def test_the_same_seed_draws_the_same_and_lists_must_pair(lib, seed):
    base, tuned = scores(seed, 40)
    once, again = (lib.paired_bootstrap(base, tuned, 100, seed=seed) for _ in range(2))
    same([once.low, once.high], [again.low, again.high], "the interval, drawn again with the same seed", {
        "the seed is not used": True}, rtol=0, atol=0)
    refuses(lambda: lib.paired_bootstrap(base, tuned[:-1]), "lists of different lengths", mentions="each question")


@pytest.mark.task("5.7", points=5, hint="what was seen is one of the permutations: the p-value is never 0")
def test_the_p_value_at_both_ends(lib, seed):
    base = [float(i % 7) for i in range(40)]
    better, permutations = [score + 1 for score in base], 300 + seed % 100
    least = 1 / (1 + permutations)
    same(lib.permutation_test(base, better, permutations), least, "the p-value of better on every question", {
        "what was seen is not counted among the permutations, so that p is 0": 0.0,
        "the share that is less far is taken": 1 - least, "it is counted, but not divided by all": 1.0})
    same(lib.permutation_test(base, base, permutations), 1.0, "the p-value of no difference at all", {
        "only permutations that are farther count, not those as far": least, "the test is one-sided": 0.5})


@pytest.mark.task("5.7", points=5, values=False)
def test_the_p_value_counts_both_sides(lib, seed):
    base, tuned = [0.0] * 6, [1.0, 1.0, 1.0, 1.0, 1.0, -1.0]
    exact = 14 / 64  # signs with a sum of at least 4, on either side: 2 · (1 + 6)
    for one, other in ((base, tuned), (tuned, base)):
        got = lib.permutation_test(one, other, 4_000, seed=seed)
        expect(abs(got - exact) < 0.035, "the p-value is the share of sign patterns at least as far from 0",
               f"about {exact:.3f}", f"{got:.3f}", {
                   "the test is one-sided": abs(got - exact / 2) < 0.035 or got > 0.85,
                   "questions are drawn with replacement, signs are not swapped": got > 0.4})


@pytest.mark.task("5.8", points=7, hint="B A has the shape of the weight; the scale is alpha over r")
def test_the_update_is_added_scaled(lib, seed):
    w, a, b, scaling = torch.randn(5, 7), torch.randn(3, 7), torch.randn(5, 3), 1.5 + seed % 3
    got = lib.merged_weight(w, a, b, scaling)
    same(got, w + scaling * b @ a, "the merged weight", {
        "the update is not scaled": w + b @ a,
        "alpha alone is taken for the scale": w + 3 * scaling * b @ a,
        "the weight is scaled too": scaling * (w + b @ a),
        "the update stands alone": scaling * b @ a,
        "the update is taken away": w - scaling * b @ a})
    same(lib.merged_weight(w.T, a, b, scaling, True), (w + scaling * b @ a).T, "the merged weight of a Conv1D layer", {
        "the result is turned back": w + scaling * b @ a})


@pytest.mark.task("5.8", points=4, values=False)
def test_a_square_conv1d_gets_the_turned_update(lib, seed):
    w, a, b = torch.randn(6, 6), torch.randn(2, 6), torch.randn(6, 2)
    same(lib.merged_weight(w, a, b, 2.0, True), w + 2 * (b @ a).T, "the merged weight of a square Conv1D layer", {
        "the update is not turned: shapes do not tell": w + 2 * b @ a})


@pytest.mark.task("5.8", points=4, values=False, hint="bfloat16 keeps three digits: round once, at the end")
def test_16_bit_weights_are_merged_in_float32_and_rounded_once(lib, seed):
    w, a, b = torch.randn(40, 40).bfloat16(), torch.randn(8, 40) * 0.1, torch.randn(40, 8) * 0.1
    got = lib.merged_weight(w, a, b, 2.0)
    expect(got.dtype == torch.bfloat16, "the weight keeps its type", "torch.bfloat16", str(got.dtype),
           {"the result is left in float32": got.dtype == torch.float32})
    same(got, (w.float() + 2 * b @ a).bfloat16(), "the merged bfloat16 weight", {
        "the update is rounded before it is added": w + (2 * b @ a).bfloat16(),
        "the product is made in 16 bits": w + 2 * b.bfloat16() @ a.bfloat16()}, rtol=0, atol=0)


@pytest.mark.task("5.9", points=5)
def test_the_largest_difference_is_measured_in_the_size_of_what_was_wanted(lib, seed):
    wanted = [torch.tensor([0.5, -8.0]), torch.tensor([[2.0]])]
    got = [wanted[0] + torch.tensor([0.25, 0.0]), wanted[1] - 1.0]
    same(lib.largest_difference(got, wanted), 1 / 8, "the largest difference", {
        "it is not measured in parts of the largest wanted value": 1.0, "signs are not taken away": 0.25 / 8,
        "only the first pair is looked at": 0.25 / 8, "differences are averaged": (0.125 + 1) / 2 / 8})
    small = [torch.tensor([0.01])]
    same(lib.largest_difference([torch.tensor([0.03])], small), 0.02, "the difference of values below 1", {
        "the size is not at least 1": 2.0})


@pytest.mark.task("5.9", points=5, values=False)
def test_nan_is_infinitely_far(lib, seed):
    wanted = [torch.zeros(3), torch.ones(2)]
    for bad in (math.nan, math.inf):
        got = lib.largest_difference([torch.zeros(3), torch.tensor([1.0, bad])], wanted)
        same(got, math.inf, f"the difference of {bad}", {
            "NaN is compared, and every comparison with NaN is false": got == 0 or got != got})
