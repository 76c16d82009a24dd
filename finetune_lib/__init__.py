"""Fine-tune language models: from a raw file of conversations to an evaluated, merged and exported model.

Kept by hand: all other modules here are exported from the notebooks in nbs/. The names below are imported when they
are first used, so that `import finetune_lib` costs nothing.
"""
from importlib import import_module
from typing import Any

NAMES = {
    "Conversation": "data.turns",
    "load_conversations": "data.records",
    "LoRAConfig": "lora.files",
    "attach_lora": "lora.adapter",
    "load_adapter": "lora.adapter",
    "save_adapter": "lora.adapter",
    "QuantizationConfig": "qlora.loading",
    "load_base": "qlora.loading",
    "TrainingConfig": "training.schedule",
    "train": "training.loop",
    "perplexity": "evaluation.perplexity",
    "evaluate_instructions": "evaluation.tasks",
    "merge_adapter": "evaluation.merge",
    "export_huggingface": "evaluation.export",
    "FinetuneConfig": "pipeline.config",
    "load_config": "pipeline.config",
    "FineTuningPipeline": "pipeline.run",
    "load_tokenizer": "core",
}
__all__ = ["__version__", *NAMES]


def __getattr__(name: str) -> Any:
    """Import a top-level name at its first use and keep it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("finetune_lib")
    if name not in NAMES:
        raise AttributeError(f"module 'finetune_lib' has no name {name!r}; known: {', '.join(__all__)}")
    value = getattr(import_module(f"finetune_lib.{NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
