"""One tuned model, exported in every format; what was measured is kept in runs/export/report.json."""
from dataclasses import asdict
from pathlib import Path

import pytest

from finetune_lib.core import base_model, data_folder, load_tokenizer, machine, seed_everything, write_json

ROOT = Path(__file__).parents[2]
FORMATS = ["gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx", "onnx-int8"]


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(base_model())


@pytest.fixture(scope="session")
def questions():
    from finetune_lib.data.records import load_conversations

    return load_conversations(data_folder() / "instructions" / "test.jsonl")[0][:120]


@pytest.fixture(scope="session")
def held_out(questions, tokenizer):
    """(samples to measure perplexity on, prompts to answer)."""
    from finetune_lib.data.chat import prompt_ids, tokenize_all

    samples, problems = tokenize_all(questions, tokenizer)
    assert not problems
    return samples, [prompt_ids(question, tokenizer)[0] for question in questions[:40]]


@pytest.fixture(scope="session")
def source(tokenizer, tmp_path_factory) -> Path:
    """The Hugging Face folder of a model tuned for a moment."""
    from finetune_lib.data.chat import tokenize_all
    from finetune_lib.data.records import load_conversations
    from finetune_lib.evaluation.export import export_huggingface
    from finetune_lib.evaluation.merge import merge_adapter
    from finetune_lib.lora.adapter import LoRAConfig, attach_lora
    from finetune_lib.qlora.loading import load_base
    from finetune_lib.training.loop import TrainingConfig, train

    seed_everything(0)
    samples, _ = tokenize_all(load_conversations(data_folder() / "instructions" / "train.jsonl")[0], tokenizer)
    model = attach_lora(load_base(base_model()), LoRAConfig(r=8, lora_alpha=16, lora_dropout=0.0))
    train(model, samples, TrainingConfig(learning_rate=3e-3, per_device_train_batch_size=16, max_steps=60,
                                         warmup_steps=10), tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("export") / "hf"
    export_huggingface(merge_adapter(model), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def reference(source, held_out, tokenizer):
    """What transformers makes of the folder: (numbers, answers)."""
    from finetune_lib.evaluation.runtimes import measure, run_transformers
    from finetune_lib.qlora.loading import load_base

    size = (source / "model.safetensors").stat().st_size
    return measure(run_transformers(load_base(source), [tokenizer.eos_token_id]), *held_out, size=size)


@pytest.fixture(scope="session")
def exported(source, held_out, reference):
    """(folder that holds one folder for each format, what was measured of each)."""
    from finetune_lib.evaluation.runtimes import export_format

    found = {"hf": reference[0]}
    for name in FORMATS:
        graph = source.parent / "onnx" / "model.onnx" if name == "onnx-int8" else None
        found[name] = export_format(name, source, source.parent / name, *held_out, reference, graph)
    samples, prompts = held_out
    write_json(ROOT / "runs" / "export" / "report.json", {
        "machine": machine(), "questions": len(samples), "answers": len(prompts),
        "formats": {name: asdict(one) for name, one in found.items()}})
    return source.parent, found
