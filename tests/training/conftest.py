"""Tiny real models and samples whose answers can be learned."""
import random

import pytest
import torch

from finetune_lib.data.chat import TokenizedSample

torch.set_num_threads(1)


def make_samples(count, seed=0, vocab=256, shortest=6, longest=40, all_targets=False):
    """Samples in which each token follows from the first, with prompts of any length."""
    chance, samples = random.Random(seed), []
    for number in range(count):
        length, first = chance.randint(shortest, longest), chance.randint(5, vocab - 1)
        prompt = 1 if all_targets else chance.randint(1, length - 2)
        ids = [first] + [first * (k + 1) % (vocab - 5) + 5 for k in range(1, length)]
        samples.append(TokenizedSample(f"s{seed}-{number}", ids, [1] * length, [-100] * prompt + ids[prompt:], prompt,
                                       length - prompt, length))
    return samples


def make_model(seed=0, hidden=32, layers=2, vocab=256, dropout=0.0, **more):
    """A Llama with random weights, in evaluation mode as `from_pretrained` gives it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                         max_position_embeddings=128, attention_dropout=dropout, bos_token_id=1, eos_token_id=2,
                         pad_token_id=0, **more)
    return LlamaForCausalLM(config).eval()


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def samples():
    return make_samples


@pytest.fixture(scope="session")
def model():
    return make_model


@pytest.fixture(scope="session")
def weights_of():
    return weights


@pytest.fixture(scope="session")
def equal():
    return same
