"""By the launcher's configurations: two processes, each with a part of the model, take the steps of one."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from finetune_lib.core import ConfigError, data_folder
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.training.checkpoints import load_checkpoint
from finetune_lib.training.curves import read_records
from finetune_lib.training.loop import TrainingConfig, train

CONFIGS = data_folder() / "configs" / "accelerate"
SETTINGS = dict(learning_rate=1e-2, max_steps=12, gradient_accumulation_steps=2, use_cpu=True, save_steps=6,
                weight_decay=0.1, eval_steps=6, load_best_model_at_end=True, logging_steps=1)
SCRIPT = '''
import importlib.util, sys
from pathlib import Path
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.training.loop import TrainingConfig, train

spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
config = TrainingConfig(per_device_train_batch_size=2, **eval(sys.argv[3]))
stop = lambda kind, record: "stop" if kind == "step" and record.step == 5 else None
for name, callbacks in (("full", []), ("own", []), ("peft", []), ("stopped", [stop]), ("stopped", [])):
    model = tiny.make_model(hidden=16, layers=2)
    if name != "full":
        model = attach_lora(model, LoRAConfig(r=2, lora_dropout=0.0), backend="peft" if name == "peft" else "own")
    train(model, tiny.make_samples(21), config, 0, eval_samples=tiny.make_samples(6, 1),
          folder=Path(sys.argv[2]) / name, callbacks=callbacks)
    assert all(hasattr(weight, "full_tensor") for weight in model.parameters()), "a weight is not in parts"
'''


def built(model, kind: str):
    """The model that the script trains under this name."""
    tiny = model(hidden=16, layers=2)
    return tiny if kind == "full" else attach_lora(tiny, LoRAConfig(r=2, lora_dropout=0.0), backend=kind)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The script's runs under `accelerate launch` with FSDP, by two processes on the CPU."""
    place = tmp_path_factory.mktemp("sharded")
    (place / "run.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp.yaml"),
         "--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0", str(place / "run.py"),
         str(Path(__file__).with_name("conftest.py")), str(place), repr(SETTINGS)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "own", "peft"])
def test_parts_of_a_model_take_the_steps_of_the_whole(kind, sharded, model, samples, tmp_path):
    """21 samples in micro-batches of 4: in the last one of an epoch, one process has no sample."""
    alone = built(model, kind)
    one = train(alone, samples(21), TrainingConfig(per_device_train_batch_size=4, **SETTINGS), 0,
                eval_samples=samples(6, 1), folder=tmp_path)
    apart = [abs(record.loss - loss) for record, loss in zip(one.history, losses(sharded / kind), strict=True)]
    assert max(apart) <= 1e-5
    told = read_records(sharded / kind / "metrics.jsonl")[-1]["layer_norms"]
    assert told == pytest.approx(one.history[-1].layer_norms, abs=1e-4)
    names = {path.name for path in (tmp_path / "checkpoint-000012").glob("*.safetensors")}
    assert names == {path.name for path in (sharded / kind / "checkpoint-000012").glob("*.safetensors")}
    for name in names:  # weights and the optimizer's memory: whole, as one process writes them
        ours, theirs = (load_file(folder / "checkpoint-000012" / name) for folder in (tmp_path, sharded / kind))
        assert max((ours[key] - theirs[key]).abs().max() for key in ours) <= 1e-4


@pytest.mark.slow
def test_what_parts_have_saved_is_used_by_one_process(sharded, model):
    alone = built(model, "own")
    before = [weight.detach().clone() for weight in alone.parameters() if weight.requires_grad]
    load_checkpoint(sharded / "peft" / "checkpoint-000012", alone)
    after = [weight for weight in alone.parameters() if weight.requires_grad]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.slow
def test_a_run_in_parts_resumes_bit_for_bit(sharded):
    assert losses(sharded / "stopped") == losses(sharded / "own")
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        whole, resumed = (load_file(sharded / kind / "checkpoint-000012" / name) for kind in ("own", "stopped"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


ENGINE = '''
import importlib.util, json, sys, torch, torch.distributed as dist, deepspeed
from finetune_lib.data.batches import collate
from finetune_lib.training.schedule import Windows, count_targets, learning_rate_at
from finetune_lib.training.step import target_loss

spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
dist.init_process_group("gloo")
deepspeed.init_distributed(dist_backend="gloo")
rank, given = dist.get_rank(), json.loads(sys.argv[3])
model, windows, losses = tiny.make_model(hidden=16, layers=2).train(), Windows(tiny.make_samples(20), 4, 2, 42), []
engine, optimizer, _, _ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0),
    config={"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
            "gradient_clipping": given["gradient_clipping"], "zero_optimization": {"stage": given["zero_stage"]}})
for step in range(12):
    parts, loss = windows.at(step), torch.zeros(())
    targets = sum(count_targets(sample.labels) for part in parts for sample in part) / 2
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, 12, peak=1e-2)
    for number, part in enumerate(parts):
        share = target_loss(engine, collate(part[rank::2], 0)) / targets
        engine.set_gradient_accumulation_boundary(number == len(parts) - 1)
        engine.backward(share)
        loss = loss + share.detach() / 2
    engine.step()
    dist.all_reduce(loss)
    losses.append(loss.item())
if rank == 0:
    open(sys.argv[2], "w").write(json.dumps(losses))
'''


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install deepspeed")
def test_a_loop_around_deepspeeds_engine_takes_the_steps_of_train(model, samples, tmp_path):
    (tmp_path / "run.py").write_text(ENGINE)
    given = yaml.safe_load((CONFIGS / "deepspeed.yaml").read_text())["deepspeed_config"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "run.py"),
         str(Path(__file__).with_name("conftest.py")), str(tmp_path / "losses.json"), json.dumps(given)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})
    assert done.returncode == 0, done.stderr[-3000:]
    config = TrainingConfig(learning_rate=1e-2, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                            max_steps=12, use_cpu=True)
    ours = train(model(hidden=16, layers=2), samples(20), config, 0)
    assert [record.loss for record in ours.history] == pytest.approx(
        json.loads((tmp_path / "losses.json").read_text()), abs=1e-5)


def test_under_deepspeed_train_says_no_and_what_to_take(model, samples, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="DeepSpeed's engine.*fsdp.yaml"):
        train(model(), samples(8), TrainingConfig(), 0)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_accelerate_knows_every_word_of_a_configuration(name):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    read = load_config_from_file(str(CONFIGS / name))
    assert read.distributed_type.value in ("FSDP", "DEEPSPEED") and read.num_processes == 8
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        given = yaml.safe_load((CONFIGS / name).read_text()).get(section, {})
        assert set(given) <= known, f"{set(given) - known} is no argument of accelerate launch"
