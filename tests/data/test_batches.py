"""Splits share nothing, orders resume exactly, and packed samples do not see each other."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from finetune_lib.core import ConfigError, DataError
from finetune_lib.data.batches import (
    BatchOrder,
    assign_groups,
    collate,
    leak_report,
    padding_waste,
    split,
)
from finetune_lib.data.chat import TokenizedSample
from finetune_lib.data.packing import block_mask, collate_packed, pack
from finetune_lib.data.turns import Conversation, Turn

VOCABULARY = 97


def ask(question: str, answer: str, name: str = "", **metadata) -> Conversation:
    return Conversation(name, [Turn("user", question), Turn("assistant", answer)], metadata=metadata)


def many(count: int = 120) -> list[Conversation]:
    return [
        ask(f"Where does person {i} live?", f"In town {i % 7}.", user=f"u{i % 20}", family=f"f{i % 3}", day=i)
        for i in range(count)
    ]


def samples_of(lengths, seed: int = 0) -> list[TokenizedSample]:
    rng, samples = random.Random(seed), []
    for number, length in enumerate(lengths):
        ids, prompt = [rng.randrange(VOCABULARY) for _ in range(length)], rng.randrange(length)
        samples.append(
            TokenizedSample(
                f"s{number}", ids, [1] * length, [-100] * prompt + ids[prompt:], prompt, length - prompt, length
            )
        )
    return samples


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=60)


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_same_content_splits_the_same_in_any_file_order(rng, seed):
    chats = many()
    shuffled = rng.sample(chats, len(chats))
    one, two = split(chats, seed=seed), split(shuffled, seed=seed)
    for part in ("train", "validation", "test"):
        assert {c.id for c in getattr(one, part)} == {c.id for c in getattr(two, part)}


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 5), min_size=10, max_size=80), st.integers(0, 9))
def test_every_group_is_in_one_split_and_shares_come_out(sizes, seed):
    place, total = assign_groups(sizes, (0.8, 0.1, 0.1), seed), sum(sizes.values())
    assert place.keys() == sizes.keys()
    for number, ratio in enumerate((0.8, 0.1, 0.1)):
        assert abs(sum(size for name, size in sizes.items() if place[name] == number) - ratio * total) <= max(
            sizes.values()
        )


def test_no_user_is_on_two_sides_when_grouped_by_user():
    found = split(many(), group_by="user")
    users = [{c.metadata["user"] for c in part} for part in (found.train, found.validation, found.test)]
    assert not (users[0] & users[1] or users[0] & users[2] or users[1] & users[2])
    assert (
        sum(row["conversations"] for row in found.table()) == 120 and sum(row["groups"] for row in found.table()) <= 20
    )


def test_the_leak_report_finds_what_a_split_by_row_does_and_a_split_by_group_has_none():
    rng = random.Random(random.randrange(10**6))
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(60)]
    chats = [ask(text, "Yes, " + text) for text in texts] + [ask(text + " please", "Yes, " + text) for text in texts]
    chats += [ask(text.upper(), "No.") for text in texts[:20]]
    rng.shuffle(chats)
    naive = leak_report(chats[40:], chats[:40])
    assert naive.near and naive.exact and not naive.clean and naive.share > 0.4
    good = split(chats, (0.7, 0.3), group_by="near")
    assert leak_report(good.train, good.validation).clean


def test_strata_keep_their_share_and_time_goes_forward():
    found = split(many(), strategy="stratified", by="family")
    assert [
        [c.metadata["family"] for c in part].count("f0") for part in (found.train, found.validation, found.test)
    ] == [32, 4, 4]
    timed = split(many(), strategy="temporal", by="day")
    assert max(c.metadata["day"] for c in timed.train) < min(c.metadata["day"] for c in timed.validation)
    assert max(c.metadata["day"] for c in timed.validation) < min(c.metadata["day"] for c in timed.test)


@pytest.mark.parametrize("ratios", [(0.9, 0.2), (1.0, 0.0), (1.2, -0.2), (0.5,), (0.9, 0.1, 0.0)])
def test_impossible_ratios_are_refused_with_the_numbers(ratios):
    with pytest.raises(ConfigError, match=str(ratios[0])):
        split(many(), ratios)


def test_a_class_of_one_cannot_be_stratified():
    with pytest.raises(DataError, match="got 1 .*rare"):
        split([*many(), ask("Only one?", "Yes.", family="rare")], strategy="stratified", by="family")
    with pytest.raises(DataError, match="did you mean 'family'"):
        split(many(), strategy="stratified", by="famly")


@given(LENGTHS, st.integers(1, 16))
def test_padding_is_neither_seen_nor_learned_and_nothing_else_changes(lengths, multiple):
    samples = samples_of(lengths)
    batch = collate(
        samples, pad_token_id=samples[0].input_ids[-1], pad_to_multiple_of=multiple
    )  # a pad that is learned elsewhere
    assert batch["input_ids"].shape[1] % multiple == 0 and 0 <= batch["input_ids"].shape[1] - max(lengths) < multiple
    for row, sample in enumerate(samples):
        n = sample.total_length
        assert (
            batch["input_ids"][row, :n].tolist() == sample.input_ids
            and batch["labels"][row, :n].tolist() == sample.labels
        )
        assert batch["attention_mask"][row].sum() == n and (batch["labels"][row, n:] == -100).all()
    assert {tensor.dtype for tensor in batch.values()} == {torch.long}


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.booleans(), st.sampled_from([None, 64]))
def test_every_sample_is_in_one_batch_of_an_epoch_and_limits_hold(lengths, batch_size, seed, grouped, max_tokens):
    order = BatchOrder(lengths, batch_size, seed, grouped, max_tokens)
    for epoch in (0, 1):
        batches = order.epoch(epoch)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(0 < len(batch) <= batch_size for batch in batches) and batches == order.epoch(epoch)
        if max_tokens:
            assert all(len(batch) * max(lengths[i] for i in batch) <= max_tokens for batch in batches)


@given(LENGTHS, st.integers(1, 5), st.data())
def test_an_interrupted_order_goes_on_as_if_nothing_had_happened(lengths, batch_size, data):
    whole, first, second = (BatchOrder(lengths, batch_size, seed=7) for _ in range(3))
    epochs = [*whole.epoch(0), *whole.epoch(1)]
    stop = data.draw(st.integers(0, len(whole.epoch(0))))
    walk = iter(first)
    seen = [next(walk) for _ in range(stop)]
    second.load_state_dict(first.state_dict())
    while len(seen) < len(epochs):
        seen += list(second)
    assert seen == epochs


def test_a_position_of_another_order_is_refused():
    state = BatchOrder([3, 4, 5], 2, seed=1).state_dict()
    for other in (BatchOrder([3, 4, 6], 2, seed=1), BatchOrder([3, 4, 5], 1, seed=1), BatchOrder([3, 4, 5], 2, seed=2)):
        with pytest.raises(ConfigError, match="another order"):
            other.load_state_dict(state)


def test_grouping_by_length_wastes_less_and_packing_least():
    lengths = [random.Random(i).randrange(5, 200) for i in range(800)]
    waste = [
        padding_waste(
            [lengths[i] for i in batch] for batch in BatchOrder(lengths, 16, group_by_length=grouped).epoch(0)
        )
        for grouped in (False, True)
    ]
    packed = padding_waste([row.total_length] for row in pack(samples_of(lengths), 512))
    assert packed < 0.02 < waste[1] < waste[0] / 2


@given(LENGTHS)
def test_packing_keeps_every_sample_whole_and_never_learns_a_first_token_from_a_neighbor(lengths):
    samples = samples_of(lengths)
    rows, by_id = pack(samples, 40), {sample.id: sample for sample in samples}
    assert sorted(name for row in rows for name in row.ids) == sorted(by_id) and all(
        row.total_length <= 40 for row in rows
    )
    for row in rows:
        start = 0
        for name in row.ids:
            end = start + by_id[name].total_length
            assert row.input_ids[start:end] == by_id[name].input_ids and row.position_ids[start:end] == list(
                range(end - start)
            )
            assert row.labels[start] == -100 and row.labels[start + 1 : end] == by_id[name].labels[1:]
            start = end


def test_the_block_mask_lets_a_token_see_its_own_sample_up_to_itself():
    mask = block_mask(torch.tensor([[0, 1, 2, 0, 1]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


def tiny(kind: str):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_packed_samples_have_the_logits_and_the_loss_that_they_have_alone(kind, attention):
    model = tiny(kind)
    model.set_attn_implementation(attention)
    samples = samples_of([9, 3, 17, 5, 12, 20, 1, 8], seed=random.randrange(10**6))
    padded, rows = collate(samples, 0), pack(samples, 32)
    packed = collate_packed(rows, 0)
    alone = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
    labels = packed.pop("labels")
    together = model(**packed).logits
    number = {sample.id: i for i, sample in enumerate(samples)}
    for row, logits in zip(rows, together, strict=True):
        start = 0
        for name in row.ids:
            n = samples[number[name]].total_length
            # float32: two orders of summation differ by 1e-6; neighbors that see each other by 0.1
            torch.testing.assert_close(logits[start : start + n], alone[number[name], :n], atol=1e-5, rtol=1e-4)
            start += n

    def loss(logits, labels):
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    assert abs(loss(together, labels) - loss(alone, padded["labels"])) < 1e-5


@torch.no_grad()
def test_transformers_own_packing_needs_use_cache_false_and_then_equals_ours():
    model = tiny("llama")
    rows = pack(samples_of([9, 3, 17, 5]), 32)
    ours, bare = collate_packed(rows, 0), collate_packed(rows, 0, mask_dtype=None)
    labels = [batch.pop("labels") for batch in (ours, bare)]
    assert torch.equal(*labels)
    torch.testing.assert_close(model(**bare, use_cache=False).logits, model(**ours).logits, atol=1e-5, rtol=1e-4)
