"""`finetune targets MODEL` prints what is found, and how peft's own default differs."""
import pytest
from transformers import AutoConfig

from finetune_lib.pipeline.command import main

from .test_targets import ARCHITECTURES

CAUSAL = [kind for kind in ARCHITECTURES if kind not in ("t5", "bert")]


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_table_names_every_layer_with_its_role_and_peft_s_default(kind, tmp_path, capsys):
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as MAPPING

    AutoConfig.for_model(kind, **ARCHITECTURES[kind][0]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # the command asks for a folder that could be loaded, and reads no weight
    assert main(["targets", str(tmp_path), "--rank", "2"]) == 0
    head, *lines, total, verdict = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert "in peft's default" in head and total.startswith("all ")
    _, attention, mlp = ARCHITECTURES[kind]
    for name in (*attention, *(mlp or [])):
        roles = set(rows[name.rpartition(".")[2]][0].split("/"))
        inside = {"q", "k", "v", "qkv", "o"}
        assert roles & inside if name in attention else roles - inside, (name, roles)
    theirs = {name for name in MAPPING.get(kind, []) if name in rows}
    assert {name for name, row in rows.items() if row[-1] == "yes"} == theirs
    if not theirs:
        assert verdict.startswith(f"peft has no default for {kind}")
    elif kind == "phi":
        assert verdict.startswith("peft's default for phi adds fc1, fc2")
    else:
        assert verdict.startswith(f"peft's default for {kind} is ours")
