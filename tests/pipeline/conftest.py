"""Small settings, and random models of four families in folders of their own."""
from pathlib import Path

import pytest

from finetune_lib.core import base_model

WILD = Path(__file__).parents[3] / "shared" / "data" / "wild"
SMALL = ["data.limit=48", "data.replay=null", "data.general=null", "training.max_steps=3", "training.warmup_steps=0",
         "training.per_device_train_batch_size=4", "evaluation.limit=4", "evaluation.max_new_tokens=4",
         "training.use_cpu=true"]
SIZE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, tie_word_embeddings=False)


@pytest.fixture
def settings(tmp_path):
    """settings("lora.r=2"): overrides for a run of seconds, in a folder of its own."""
    return lambda *more, folder="run": [*SMALL, f"output={tmp_path / folder}", *more]


@pytest.fixture(scope="session")
def small():
    """The same overrides, for a folder of the test's own choice."""
    return list(SMALL)


def random_model(family: str):
    """A model of two layers with random weights and the base's vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

    from finetune_lib.core import load_tokenizer

    tokenizer = load_tokenizer(base_model())
    ids = dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
               pad_token_id=tokenizer.pad_token_id)
    spare = {"vocab_size": len(tokenizer) + 16}  # Qwen has rows to spare, and its tokenizer class adds a token
    config = {"llama": lambda: LlamaConfig(**SIZE, **ids), "qwen2": lambda: Qwen2Config(**SIZE, **ids | spare),
              "mistral": lambda: MistralConfig(**SIZE, **ids, sliding_window=None),
              "gpt2": lambda: GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=512, **ids)}[family]()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config), tokenizer


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small run of the default with all six stages done; copy it before changing it."""
    from finetune_lib.pipeline.run import FineTuningPipeline

    pipeline = FineTuningPipeline("tiny", [*SMALL, f"output={tmp_path_factory.mktemp('finished') / 'run'}"])
    pipeline.run()
    return pipeline


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """model_folder("gpt2"): such a model saved as anyone would save it."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            for part in random_model(family):
                part.save_pretrained(made[family])
        return made[family]

    return make
