"""Tiny real models with random weights, and a byte tokenizer with the course's template, made on the spot."""
import random
from contextlib import contextmanager

import pytest
import torch

TEMPLATE = ("{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
            "{% generation %}{{ ' ' + m['content'] | trim + '<|end|>' }}{% endgeneration %}"
            "{% else %}{{ ' ' + m['content'] | trim + '<|end|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
SPECIAL = ["<s>", "<|end|>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
VOCABULARY = 288


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(SPECIAL + letters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|end|>", pad_token="<pad>",
                                   extra_special_tokens=SPECIAL[3:])
    made.chat_template = TEMPLATE
    return made


def tiny(kind: str = "llama", seed: int = 0, **fields):
    """A random model of two layers, in eval; large weights, so that its answers differ from prompt to prompt."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(seed)
    if kind == "gpt2":
        shape = dict(n_embd=64, n_layer=2, n_head=4, n_positions=256)
    else:
        shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True)
    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
                     "qwen2": (Qwen2Config, Qwen2ForCausalLM), "gpt2": (GPT2Config, GPT2LMHeadModel)}[kind]
    return model(config(**{"vocab_size": VOCABULARY, "initializer_range": 0.1, **IDS, **shape, **fields})).eval()


@pytest.fixture
def make_model():
    """make_model("gpt2", seed=1): a random model."""
    return tiny


@pytest.fixture(scope="session")
def llama():
    return tiny("llama")


@pytest.fixture
def base_folder(tmp_path, tokenizer):
    """base_folder("llama", seed=0): a random model saved with its tokenizer."""
    def save(kind: str = "llama", **fields):
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        tiny(kind, **fields).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder
    return save


@pytest.fixture(scope="session")
def conversations():
    """24 questions of three families, of very different lengths."""
    from finetune_lib.data.records import Conversation, Turn

    chance = random.Random(0)
    text = lambda low, high: " ".join(chance.choice("owl pony elm oak well hut".split())  # noqa: E731
                                      for _ in range(chance.randint(low, high)))
    return [Conversation(f"q{number}", (Turn("user", text(1, 15)), Turn("assistant", text(1, 5))),
                         metadata={"family": "abc"[number % 3]}) for number in range(24)]


@pytest.fixture(scope="session")
def samples(conversations, tokenizer):
    from finetune_lib.data.chat import tokenize_all

    made, problems = tokenize_all(conversations, tokenizer)
    assert not problems
    return made


@pytest.fixture(scope="session")
def prompts(conversations, tokenizer):
    from finetune_lib.data.chat import prompt_ids

    return [prompt_ids(conversation, tokenizer)[0] for conversation in conversations]


@pytest.fixture
def adapt():
    """adapt(model, r=4, …): an adapter whose A and B are both random, as after a training."""
    from finetune_lib.lora.adapter import LoRAConfig, adapter_parameters, attach_lora

    def attach(model, backend: str = "own", seed: int = 0, **fields):
        model = attach_lora(model, LoRAConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **fields}), backend)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter_parameters(model):
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()
    return attach


@pytest.fixture
def small_disk():
    """`with small_disk():` no file may grow beyond 100 kB, as on a disk that is full; what is there can be read."""
    import resource

    @contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return limited
