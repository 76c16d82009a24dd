"""The ready configurations train: models of the named shapes with random weights, scaled down on a processor."""
import pytest
import torch

from finetune_lib.core import base_model, load_tokenizer
from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.run import FineTuningPipeline

SHAPES = {  # family, and (width, inner width, layers, heads, key-value heads): as published, and scaled down
    "qwen-0.5b": ("qwen2", (896, 4_864, 24, 14, 2), (112, 608, 2, 7, 1)),
    "llama-7b-qlora": ("llama", (4_096, 11_008, 32, 32, 32), (192, 512, 2, 4, 4)),
    "mistral-7b-qlora": ("mistral", (4_096, 14_336, 32, 32, 8), (128, 448, 2, 4, 1)),
}
SHORT = ["training.max_steps=3", "training.warmup_steps=0", "training.gradient_accumulation_steps=1",
         "evaluation.limit=4", "evaluation.max_new_tokens=4", "data.limit=40", "data.max_length=256"]


def random_model(family: str, shape: tuple, folder):
    """A model of that shape, its weights random, with the course's vocabulary and template."""
    from transformers import AutoConfig, AutoModelForCausalLM

    width, inner, layers, heads, pairs = shape
    tokenizer = load_tokenizer(base_model())
    config = AutoConfig.for_model(
        family, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=pairs, vocab_size=len(tokenizer) + 16, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("name", SHAPES)
def test_a_ready_configuration_trains_its_shape_scaled_down(name, tmp_path):
    family, published, small = SHAPES[name]
    assert published[3] / published[4] == small[3] / small[4]  # query heads for each key-value head
    assert published[1] / published[0] == pytest.approx(small[1] / small[0], rel=0.01)
    random_model(family, small, tmp_path / "model")
    pipeline = FineTuningPipeline(name, [*SHORT, f"model.name_or_path={tmp_path / 'model'}", "model.dtype=float32",
                                         "merge.dtype=float32", f"output={tmp_path / 'run'}", "training.use_cpu=true"])
    ready = load_config(name, environment={})
    assert pipeline.config.method == ready.method and pipeline.config.training.optim == ready.training.optim
    report = pipeline.run()
    assert set(report["models"]) == {"base", "tuned"}
    assert (tmp_path / "run/export/huggingface/model.safetensors").is_file()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", ["qwen-0.5b", "llama-7b-qlora"])
def test_a_ready_configuration_trains_its_shape_in_full_on_a_gpu(name, tmp_path):
    family, published, _ = SHAPES[name]
    random_model(family, published, tmp_path / "model")
    pipeline = FineTuningPipeline(name, [*SHORT, f"model.name_or_path={tmp_path / 'model'}", "model.dtype=auto",
                                         f"output={tmp_path / 'run'}"])
    pipeline.run(until="train")
    assert (tmp_path / "run/train/adapter/adapter_model.safetensors").is_file()
