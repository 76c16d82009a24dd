"""Checks of milestone 5: what is measured is what was meant, and what is merged is what was trained."""
import math

import pytest
import torch

from milestones.expecting import expect, refuses, same

STOP, PAD = 1, 0


def tiny_gpt2():
    """A random GPT-2 of two layers: it has a vector for each position, so that a wrong position can be seen."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=60, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.6,
                        bos_token_id=2, eos_token_id=STOP)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.task("5.1", points=6, hint="the guess at position t is about the token at t + 1: cut one end off each")
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
    kept = labels.clone()
    got = lib.token_nll(logits, labels)
    same(labels, kept, "the labels after the call", {"the caller's labels are changed in place": True})
    same(got, want, "the nats of each target", {
        "only what is asked is returned: the others must stand there as 0": want[labels[:, 1:] != -100],
        "they are averaged or summed: one number for each target is wanted": got is not None and not got.ndim,
        "guesses and labels are not shifted against each other": unshifted,
        "they are cut, but not shifted": unshifted[:, :-1],
        "guesses and labels are shifted twice": torch.where(
            labels[:, 2:] == -100, 0.0, -log[:, :-2].gather(2, asked[:, 2:, None])[..., 0]),
        "prompt and padding, labelled -100, are counted": -log[:, :-1].gather(2, asked[:, 1:, None])[..., 0],
        "the probabilities stand there, not their negative logarithms": (-want).exp()}, rtol=1e-4)


@pytest.mark.task("5.1", points=3)
def test_the_loss_of_16_bit_logits_is_computed_in_float32(lib, seed):
    logits, labels = (torch.randn(1, 5, 400) * 3).bfloat16(), torch.randint(0, 400, (1, 5))
    got = lib.token_nll(logits, labels)
    want = -logits.float().log_softmax(-1)[:, :-1].gather(2, labels[:, 1:, None])[..., 0]
    same(got.float() if isinstance(got, torch.Tensor) else got, want, "the nats from bfloat16 logits", {
        "the logarithms are taken in 16 bits": got.dtype == torch.bfloat16}, rtol=1e-4)


@pytest.mark.task("5.2", points=7, hint="one sum of nats, one sum of tokens, one exponential at the end")
def test_perplexity_is_of_all_tokens_together(lib, seed):
    sums = [(3.0 + seed % 5, 2), (40.0, 12), (2.5, 7)]
    nll, tokens = sum(a for a, _ in sums), sum(b for _, b in sums)
    got = lib.pooled(sums)
    same(got.overall, math.exp(nll / tokens), "the perplexity of all", {
        "the pairs are read as (tokens, nats)": math.exp(tokens / nll),
        "the nats are divided here already, and once more at the end": math.exp(nll / tokens / tokens),
        "the last pair's tokens are not counted": math.exp(nll / (tokens - 7)),
        "perplexities are averaged": sum(math.exp(a / b) for a, b in sums) / 3,
        "mean losses are averaged, whatever their number of tokens": math.exp(sum(a / b for a, b in sums) / 3),
        "the sum is divided by the number of samples": math.exp(nll / 3)})
    same([got.nll, got.tokens], [nll, tokens], "[nats, tokens]")


@pytest.mark.task("5.2", points=2)
def test_no_target_at_all_is_refused(lib, seed):
    refuses(lambda: lib.pooled([(0.0, 0), (0.0, 0)]), "no target token at all", mentions="target token")


@pytest.mark.task("5.3", points=6, hint="the next token is read behind the last column: all prompts must end there")
def test_prompts_end_in_the_same_column(lib, seed):
    prompts = [[9], [5, 6, 7, 8], [3, PAD, 4]]
    got = lib.left_pad(prompts, PAD)
    expect(isinstance(got, tuple) and len(got) == 2 and all(isinstance(part, torch.Tensor) for part in got),
           "two tensors are returned", "(input_ids, attention_mask)", str(got)[:80], {
               "the mask is not returned": isinstance(got, torch.Tensor), "nothing is returned": got is None,
               "lists are returned": True})
    ids, mask = got
    same(prompts, [[9], [5, 6, 7, 8], [3, PAD, 4]], "the prompts after the call", {
        "the caller's lists are changed in place": True})
    same(ids, torch.tensor([[0, 0, 0, 9], [5, 6, 7, 8], [0, 3, 0, 4]]), "input_ids", {
        "padding stands behind the prompt": torch.tensor([[9, 0, 0, 0], [5, 6, 7, 8], [3, 0, 4, 0]]),
        "the prompts are turned round": torch.tensor([[0, 0, 0, 9], [8, 7, 6, 5], [0, 4, 0, 3]]),
        "prompts are cut to the shortest": ids.shape[1] == 1})
    want = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    same(mask, want, "attention_mask", {
        "a pad token inside a prompt is taken for padding": torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1]]),
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
    "5.4", points=10, hint="what is generated for a prompt does not depend on its neighbors"
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
        got, again = (lib.greedy(model, ids, mask, 8, stops, PAD) for _ in range(2))
    expect(isinstance(got, torch.Tensor) and got.ndim == 2, "the new tokens are returned", "a tensor (B, N)",
           str(got)[:80], {"nothing is returned": got is None, "a list is returned": isinstance(got, list)})
    same(got.shape[0], 3, "the number of rows", {"rows and columns are exchanged": got.shape[1] == 3})
    alike = [torch.equal(got[row, :end], want[row, :end][:got.shape[1]]) for row, end in enumerate(ends)]
    swallowed = want.clone()
    swallowed[range(3), [end - 1 for end in ends]] = PAD
    on = [got[row, end:].ne(PAD).any().item() for row, end in enumerate(ends)]
    same(got, want, "the generated tokens", {
        "not the likeliest token is taken: each call gives another answer": not torch.equal(got, again),
        "the prompt is left in the answer": torch.equal(got[:, :6], ids),
        "the stop token itself is left out of the answer": swallowed,
        "only the first of the stop tokens ends an answer": all(alike) and not on[0] and (on[1] or on[2]),
        "the first token is right and the next are not: its place, the mask or the cache does not move on":
            torch.equal(got[:, 0], want[:, 0]) and not alike[0],
        "a row that has ended is not filled with padding": alike[0] and got[0, ends[0]:].ne(PAD).any().item(),
        "rows with padding come out different: padding is attended to, or counted as positions":
            alike[0] and not all(alike),
        "generation goes on when every row has ended": all(alike) and got.shape[1] > width,
        "it stops when one row has ended": all(alike) and got.shape[1] < width,
        "not the likeliest token is taken": not any(alike)})
    with torch.no_grad():
        got = lib.greedy(model, ids, mask, 3, [60], PAD)  # a stop token that the model does not have
    same(got, torch.tensor([answer[:3] for answer in free]), "three tokens, none of them a stop token", {
        "max_new_tokens is overrun by one": got.shape[1] == 4, "it ends one token early": got.shape[1] == 2})


@pytest.mark.task("5.5", points=8)
def test_each_level_takes_away_what_it_says_and_no_more(lib, seed):
    text = "  The  Baker's\tan\n apple, in A THEATRE. "
    cases = [
        ("exact", text, {"the ends are cut: level exact changes nothing": text.strip()}),
        ("spaces", "The Baker's an apple, in A THEATRE.", {
            "case is taken away too": "the baker's an apple, in a theatre."}),
        ("words", "bakers apple in theatre", {
            "articles stay": "the bakers an apple in a theatre",
            "articles are looked for before the text is in lower case": "the bakers apple in a theatre",
            "punctuation becomes a space, and cuts words in two": "baker s apple in theatre",
            "punctuation stays": "baker's apple, in theatre.", "case stays": "The Bakers apple in A THEATRE"}),
    ]
    for level, want, reasons in cases:
        got = lib.normalize(text, level)
        shown = got if isinstance(got, str) else "apple theatre"
        same(got, want, f"level {level!r} of {text!r}", {
            "white space is not evened out": level != "exact" and "  " in shown,
            "articles are cut out of words": not ("apple" in shown and "theatre" in shown.lower()), **reasons})
    got = lib.normalize("Cafe\u0301", "spaces")
    same(got, "Caf\u00e9", "a letter written in two signs", {
        "accents are thrown away": got == "Cafe",
        "two ways to write one letter stay different: NFC joins them": True})
    refuses(lambda: lib.normalize("a", "nonsense"), "an unknown level", mentions="level")


def scores(seed, count=400):
    """Two models on the same questions: hard ones are hard for both, the second is a little better."""
    draw = torch.Generator().manual_seed(seed)
    hard, noise = (torch.randn(count, generator=draw, dtype=torch.float64) for _ in range(2))
    return hard.tolist(), (hard + 0.1 + 0.3 * noise).tolist()


@pytest.mark.task("5.6", points=6, hint="take the difference of each question first, then draw questions")
def test_the_interval_is_that_of_paired_differences(lib, seed):
    base, tuned = scores(seed)
    differences = torch.tensor(tuned) - torch.tensor(base)
    got, mean, half = lib.paired_bootstrap(base, tuned), differences.mean().item(), 1.96 * differences.std().item() / 20
    same(got.difference, mean, "the difference", {
        "the sign is the wrong way round": -mean,
        "it is the mean of the draws, not that of all questions": abs(got.difference - mean) < half / 4}, rtol=1e-4)
    unpaired = 1.96 * math.sqrt(torch.tensor(base).var().item() + torch.tensor(tuned).var().item()) / 20
    width = (got.high - got.low) / 2
    expect(
        0.8 * half < width < 1.25 * half,
        "half the interval's width is about 1.96 standard errors of the differences",
        f"about {half:.4f}",
        f"{width:.4f}",
        {
            "the two ends are exchanged": got.low > got.high,
            "the two lists are drawn apart from each other, unpaired": 0.8 * unpaired < width < 1.25 * unpaired,
            "sums are taken of the draws, not means": 0.8 < width / half / 400 < 1.25,
            "single differences are drawn, not their mean": width > 10 * half,
            "questions are drawn without replacement": width < 1e-6 and abs(got.low - mean) < 1e-6,
            "the same questions are drawn each time: the generator is made anew": width < 1e-6,
            "each draw takes another number of questions than there are": width < 0.6 * half,
            "one end has all that is cut off, or the level is not split": width <= 0.85 * half,
        },
    )
    expect(got.low < mean < got.high, "the difference lies inside", f"{mean:.4f}", f"{got.low:.4f} … {got.high:.4f}")
    narrow = lib.paired_bootstrap(base, tuned, level=0.5)
    part = (narrow.high - narrow.low) / 2 / width
    expect(0.25 < part < 0.45, "at level 0.5 the interval is about a third as wide: 0.674 standard errors for 1.96",
           "between 0.25 and 0.45 of its width", f"{part:.2f}", {
               "the level is not looked at": part > 0.9,
               "the level is not split between both ends": part < 0.1})


@pytest.mark.task("5.6", points=2)
def test_the_same_seed_draws_the_same_and_lists_must_pair(lib, seed):
    base, tuned = scores(seed, 40)
    once, again = (lib.paired_bootstrap(base, tuned, 100, seed=seed) for _ in range(2))
    same([once.low, once.high], [again.low, again.high], "the interval, drawn again with the same seed", {
        "the seed is not used": True}, rtol=0, atol=0)
    mean = sum(tuned) / 40 - sum(base) / 40
    same(once.difference, mean, "the difference: that of all questions, not of a draw", {
        "the sign is the wrong way round": -mean, "it is the mean of the draws": abs(once.difference - mean) < 0.02})
    refuses(lambda: lib.paired_bootstrap(base, tuned[:-1]), "lists of different lengths", mentions="each question")


@pytest.mark.task("5.7", points=4, hint="what was seen is one of the permutations: the p-value is never 0")
def test_the_p_value_at_both_ends(lib, seed):
    base = [float(i % 7) for i in range(40)]
    better, permutations = [score + 1 for score in base], 300 + seed % 100
    least = 1 / (1 + permutations)
    got = lib.permutation_test(base, better, permutations)
    share = float(got) if got is not None else 0.0
    same(got, least, "the p-value of better on every question", {
        "what was seen is not counted among the permutations, so that p is 0": 0.0,
        "the share that is less far is taken": 1 - least, "one is added above the line alone": 1 / permutations,
        "every permutation counts: signs are not drawn one by one, a sum is held against a mean, or nothing is divided":
            1.0,
        "what was seen is a mean, and it is held against sums": 0.5 < share < 1 - least,
        "all answers are thrown together: only the two of one question may change places": least < share < 0.5})
    same(lib.permutation_test(base, base, permutations), 1.0, "the p-value of no difference at all", {
        "only permutations that are farther count, not those as far": least, "the test is one-sided": 0.5})


@pytest.mark.task("5.7", points=4)
def test_the_p_value_counts_both_sides(lib, seed):
    base, tuned = [0.0] * 4, [8.0, -4.0, 1.0, -2.0]
    exact = 14 / 16  # the sixteen sums of ±8 ±4 ±2 ±1 are the odd numbers; two of them are nearer to 0 than 3
    for one, other in ((base, tuned), (tuned, base)):
        got = lib.permutation_test(one, other, 4_000, seed=seed)
        expect(abs(got - exact) < 0.022, "the p-value is the share of sign patterns at least as far from 0",
               f"{exact:.3f} ± 0.022, as chance is drawn 4,000 times", f"{got:.3f}", {
                   "the test is one-sided": min(abs(got - 7 / 16), abs(got - 10 / 16)) < 0.03})
    same([lib.permutation_test(base, tuned, 2_000, seed=seed) for _ in range(3)], [
        lib.permutation_test(base, tuned, 2_000, seed=seed)] * 3, "the p-value, drawn again with the same seed", {
            "the seed is not used": True}, rtol=0, atol=0)


@pytest.mark.task("5.8", points=6, hint="B A has the shape of the weight; the scale is alpha over r")
def test_the_update_is_added_scaled(lib, seed):
    b, scaling = torch.randn(5, 3), 1.5 + seed % 3
    for w, a in ((torch.randn(5, 5), torch.randn(3, 5)), (torch.randn(5, 7), torch.randn(3, 7))):
        kept, update = w.clone(), b @ a
        square = {"A and B are multiplied in the wrong order": kept + scaling * update.T} if w.shape[1] == 5 else {}
        got = lib.merged_weight(w, a, b, scaling)
        same(got, kept + scaling * update, "the merged weight", {
            "the update is not scaled": kept + update,
            "alpha alone is taken for the scale": kept + 3 * scaling * update,
            "alpha / r is divided by r again": kept + scaling / 3 * update,
            "the scale is multiplied in twice": kept + scaling**2 * update,
            "the weight is scaled too": scaling * (kept + update),
            "the update stands alone": scaling * update,
            "the update is taken away": kept - scaling * update} | square)
        same(w, kept, "the weight that was given, after the call", {"it is changed in place": True}, rtol=0, atol=0)
    same(lib.merged_weight(w.T, a, b, scaling, True), (w + scaling * b @ a).T, "the merged weight of a Conv1D layer", {
        "the result is turned back": w + scaling * b @ a})


@pytest.mark.task("5.8", points=4)
def test_a_square_conv1d_gets_the_turned_update(lib, seed):
    w, a, b = torch.randn(6, 6), torch.randn(2, 6), torch.randn(6, 2)
    same(lib.merged_weight(w, a, b, 2.0, True), w + 2 * (b @ a).T, "the merged weight of a square Conv1D layer", {
        "the update is not turned: shapes do not tell": w + 2 * b @ a})


@pytest.mark.task("5.8", points=4, hint="bfloat16 keeps three digits: round once, at the end")
def test_16_bit_weights_are_merged_in_float32_and_rounded_once(lib, seed):
    w, a, b = torch.randn(40, 40).bfloat16(), torch.randn(8, 40) * 0.1, torch.randn(40, 8) * 0.1
    got = lib.merged_weight(w, a, b, 2.0)
    expect(got.dtype == torch.bfloat16, "the weight keeps its type", "torch.bfloat16", str(got.dtype),
           {"the result is left in float32": got.dtype == torch.float32})
    same(got, (w.float() + 2 * b @ a).bfloat16(), "the merged bfloat16 weight", {
        "the update is rounded before it is added": w + (2 * b @ a).bfloat16(),
        "the product is made in 16 bits": w + 2 * b.bfloat16() @ a.bfloat16()}, rtol=0, atol=0)


@pytest.mark.task("5.9", points=4)
def test_the_largest_difference_is_measured_in_the_size_of_what_was_wanted(lib, seed):
    wanted = [torch.tensor([0.5, -8.0]), torch.tensor([[2.0, 2.0]])]
    got = [wanted[0] + torch.tensor([0.25, 0.0]), wanted[1] - torch.tensor([14.0, 2.0])]
    found = lib.largest_difference(got, wanted)
    same(found, 14 / 8, "the largest difference", {
        "it is not measured in parts of the largest wanted value": 14.0, "signs are not taken away": 0.25 / 8,
        "it is measured in parts of what was got": 14 / 12, "each value is measured in parts of itself": 14 / 2,
        "only the first pair, or the smallest difference, is looked at": 0.25 / 8,
        "the differences of a tensor are averaged": 8 / 8, "all differences are averaged": 16.25 / 4 / 8})
    expect(isinstance(found, float), "a number is returned", "a float", type(found).__name__, {
        "`.item()` is missing": isinstance(found, torch.Tensor)})
    small = [torch.tensor([0.01])]
    same(lib.largest_difference([torch.tensor([0.03])], small), 0.02, "the difference of values below 1", {
        "the size is not at least 1": 2.0})


@pytest.mark.task("5.9", points=4)
def test_nan_is_infinitely_far(lib, seed):
    wanted = [torch.zeros(3), torch.ones(2)]
    for bad in (math.nan, math.inf):
        got = lib.largest_difference([torch.zeros(3), torch.tensor([1.0, bad])], wanted)
        same(got, math.inf, f"the difference of {bad}", {
            "NaN is compared, and every comparison with NaN is false": got == 0 or got != got})
