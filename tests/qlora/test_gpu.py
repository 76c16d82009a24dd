"""On a GPU: a 7B Llama architecture with random weights trains below 8 GiB, and far below full fine-tuning."""
import subprocess
import time

import pytest
import torch

from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.qlora.loading import QuantizationConfig, prepare_for_training
from finetune_lib.qlora.memory import GIB, MIB, MemoryMonitor, estimate_memory
from finetune_lib.training.schedule import make_optimizer, parameter_groups
from finetune_lib.training.step import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.slow,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
LENGTH = 512


def llama_7b(layers: int = 32):
    from transformers import LlamaConfig

    return LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
                       vocab_size=32000)


def random_in_4bit(folder):
    """Written to the folder in bfloat16 (13.5 GB) and loaded in 4 bits, as a model from the hub would be."""
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    from finetune_lib.qlora.loading import load_base

    config = llama_7b()
    config.save_pretrained(folder)
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    weights = {name: torch.randn(value.shape, dtype=torch.bfloat16, device="cuda").mul_(0.02).cpu() if value.ndim == 2
               else torch.ones(value.shape, dtype=torch.bfloat16) for name, value in empty.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    del weights
    return load_base(folder, QuantizationConfig(compute_dtype="bfloat16"), dtype="bfloat16", device="cuda")


def peak_of_steps(model, count: int = 4) -> tuple[int, float]:
    """(peak allocated bytes, tokens a second after the first step) of training on one sequence of LENGTH tokens."""
    optimizer = make_optimizer(parameter_groups(model.train(), 1e-4, 0.0))
    ids = torch.randint(0, 32000, (1, LENGTH), device="cuda")
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    torch.cuda.reset_peak_memory_stats()
    for step in range(count + 1):
        if step == 1:
            torch.cuda.synchronize()
            began = time.perf_counter()
        train_step(model, optimizer, [batch], LENGTH)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), count * LENGTH / (time.perf_counter() - began)


def test_a_7b_llama_in_4_bits_trains_below_8_gib_as_the_estimate_says(tmp_path, record_property):
    model = prepare_for_training(random_in_4bit(tmp_path), gradient_checkpointing=True)
    model = attach_lora(model, LoRAConfig(r=16), backend="peft")
    peak, speed = peak_of_steps(model)
    record_property("peak_gib", peak / GIB)
    record_property("tokens_per_second", speed)
    print(f"7B, NF4 with double quantization, r 16, 1 x {LENGTH}: peak {peak / GIB:.2f} GiB, {speed:.0f} tokens/s")
    assert peak <= 8 * GIB
    asked = dict(batch=1, length=LENGTH, dtype="bfloat16", gradient_checkpointing=True)
    assert abs(estimate_memory(llama_7b(), "qlora", **asked).total / peak - 1) <= 0.10
    full = estimate_memory(llama_7b(), "full", **asked).total
    print(f"full fine-tuning, estimated: {full / GIB:.1f} GiB, saved {1 - peak / full:.0%}")
    assert peak <= 0.25 * full


@pytest.mark.parametrize("layers", [2, 4])
def test_full_fine_tuning_takes_what_the_estimate_says(layers):
    """What the saving above is counted from, at a depth whose full training fits the card."""
    from transformers import LlamaForCausalLM

    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(llama_7b(layers), dtype=torch.bfloat16)
    peak, _ = peak_of_steps(model, count=2)
    estimated = estimate_memory(llama_7b(layers), "full", batch=1, length=LENGTH, dtype="bfloat16").total
    assert abs(estimated / peak - 1) <= 0.10


def test_the_monitor_agrees_with_nvidia_smi_to_a_tenth():
    def used() -> int:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]) * MIB

    torch.zeros(1, device="cuda")  # the context stands from here on
    monitor, before = MemoryMonitor(), used() - torch.cuda.memory_reserved()
    with monitor.stage("load"):
        block = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda")
    assert block.is_cuda and abs(monitor.stages[-1].gpu_reserved / (used() - before) - 1) <= 0.10
