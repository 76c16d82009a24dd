"""Weights read file by file: the same bytes as loading all and packing then, and a fraction of its memory."""
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_lib.qlora.loading import (
    QuantizationConfig,
    find_config,
    from_safetensors,
    kept_in_float,
    layers_in_4bit,
    load_base,
    quantize_linears,
)
from finetune_lib.qlora.shards import by_shards, empty_model, places, shard_files, stored_shapes

from .conftest import KINDS, tiny_model

CPU = torch.device("cpu")


def sharded(kind, folder, **changed):
    """A folder that holds the model in several files."""
    tiny_model(kind, **changed).to(torch.float16).save_pretrained(folder, max_shard_size="50KB")
    return folder


def packed_at_the_end(folder, asked, dtype):
    """The obvious way: all in float, then layer by layer."""
    model = from_safetensors(folder, dtype, CPU)
    return quantize_linears(model, asked, kept_in_float(find_config(folder), asked), CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, asked", [
    (torch.float32, QuantizationConfig()), (torch.bfloat16, QuantizationConfig(double_quant=False)),
    (torch.float32, QuantizationConfig(quant_type="fp4", skip_modules=("model.layers.0", "transformer.h.1")))])
def test_file_by_file_gives_the_bytes_of_packing_at_the_end(tmp_path, kind, dtype, asked):
    folder = sharded(kind, tmp_path)
    assert len(shard_files(str(folder))) > 2
    ours, obvious = load_base(folder, asked, "own", dtype, CPU), packed_at_the_end(folder, asked, dtype)
    for parts in ("state_dict", "named_buffers"):
        got, expected = (dict(getattr(model, parts)()) for model in (ours, obvious))
        assert list(got) == list(expected)
        for name, tensor in expected.items():
            assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name
    assert ours.config.to_dict() == obvious.config.to_dict() and not ours.training
    assert ours.generation_config.to_dict() == obvious.generation_config.to_dict()


def test_a_layer_is_packed_before_the_next_file_is_opened(tmp_path):
    folder, packed, opened = sharded("qwen2", tmp_path), [], []

    def finished(model, path, module):
        packed.append(path)
        opened.append(sum(parameter.is_meta for parameter in model.parameters()))

    model = by_shards(str(folder), find_config(folder), torch.float32, finished)
    assert not any(parameter.is_meta for parameter in model.parameters())
    modules = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    assert sorted(packed) == sorted(modules)  # each once
    assert opened == sorted(opened, reverse=True) and opened[0] > opened[len(opened) // 2] > opened[-1] == 0


def test_names_without_the_model_s_prefix_are_read_as_gpt2_is_published(tmp_path, ids):
    tiny_model("gpt2").save_pretrained(tmp_path)
    expected = load_base(tmp_path, QuantizationConfig(), "own")(input_ids=ids).logits
    weights = load_file(tmp_path / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    short["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # a mask that old files hold
    save_file(short, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = empty_model(find_config(tmp_path), torch.float32)
    assert places(model, stored_shapes(shard_files(str(tmp_path))), torch.float32)
    assert torch.equal(load_base(tmp_path, QuantizationConfig(), "own")(input_ids=ids).logits, expected)


def test_experts_that_lie_in_other_pieces_than_in_the_model_are_loaded_by_transformers(tmp_path, ids):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                           num_attention_heads=4, num_key_value_heads=2, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    model = empty_model(config, torch.float32)
    assert places(model, stored_shapes(shard_files(str(tmp_path))), torch.float32) is None
    ours = load_base(tmp_path, QuantizationConfig(), "own")
    assert len(layers_in_4bit(ours)) >= 8
    obvious = packed_at_the_end(tmp_path, QuantizationConfig(), torch.float32)
    assert torch.equal(ours(input_ids=ids).logits, obvious(input_ids=ids).logits)


def test_a_file_of_another_shape_is_not_filled_in(tmp_path):
    folder = sharded("qwen2", tmp_path)
    shapes = stored_shapes(shard_files(str(folder)))
    model = empty_model(find_config(folder), torch.float32)
    assert places(model, shapes, torch.float32)
    assert places(model, shapes | {"model.norm.weight": (63,)}, torch.float32) is None
    assert places(model, {name: shape for name, shape in shapes.items() if "norm" not in name}, torch.float32) is None


MEASURE = """
import json, sys, torch
from pathlib import Path
from finetune_lib.qlora.loading import *
from finetune_lib.qlora.memory import give_back, highest, resident, sampled

def private():
    "Bytes that are this process's own: what is mapped from a file the system can have back at any time."
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

folder, cpu, asked = sys.argv[1], torch.device("cpu"), QuantizationConfig()
eight = QuantizationConfig(load_in_4bit=False, load_in_8bit=True)
ways = {
    "own": lambda name: load_base(name, asked, "own", device=cpu),
    "obvious": lambda name: quantize_linears(from_safetensors(name, torch.float32, cpu), asked, ("lm_head",), cpu),
    "four": lambda name: load_base(name, asked, device=cpu), "eight": lambda name: load_base(name, eight, device=cpu)}
peaks = {}
for way, load in ways.items():
    load(folder + "/tiny")
    give_back(collect=True)
    before, own = resident(), private()
    with highest() as top, sampled(private) as seen:
        model = load(folder + "/large")
    give_back(collect=True)
    peaks[way] = [top[0] - before, resident() - before, max(seen) - own]
    del model
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_the_peak_is_the_packed_model_and_one_file(tmp_path):
    """40 million weights in files of 10 MB; in float32 they are 160 MB, and in four bits a seventh of that."""
    large = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8, "num_attention_heads": 10}
    for name, shape in (("large", large), ("tiny", {})):
        model = tiny_model("qwen2", **{"num_key_value_heads": 2, **shape}).half()
        model.save_pretrained(tmp_path / name, max_shard_size="10MB")
    files = shard_files(str(tmp_path / "large"))
    assert len(files) >= 8
    settings = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    child = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], env=settings, text=True,
                           capture_output=True)
    assert child.returncode == 0, child.stderr[-500:]
    peaks = json.loads(child.stdout.splitlines()[-1])
    in_float = 4 * sum(torch.Size(shape).numel() for shape in stored_shapes(files).values())
    assert peaks["obvious"][0] > in_float
    sizes = [file.stat().st_size for file in files]
    largest = max(sizes)
    widest = 4 * 640 * 1728
    # transformers keeps all files mapped to the end; ours packs a layer in Python: its float copies, distances, codes
    for way, mapped, layers in (("own", largest, 12), ("four", sum(sizes), 3), ("eight", sum(sizes), 3)):
        peak, packed, private = peaks[way]
        assert private <= packed + largest + layers * widest, (way, peaks)
        assert peak <= packed + mapped + 12 * widest, (way, peaks)
        assert peak < 0.65 * peaks["obvious"][0]
    assert peaks["own"][0] < 0.4 * peaks["obvious"][0]


def mapped(folder) -> bool:
    """Whether a file of the folder is part of this process's memory."""
    return str(folder) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process which files it has mapped")
@pytest.mark.parametrize("backend, asked", [
    ("own", QuantizationConfig()), ("bitsandbytes", QuantizationConfig()),
    ("bitsandbytes", QuantizationConfig(load_in_4bit=False, load_in_8bit=True))])
def test_a_packed_model_gives_its_float_files_back(tmp_path, ids, backend, asked):
    """A norm that needs no cast is handed out as a view of its whole file."""
    tiny_model("qwen2").save_pretrained(tmp_path)  # float32, as it is loaded
    plain = from_safetensors(tmp_path, torch.float32, CPU)
    assert mapped(tmp_path), "nothing to mend any more: unmapped can go"
    del plain
    gc.collect()
    model = load_base(tmp_path, asked, backend, device=CPU)
    gc.collect()
    assert not mapped(tmp_path) and model(input_ids=ids).logits.isfinite().all()
