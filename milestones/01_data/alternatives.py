"""Other right answers to milestone 1."""
from milestones.listed import Alternative

ALTERNATIVES = [
    Alternative(
        "lower case once", "1.1", "ROLE_NAMES.get(str(said_by).lower())", 'ROLE_NAMES.get(f"{said_by}".casefold())'
    ),
    Alternative(
        "sets for in",
        "1.2",
        'if "chosen" in row and "rejected" in row or',
        'if {"chosen", "rejected"} <= row.keys() or',
    ),
    Alternative(
        "again and again until nothing changes",
        "1.3",
        "",
        '''
def clusters(count: int, pairs: Iterable[tuple]) -> list[int]:
    """Lower both ends of every pair until nothing changes."""
    names, pairs = list(range(count)), [pair[:2] for pair in pairs]
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            low = min(names[i], names[j])
            if names[i] != low or names[j] != low:
                names[i] = names[j] = low
                changed = True
    return names
''',
    ),
    Alternative(
        "slices for startswith",
        "1.4",
        "whole.startswith(before) and whole.startswith(through)",
        "whole[:len(before)] == before and whole[:len(through)] == through",
    ),
    Alternative(
        "token by token",
        "1.5",
        "",
        '''
def label_tokens(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Look at each token and each span."""
    labels = []
    for token, (start, end) in zip(ids, offsets, strict=True):
        inside = [span for span in spans if start < span[1] and end > span[0]]
        if any(start < span[0] for span in inside):
            raise UntrainableError("boundary", "a token covers the end of the prompt and the beginning of the answer")
        labels.append(token if inside else -100)
    return labels
''',
    ),
    Alternative(
        "blake2 for sha256",
        "1.6",
        'hashlib.sha256(f"{seed}:{name}".encode()).digest()',
        'hashlib.blake2b(f"{name}/{seed}".encode()).hexdigest()',
    ),
    Alternative(
        "lists first",
        "1.7",
        "",
        '''
def collate(samples: list[TokenizedSample], pad_token_id: int, pad_to_multiple_of: int = 8) -> dict[str, torch.Tensor]:
    """Pad lists, then make tensors."""
    longest = max(len(sample.input_ids) for sample in samples)
    length = longest + (-longest) % pad_to_multiple_of
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": -100}
    return {name: torch.tensor([list(getattr(s, name)) + [value] * (length - len(s.input_ids)) for s in samples])
            for name, value in fill.items()}
''',
    ),
    Alternative(
        "enumerate for range",
        "1.8",
        "positions += range(sample.total_length)",
        "positions.extend(place for place, _ in enumerate(sample.input_ids))",
    ),
]
