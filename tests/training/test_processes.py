"""Two processes on one machine take the steps of one, and resume like one."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune_lib.training.curves import read_records
from finetune_lib.training.loop import TrainingConfig, train

SETTINGS = dict(learning_rate=1e-2, max_steps=18, gradient_accumulation_steps=2, use_cpu=True, save_steps=9)
SCRIPT = '''
import importlib.util, sys, torch
from pathlib import Path
from finetune_lib.training.loop import TrainingConfig, train

spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
place = Path(sys.argv[2])
config = TrainingConfig(per_device_train_batch_size=2, **eval(sys.argv[3]))
stop = lambda kind, record: "stop" if kind == "step" and record.step == 5 else None
for name, dropout, callbacks in (("two", 0.0, []), ("whole", 0.3, []), ("resumed", 0.3, [stop]), ("resumed", 0.3, [])):
    train(tiny.make_model(hidden=16, layers=1, dropout=dropout), tiny.make_samples(21), config, 0,
          folder=place / name, callbacks=callbacks)
'''


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_resume_bit_for_bit(model, samples, tmp_path):
    """21 samples in micro-batches of 4: the last one of an epoch has a single sample, and one process gets none."""
    (tmp_path / "run.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "run.py"),
         str(Path(__file__).with_name("conftest.py")), str(tmp_path), repr(SETTINGS)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    one = model(hidden=16, layers=1)
    result = train(one, samples(21), TrainingConfig(per_device_train_batch_size=4, **SETTINGS), 0,
                   folder=tmp_path / "one")
    apart = [abs(record.loss - loss) for record, loss in zip(result.history, losses(tmp_path / "two"), strict=True)]
    assert max(apart) <= 1e-5
    ours, theirs = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) <= 1e-4
    assert losses(tmp_path / "whole") == losses(tmp_path / "resumed")
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "whole") != losses(tmp_path / "two")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "checkpoint-000018" / "trainable.safetensors")
