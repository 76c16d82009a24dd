"""Measure quality against bits on the base model: `python -m make.bits` from `data/`, about ten minutes.

Every linear layer but the head is quantized in blocks of 64 with a float32 scale each: what that does to the weights
and to the base model, and how much of it a short LoRA training on top makes good. Weights are held as the floats that
their codes stand for, which gives the same numbers as computing from codes. The result is `data/studies/bits.json`.
"""
import argparse
import os
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune_lib.core import load_tokenizer, machine, write_json
from finetune_lib.data.chat import tokenize_text
from finetune_lib.data.records import load_text
from finetune_lib.evaluation.perplexity import perplexity
from finetune_lib.qlora.loading import load_base
from finetune_lib.qlora.nf4 import dequantize_blocks, fp4_codebook, int4_codebook, nf4_codebook, quantize_blocks

from .adapters import LOSS_SAMPLES, QUESTIONS, STEPS, adapted, prepared
from .measure import DATA, configured

STUDY = DATA / "studies" / "bits.json"
BLOCK = 64
SEED = 0


def quantiles(bits: int) -> Tensor:
    """NF4's way of making a codebook, for any number of bits: normal quantiles with an exact zero."""
    count = 2**bits
    tail = 1 - (1 / (2 * (count - 1)) + 1 / (2 * count)) / 2
    sides = (torch.linspace(tail, 0.5, count // 2 + more)[:-1].double() for more in (1, 0))
    positive, negative = (torch.special.ndtri(side).float() for side in sides)
    values = torch.cat([-negative, torch.zeros(1), positive]).sort().values
    return values / values.max()


CODEBOOKS = {"int8": torch.arange(-127, 128) / 127, "nf4": nf4_codebook(), "fp4": fp4_codebook(),
             "int4": int4_codebook(), "nf3": quantiles(3), "nf2": quantiles(2)}


def quantized(model: nn.Module, codebook: Tensor) -> float:
    """Replace the weights by what their codes stand for; returns their root mean square error, relative."""
    error = total = 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            weight = layer.weight.detach()
            codes, absmax = quantize_blocks(weight, codebook, BLOCK)
            restored = dequantize_blocks(codes, absmax, codebook, BLOCK).view_as(weight)
            error += float((restored - weight).square().sum())
            total += float(weight.square().sum())
            layer.weight.data = restored
    return (error / total) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DATA.parent / "runs" / "measure" / "tokens")
    folder = prepared(parser.parse_args().folder)
    place = configured(folder).model.name_or_path
    tokenizer = load_tokenizer(place)
    prose = tokenize_text(load_text(DATA / "text" / "general.jsonl"), tokenizer)
    runs = {}
    for name in ("float32", *CODEBOOKS):
        model = load_base(place)
        error = 0.0 if name == "float32" else quantized(model, CODEBOOKS[name])
        bits = 32 if name == "float32" else (len(CODEBOOKS[name]) - 1).bit_length() + 32 / BLOCK
        untrained = perplexity(model, prose, tokenizer.pad_token_id, 50).overall
        before = {"bits": bits, "error": error, "base_perplexity": untrained}
        runs[name] = before | {"trained": adapted({"r": 8, "lora_alpha": 16}, SEED, folder, model)}
    write_json(STUDY, {"machine": machine(), "date": date.today().isoformat(), "seed": SEED, "block": BLOCK,
                       "threads": os.environ.get("OMP_NUM_THREADS"), "steps": STEPS, "questions": QUESTIONS,
                       "loss_samples": LOSS_SAMPLES, "runs": runs})


if __name__ == "__main__":
    main()
