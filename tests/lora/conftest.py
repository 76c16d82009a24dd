"""Tiny real models with random weights, made on the spot."""
import pytest
import torch


def tiny_llama(seed: int = 0, tied: bool = False, bias: bool = False, layers: int = 2):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, attention_bias=bias)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_gpt2(seed: int = 0):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                      attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)).eval()


@pytest.fixture
def tiny():
    """tiny("llama", tied=True): a model of two layers, in eval."""
    return lambda kind="llama", **fields: {"llama": tiny_llama, "gpt2": tiny_gpt2}[kind](**fields)


@pytest.fixture
def ids():
    return torch.randint(0, 96, (3, 12), generator=torch.Generator().manual_seed(7))
