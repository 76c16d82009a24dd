"""Loading in four bits: both back ends, the guard, what is refused, and the way back."""
import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from finetune_lib.core import ConfigError
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.qlora import loading
from finetune_lib.qlora.loading import (
    QuantizationConfig,
    dequantized,
    guard_bitsandbytes,
    import_bitsandbytes,
    layers_in_4bit,
    layers_in_8bit,
    load_base,
    prepare_for_training,
)
from finetune_lib.qlora.nf4 import NF4Linear, quantize
from finetune_lib.qlora.versions import installed

from .conftest import KINDS, tiny_model

functional = import_bitsandbytes().functional
FAULTY = bool(functional.has_avx512bf16())
FOUR_BITS = QuantizationConfig()


def gradient(model, ids):
    inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
    model.train()(inputs_embeds=inputs, labels=ids).loss.backward()
    return inputs.grad


def evaluate(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def unguarded(folder):
    """What transformers alone loads."""
    return loading.from_safetensors(folder, torch.float32, torch.device("cpu"),
                                    quantization_config=FOUR_BITS.to_bitsandbytes())


@pytest.mark.parametrize("kind", KINDS)
def test_both_back_ends_quantize_the_same_layers_to_the_same_logits_and_gradients(folders, ids, kind):
    theirs, ours = load_base(folders[kind], FOUR_BITS), load_base(folders[kind], FOUR_BITS, backend="own")
    assert set(layers_in_4bit(theirs)) == set(layers_in_4bit(ours))
    assert torch.equal(evaluate(theirs, ids), evaluate(ours, ids))
    assert torch.equal(gradient(theirs, ids), gradient(ours, ids))
    assert not torch.equal(evaluate(ours, ids), evaluate(load_base(folders[kind]), ids))


@pytest.mark.parametrize("kind", KINDS)
def test_head_and_embeddings_stay_in_float(folders, kind):
    model = load_base(folders[kind], FOUR_BITS, backend="own")
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not any("lm_head" in name for name in layers_in_4bit(model))


def test_a_model_in_full_is_float32_frozen_nowhere_and_in_eval(folders):
    model = load_base(folders["llama"])
    assert not model.training and not layers_in_4bit(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_gradients_are_equal_before_and_after_an_evaluation(folders, ids):
    model = load_base(folders["llama"], FOUR_BITS)
    before = gradient(model, ids)
    evaluate(model, ids)
    assert torch.equal(gradient(model, ids), before)


def test_a_merge_after_an_evaluation_is_the_merge_before_it(folders, ids):
    model = load_base(folders["llama"], FOUR_BITS)
    before = dequantized(model).state_dict()
    evaluate(model, ids)
    after = dequantized(model).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.skipif(not FAULTY, reason="this CPU has no AVX512-BF16: bitsandbytes does not repack its weights here")
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")
def test_without_the_guard_an_evaluation_ruins_the_gradients(folders, ids):
    model = unguarded(folders["llama"])
    before = gradient(model, ids)
    evaluate(model, ids)
    after = gradient(model, ids)
    assert torch.cosine_similarity(before.flatten(), after.flatten(), dim=0) < 0.95
    with pytest.raises(ConfigError, match="must be called before the first evaluation"):
        guard_bitsandbytes(model)


def test_rows_that_are_not_whole_blocks_are_right_or_refused(tmp_path, ids):
    tiny_model("llama", hidden_size=48, intermediate_size=96).save_pretrained(tmp_path)
    weight = torch.randn(64, 48)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    sound = torch.allclose(functional.dequantize_4bit(packed, state), quantize(weight).dequantize())
    if sound:
        theirs = load_base(tmp_path, FOUR_BITS)
        assert torch.equal(evaluate(theirs, ids), evaluate(load_base(tmp_path, FOUR_BITS, "own"), ids))
    else:
        with pytest.raises(ConfigError, match="must unpack .* set backend='own'"):
            load_base(tmp_path, FOUR_BITS)
        assert evaluate(load_base(tmp_path, FOUR_BITS, backend="own"), ids).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["bitsandbytes", "own"])
def test_the_dequantized_model_answers_alike_and_survives_saving(folders, ids, tmp_path, kind, backend):
    model = load_base(folders[kind], FOUR_BITS, backend)
    plain = dequantized(model)
    assert layers_in_4bit(model) and not layers_in_4bit(plain)
    plain.save_pretrained(tmp_path)
    assert torch.equal(evaluate(load_base(tmp_path), ids), evaluate(model, ids))


@pytest.mark.parametrize("backend, layer", [("bitsandbytes", "Linear4bit"), ("own", "NF4Linear")])
def test_a_checkpoint_in_four_bits_is_not_quantized_again(folders, ids, tmp_path, backend, layer):
    first = load_base(folders["llama"], FOUR_BITS)
    first.save_pretrained(tmp_path)
    for asked in (None, FOUR_BITS):
        model = load_base(tmp_path, asked, backend)
        assert {type(module).__name__ for module in layers_in_4bit(model).values()} == {layer}
        assert torch.equal(evaluate(model, ids), evaluate(first, ids))
    with pytest.raises(ConfigError, match="in nf4 already and is not quantized again to fp4"):
        load_base(tmp_path, QuantizationConfig(quant_type="fp4"))


def test_folders_that_cannot_be_loaded_say_why(folders, tmp_path):
    with pytest.raises(ConfigError, match="does not exist.*did you mean '" + folders["llama"].name):
        load_base(folders["llama"].parent / (folders["llama"].name + "x"))
    with pytest.raises(ConfigError, match="must hold config.json"):
        load_base(tmp_path)
    shutil.copy(folders["llama"] / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="must be in safetensors, got none"):
        load_base(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ConfigError, match=r"only pickles \(pytorch_model.bin\)"):
        load_base(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folders["llama"] / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="no weights could be loaded"):
        load_base(tmp_path)


STARVED = """
import resource, sys
import psutil, torch
from finetune_lib.core import is_out_of_memory
from finetune_lib.qlora.loading import QuantizationConfig, load_base

little, large, cpu = *sys.argv[1:], torch.device("cpu")
ways = {"in full": (), "packed": (QuantizationConfig(), "own")}
for way in ways.values():  # what is imported while loading is there from now on
    load_base(little, *way, device=cpu)
for mib in (1, 30, 45, 2000):
    limit = psutil.Process().memory_info().vms + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for name, way in ways.items():
        try:
            load_base(large, *way, device=cpu)
            print(mib, name, "loaded")
        except Exception as error:
            print(mib, name, "memory" if is_out_of_memory(error) else repr(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is held by Linux")
def test_memory_that_does_not_suffice_is_not_taken_for_broken_files(folders, tmp_path):
    tiny_model("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=4).half().save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", STARVED, folders["llama"], tmp_path], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    ways = ("in full", "packed")
    assert done.stdout.splitlines() == [*(f"{mib} {way} memory" for mib in (1, 30, 45) for way in ways),
                                        *(f"2000 {way} loaded" for way in ways)]


def test_a_missing_weight_is_refused_and_never_left_random(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copy(folders["qwen2"] / "config.json", tmp_path)
    weights = load_file(folders["qwen2"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="must hold every parameter, got none for model.layers.1.mlp.up_proj.weight"):
        load_base(tmp_path)


@pytest.mark.parametrize("settings, message", [
    ({"backend": "bnb"}, "backend must be"), ({"dtype": "fp32"}, "unknown dtype 'fp32'"),
    ({"quantization": QuantizationConfig(compute_dtype="float16")}, "float16 needs a GPU"),
])
def test_settings_that_cannot_work_here_are_refused(folders, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_base(folders["llama"], device="cpu", **settings)


def test_the_configuration_survives_the_way_through_transformers():
    config = QuantizationConfig(quant_type="fp4", compute_dtype="bfloat16", double_quant=False, skip_modules=("a", "b"))
    assert QuantizationConfig.from_bitsandbytes(config.to_bitsandbytes("cpu")) == config
    with pytest.raises(ValueError):
        QuantizationConfig(bits=4)


@pytest.mark.parametrize("quantization", [None, FOUR_BITS])
def test_a_prepared_model_is_frozen_with_norms_in_float32(folders, quantization):
    model = load_base(folders["llama"], quantization, dtype="bfloat16")
    prepare_for_training(model, gradient_checkpointing=True)
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if "norm" in name)
    assert model.is_gradient_checkpointing and model.config.use_cache is False


def test_float16_overflows_on_a_planted_outlier_and_bfloat16_does_not():
    x, w = torch.full((1, 64), 40.0), torch.full((1, 64), 24.0)
    x[0, 0] = 3000
    assert not (x.half() @ w.half().T).isfinite().all() and (x.bfloat16() @ w.bfloat16().T).isfinite().all()


def test_our_layers_are_copied_and_moved_like_any_other(folders, ids):
    model = load_base(folders["gpt2"], FOUR_BITS, backend="own")
    twin = copy.deepcopy(model).to("cpu")
    assert torch.equal(evaluate(twin, ids), evaluate(model, ids))
    assert all(isinstance(layer, NF4Linear) for layer in layers_in_4bit(twin).values())


def test_the_table_of_what_is_installed_names_each_library():
    names = {row[0]: row for row in installed().rows}
    assert {"torch", "transformers", "peft", "bitsandbytes", "bfloat16", "4-bit kernels"} <= set(names)
    assert names["flash attention"][2] == (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))
    assert names["flash attention"][2] or names["flash attention"][3]


# ---- the guard, whatever comes after an evaluation ---------------------------------------------------------------


@pytest.mark.parametrize("backend", ["bitsandbytes", "own"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_after_an_evaluation_is_the_one_saved_before_it(folders, ids, tmp_path, kind, backend):
    model = load_base(folders[kind], FOUR_BITS, backend)
    plain = dequantized(model).state_dict()
    logits = evaluate(model, ids)
    dequantized(model).save_pretrained(tmp_path / "plain")
    again = load_base(tmp_path / "plain")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in again.state_dict().items() if name in plain)
    if backend == "bitsandbytes":
        model.save_pretrained(tmp_path / "packed")
        assert torch.equal(evaluate(load_base(tmp_path / "packed", FOUR_BITS), ids), logits)


@pytest.mark.parametrize("width", [48, 80, 112])
def test_shapes_that_are_no_multiple_of_64_train_and_merge_right_after_an_evaluation(tmp_path, ids, width):
    tiny_model("llama", hidden_size=width, intermediate_size=2 * width).save_pretrained(tmp_path)
    model = load_base(tmp_path, FOUR_BITS, backend="own")
    before, merged = gradient(model, ids), dequantized(model).state_dict()
    logits = evaluate(model, ids)
    assert torch.equal(gradient(model, ids), before) and torch.equal(evaluate(model, ids), logits)
    after = dequantized(model)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in after.state_dict().items())
    assert torch.equal(evaluate(after, ids), logits)


@pytest.mark.skipif(not FAULTY, reason="this CPU has no AVX512-BF16: bitsandbytes does not repack its weights here")
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")
def test_without_the_guard_an_evaluation_leaves_weights_that_cannot_be_merged(folders, ids):
    model = unguarded(folders["llama"])
    before = dequantized(load_base(folders["llama"], FOUR_BITS)).state_dict()
    evaluate(model, ids)
    with pytest.raises(ConfigError, match="repacked already; load the model again"):
        dequantized(model)
    layer = model.model.layers[0].mlp.down_proj
    unpacked = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert not torch.equal(unpacked.flatten()[:64], before["model.layers.0.mlp.down_proj.weight"].flatten()[:64])


# ---- eight bits, and how codes lie -------------------------------------------------------------------------------

EIGHT_BITS = QuantizationConfig(load_in_4bit=False, load_in_8bit=True)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_eight_bits_are_nearer_to_the_full_model_than_four(folders, ids, kind):
    full = evaluate(load_base(folders[kind]), ids)
    eight, four = (load_base(folders[kind], config) for config in (EIGHT_BITS, FOUR_BITS))
    assert len(layers_in_8bit(eight)) == len(layers_in_4bit(four)) and not layers_in_4bit(eight)
    assert {layer.weight.dtype for layer in layers_in_8bit(eight).values()} == {torch.int8}
    error = {name: (evaluate(model, ids) - full).norm() for name, model in (("8", eight), ("4", four))}
    assert 0 < error["8"] < 0.3 * error["4"]


def test_an_adapter_trains_on_eight_bits_and_its_base_can_be_had_in_float(folders, ids, tmp_path):
    model = attach_lora(prepare_for_training(load_base(folders["llama"], EIGHT_BITS)), LoRAConfig(r=2))
    before = evaluate(model, ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(learning) == 28 and all(parameter.grad is not None for parameter in learning)
    plain = dequantized(load_base(folders["llama"], EIGHT_BITS))
    assert not layers_in_8bit(plain)
    plain.save_pretrained(tmp_path)  # activations in float, not in 8 bits: near, not equal
    assert (evaluate(load_base(tmp_path), ids) - before).norm() < 0.02 * before.norm()


def test_the_kernel_of_eight_bits_is_fed_float32_because_small_gradients_vanish_in_float16(folders):
    """Why its log line on other types than float16 is not ended by a cast."""
    layer = next(iter(layers_in_8bit(load_base(folders["llama"], EIGHT_BITS)).values()))
    x, y = (torch.randn(4, layer.in_features, requires_grad=True) for _ in range(2))
    (layer(x).sum() * 1e-9).backward()
    (layer(y.half()).float().sum() * 1e-9).backward()
    assert x.grad.abs().min() > 0 and not y.grad.any()


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "float32"])
def test_quant_storage_changes_how_codes_lie_and_no_number(folders, ids, storage):
    model = load_base(folders["llama"], QuantizationConfig(quant_storage=storage))
    assert {layer.weight.dtype for layer in layers_in_4bit(model).values()} == {getattr(torch, storage)}
    usual = load_base(folders["llama"], FOUR_BITS)
    assert torch.equal(evaluate(model, ids), evaluate(usual, ids))
    assert torch.equal(gradient(model, ids), gradient(usual, ids))
    assert torch.equal(evaluate(dequantized(model), ids), evaluate(usual, ids))


@pytest.mark.parametrize("config", [EIGHT_BITS, QuantizationConfig(quant_storage="bfloat16"), FOUR_BITS])
def test_every_width_and_storage_survives_the_way_through_transformers(config):
    there = config.to_bitsandbytes("cpu")
    assert QuantizationConfig.from_bitsandbytes(there) == config.model_copy(update={"compute_dtype": "float32"})
