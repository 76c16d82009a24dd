"""Tiny model folders with random weights, made on the spot."""
import pytest
import torch

FIELDS = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
KINDS = ("llama", "qwen2", "mistral", "gpt2")


def tiny_config(kind: str, **changed):
    from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

    if kind == "gpt2":
        return GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0,
                          embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=1)
    known = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}
    return known[kind](**{**FIELDS, "tie_word_embeddings": kind == "llama", **changed})


def tiny_model(kind: str, **changed):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind, **changed), dtype=torch.float32)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """folders["llama"]: a model's folder with weights in float16."""
    places = {}
    for kind in KINDS:
        places[kind] = tmp_path_factory.mktemp(kind)
        tiny_model(kind).to(torch.float16).save_pretrained(places[kind])
    return places


@pytest.fixture
def ids():
    return torch.randint(0, 128, (3, 12), generator=torch.Generator().manual_seed(7))
