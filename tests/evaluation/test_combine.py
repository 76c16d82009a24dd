"""Weighted, partial, undone and streamed merges give the weights that the formula says."""
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_lib.core import ExportError
from finetune_lib.evaluation.combine import merge_shards, merge_weighted, table, unmerge, updates_of
from finetune_lib.evaluation.merge import behavior, merge_adapter, verify_merge
from finetune_lib.lora.adapter import load_adapter, save_adapter
from finetune_lib.qlora.loading import load_base


@pytest.fixture
def adapters(make_model, adapt, tmp_path):
    """adapters("llama", {}, {"r": 2}): one adapter folder for each set of fields."""
    def make(kind: str = "llama", *fields: dict):
        folders = []
        for number, one in enumerate(fields or ({}, {})):
            folders.append(tmp_path / f"adapter-{number}")
            save_adapter(adapt(make_model(kind), seed=number, **one), folders[-1])
        return folders
    return make


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_weighted_merge_is_the_base_and_the_weighted_sum_of_updates(kind, make_model, adapters):
    one, two = adapters(kind, {"r": 4}, {"r": 2, "lora_alpha": 3})
    merged, base = merge_weighted(make_model(kind), {one: 0.3, two: -0.5}).state_dict(), make_model(kind).state_dict()
    for name in base:
        wanted = base[name].double()
        for folder, weight in ((one, 0.3), (two, -0.5)):
            if name in updates_of(folder):
                A, B, scale = updates_of(folder)[name]
                update = weight * scale * (B.double() @ A.double())
                wanted = wanted + (update.T if kind == "gpt2" else update)
        assert (merged[name] - wanted).abs().max() < 1e-6


def test_it_is_the_weighted_adapter_of_peft(make_model, adapters):
    from peft import PeftModel

    one, two = adapters()
    theirs = PeftModel.from_pretrained(make_model(), one, adapter_name="one")
    theirs.load_adapter(two, adapter_name="two")
    theirs.add_weighted_adapter(["one", "two"], [0.3, 0.6], "mix", combination_type="cat")
    theirs.set_adapter("mix")
    wanted = theirs.merge_and_unload().state_dict()
    ours = merge_weighted(make_model(), {one: 0.3, two: 0.6}).state_dict()
    assert all(torch.allclose(ours[name], wanted[name], atol=1e-6) for name in ours)


def test_weight_0_is_the_base_and_weight_1_the_adapter(make_model, adapters):
    one, _ = adapters()
    none, whole = (merge_weighted(make_model(), {one: weight}).state_dict() for weight in (0.0, 1.0))
    plain, base = merge_adapter(load_adapter(make_model(), one)).state_dict(), make_model().state_dict()
    assert all(torch.equal(none[name], base[name]) and torch.equal(whole[name], plain[name]) for name in base)


def test_only_the_named_layers_change(make_model, adapters):
    one, _ = adapters()
    merged, base = merge_weighted(make_model(), {one: 1.0}, r"\.1\..*q_proj").state_dict(), make_model().state_dict()
    assert [name for name in base if not torch.equal(merged[name], base[name])] == [
        "model.layers.1.self_attn.q_proj.weight"]
    with pytest.raises(ExportError, match="'nothing' must name adapted layers"):
        merge_weighted(make_model(), {one: 1.0}, "nothing")


@pytest.mark.parametrize("adapters_of", [{}, {"somewhere": float("nan")}])
def test_no_adapter_or_a_strange_weight_is_refused(adapters_of, make_model):
    with pytest.raises(ExportError, match="finite weights"):
        merge_weighted(make_model(), adapters_of)


def test_a_second_adapter_of_another_base_is_refused_before_the_first_is_merged(make_model, adapt, adapters, tmp_path):
    one, _ = adapters()
    save_adapter(adapt(make_model(seed=9)), tmp_path / "foreign")
    model = make_model()
    with pytest.raises(ExportError, match="must be of this base"):
        merge_weighted(model, {one: 1.0, tmp_path / "foreign": 1.0})
    assert all(torch.equal(weight, make_model().state_dict()[name]) for name, weight in model.state_dict().items())


def test_layers_trained_in_full_have_no_weight(make_model, adapters):
    [one] = adapters("llama", {"modules_to_save": ["embed_tokens", "lm_head"]})
    with pytest.raises(ExportError, match="merge it alone"):
        merge_weighted(make_model(), {one: 0.5})


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_unmerging_gives_the_base_back_bit_for_bit(kind, make_model, adapt):
    kept = make_model(kind).state_dict()
    back = unmerge(merge_adapter(adapt(make_model(kind))), kept).state_dict()
    assert all(torch.equal(back[name], kept[name]) for name in kept)


def test_unmerging_from_a_file_works_and_from_another_model_is_refused(make_model, adapt, base_folder):
    kept = load_file(base_folder("llama") / "model.safetensors")
    back = unmerge(merge_adapter(adapt(make_model())), kept)
    assert all(torch.equal(weight, make_model().state_dict()[name]) for name, weight in back.state_dict().items())
    del kept["model.norm.weight"]
    with pytest.raises(ExportError, match="none that fits model.norm.weight"):
        unmerge(back, kept)


@pytest.fixture
def sharded(make_model, tokenizer, tmp_path):
    """sharded("llama", dtype): a base in many files."""
    def save(kind: str = "llama", dtype: torch.dtype = torch.float32, size: str = "60KB"):
        make_model(kind).to(dtype).save_pretrained(tmp_path / "base", max_shard_size=size)
        tokenizer.save_pretrained(tmp_path / "base")
        return tmp_path / "base"
    return save


@pytest.mark.parametrize("kind, fields, dtype", [
    ("llama", {}, torch.float32), ("llama", {"use_rslora": True, "r": 8}, torch.bfloat16), ("gpt2", {}, torch.float32),
    ("qwen2", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3.0}}, torch.float16)])
def test_a_streamed_merge_has_the_bits_of_a_merge_in_memory(kind, fields, dtype, sharded, adapt, tmp_path):
    base = sharded(kind, dtype)
    assert len(list(base.glob("*.safetensors"))) > 3
    save_adapter(adapt(load_base(base, dtype=dtype, device="cpu"), **fields), tmp_path / "adapter")
    adapted = load_adapter(load_base(base, dtype=dtype, device="cpu"), tmp_path / "adapter")
    names = merge_shards(base, tmp_path / "adapter", tmp_path / "out")
    wanted = merge_adapter(adapted).state_dict()
    got = load_base(tmp_path / "out", dtype=dtype, device="cpu").state_dict()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert set(names) == set(updates_of(tmp_path / "adapter")) <= set(wanted)
    there, before = ({path.name for path in folder.iterdir()} for folder in (tmp_path / "out", base))
    assert there == before | {"merge.json"}


def test_a_streamed_merge_answers_like_the_adapter(sharded, adapt, prompts, tmp_path):
    base = sharded()
    adapted = adapt(load_base(base, device="cpu"))
    save_adapter(adapted, tmp_path / "adapter")
    merge_shards(base, tmp_path / "adapter", tmp_path / "out")
    assert verify_merge(load_base(tmp_path / "out", device="cpu"), behavior(adapted, prompts[:4])).passed
    with pytest.raises(ExportError, match="already"):
        merge_shards(tmp_path / "out", tmp_path / "adapter", tmp_path / "again")


def test_a_streamed_merge_that_cannot_be_done_leaves_nothing_behind(sharded, adapt, tmp_path):
    base = sharded()
    save_adapter(adapt(load_base(base, device="cpu")), tmp_path / "adapter")
    file, before = tmp_path / "adapter" / "adapter_model.safetensors", {path.name for path in tmp_path.iterdir()}
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    for spoiled, message in (({**tensors, name: tensors[name] * float("inf")}, "NaN or infinity"),
                             ({**tensors, "base_model.model.lm_head.bias": torch.ones(3)}, "takes plain LoRA"),
                             ({key.replace("layers.1", "layers.7"): one for key, one in tensors.items()},
                              "none for model.layers.7")):
        save_file(spoiled, file)
        with pytest.raises(ExportError, match=message):
            merge_shards(base, tmp_path / "adapter", tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == before


MEASURE = """
import sys
from pathlib import Path
import finetune_lib.evaluation.combine as combine, peft
combine.merge_shards(*sys.argv[1:3], sys.argv[3] + "-first")  # loads what is loaded late, before the peak is set back
Path("/proc/self/clear_refs").write_text("5")
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
combine.merge_shards(*sys.argv[1:4])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_streamed_merge_holds_less_than_a_shard_and_a_tenth(make_model, adapt, tmp_path):
    model = make_model(hidden_size=1024, intermediate_size=1024, num_hidden_layers=4)
    model.save_pretrained(tmp_path / "base", max_shard_size="30MB")
    save_adapter(adapt(model), tmp_path / "adapter")
    sizes = [path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors")]
    ran = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "base", tmp_path / "adapter", tmp_path / "out"],
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 1.1 * max(sizes) < 0.5 * sum(sizes)


def test_the_table_of_a_file_is_where_its_tensors_lie(sharded):
    for path in sharded().glob("*.safetensors"):
        tensors, content = load_file(path), path.read_bytes()
        for name, (kind, shape, start, end) in table(path).items():
            assert kind == "F32" and list(tensors[name].shape) == shape
            assert content[start:end] == tensors[name].numpy().tobytes()
    assert json.loads((path.parent / "model.safetensors.index.json").read_text())["weight_map"][name] == path.name
