"""Other right answers to milestone 5."""
from milestones.listed import Alternative

ALTERNATIVES = [
    Alternative(
        "log-softmax and gather",
        "5.1",
        'F.cross_entropy(guesses.transpose(1, 2), targets, ignore_index=-100, reduction="none")',
        "-guesses.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)",
    ),
    Alternative(
        "a loop for sums",
        "5.2",
        "nll, tokens = math.fsum(nll for nll, _ in sums), sum(count for _, count in sums)",
        "nll, tokens = 0.0, 0\n    for nats, count in sums:\n        nll, tokens = nll + nats, tokens + count",
    ),
    Alternative(
        "tensors filled from behind",
        "5.3",
        "",
        '''
def left_pad(prompts: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill rows from their ends."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt):] = torch.tensor(prompt)
        mask[row, width - len(prompt):] = 1
    return ids, mask
''',
    ),
    Alternative(
        "without a cache",
        "5.4",
        "",
        '''
def greedy(model, input_ids, attention_mask, max_new_tokens, stop_ids, pad_token_id):
    """The whole sequence read again at each step."""
    start = input_ids.shape[1]
    finished = torch.zeros(len(input_ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).logits[:, -1]
        token = torch.where(finished, pad_token_id, logits.argmax(-1))
        input_ids = torch.cat([input_ids, token[:, None]], 1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(token)[:, None]], 1)
        finished = finished | sum((token == stop) for stop in stop_ids).bool()
        if bool(finished.all()):
            break
    return input_ids[:, start:]
''',
    ),
    Alternative(
        "translate for a comprehension",
        "5.5",
        'text = "".join(letter for letter in text.lower() if letter not in string.punctuation)',
        'text = text.lower().translate(str.maketrans("", "", string.punctuation))',
    ),
    Alternative(
        "all draws at once",
        "5.6",
        "means = [differences[random.integers(0, count, count)].mean() for _ in range(resamples)]",
        "means = differences[random.integers(0, count, (resamples, count))].mean(axis=1)",
    ),
    Alternative(
        "signs as a matrix",
        "5.7",
        "sums = np.array([differences @ random.choice([-1.0, 1.0], count) for _ in range(permutations)])",
        "sums = (2 * random.integers(0, 2, (permutations, count)) - 1) @ differences",
    ),
    Alternative(
        "einsum in float64",
        "5.8",
        "scaling * (lora_B.float() @ lora_A.float())",
        '(torch.einsum("or,ri->oi", lora_B.double(), lora_A.double()) * scaling).float()',
    ),
    Alternative(
        "a loop with a running maximum",
        "5.9",
        "",
        '''
def largest_difference(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Pair by pair."""
    far, size = 0.0, 1.0
    for one, other in zip(got, wanted, strict=True):
        if not torch.isfinite(one).all():
            return math.inf
        far, size = max(far, float((one - other).abs().max())), max(size, float(other.abs().max()))
    return far / size
''',
    ),
]
