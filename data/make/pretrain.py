"""Pretrain the base model from nothing: `python -m make.pretrain` from `data/`. Resumes from its own checkpoint.

Muon on the matrices and AdamW on the rest (K. Jordan et al., 2024, "Muon: An optimizer for hidden layers"), a constant
learning rate and a long linear decay, batches of documents of like length, one document a row, BOS first.
"""
import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .prose import documents
from .tokenizer import train_tokenizer
from .world import SEED

DATA = Path(__file__).resolve().parent.parent
CHUNK = 20_000           # documents generated, tokenized and shuffled at a time
BATCH_TOKENS = 2_048     # padded tokens in one step
STEP_OF_LENGTH = 32      # rows are padded to a multiple of it
LONGEST = 256
WARMUP, DECAY = 60, 0.5  # steps; share of the steps over which the learning rate falls to zero
MUON_RATE, ADAM_RATE = 4e-3, 4e-3


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with random weights; `ln(vocabulary)` is the loss it starts from."""
    torch.manual_seed(SEED)
    # Eager attention: its backward pass in bfloat16 on a CPU is faster than the fused kernel's at these lengths.
    config = LlamaConfig(
        attn_implementation="eager", vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384,
        num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, rope_theta=1_000.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return LlamaForCausalLM(config)


def batches_of(chunk: int, tokenizer: PreTrainedTokenizerFast, copying: float) -> list[torch.Tensor]:
    """One chunk of documents as shuffled batches of padded token ids (rows, length)."""
    texts = list(islice(documents(SEED + 1 + chunk, copying), CHUNK))
    rows = [ids[: LONGEST - 1] + [tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    by_length: dict[int, list[list[int]]] = {}
    for row in rows:
        by_length.setdefault(-(-len(row) // STEP_OF_LENGTH) * STEP_OF_LENGTH, []).append(row)
    batches = []
    for length, group in sorted(by_length.items()):
        size = BATCH_TOKENS // length
        for start in range(0, len(group) - size + 1, size):
            padded = [row + [tokenizer.pad_token_id] * (length - len(row)) for row in group[start:start + size]]
            batches.append(torch.tensor(padded))
    random.Random(SEED + chunk).shuffle(batches)
    return batches


def stream(tokenizer: PreTrainedTokenizerFast, total: int, first: int) -> Iterator[torch.Tensor]:
    """Batches for steps `first` to `total`; the first quarter has more documents that need their context."""
    step, chunk = 0, 0
    while step < total:
        copying = 3.0 if step < total / 4 else 1.0
        for batch in batches_of(chunk, tokenizer, copying):
            if first <= step < total:
                yield batch
            step += 1
        chunk += 1


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)]


def rate_at(step: int, total: int) -> float:
    """Share of the full learning rate: a short warm-up, constant, then down to zero."""
    return min((step + 1) / WARMUP, 1.0, (total - step) / (DECAY * total))


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor, pad: int) -> torch.Tensor:
    """Mean next-token loss over what is no padding."""
    with torch.autocast(batch.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=batch).logits
    targets = batch[:, 1:].masked_fill(batch[:, 1:] == pad, -100)
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten())


def save_state(folder: Path, step: int, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> None:
    """Weights and optimizer state, swapped in only when they are whole."""
    tensors = {f"model.{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    for place, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{place}.{index}.{key}": value.contiguous() for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "state.new", metadata={"step": str(step)})
    os.replace(folder / "state.new", folder / "state.safetensors")
    (folder / "step.json").write_text(json.dumps({"step": step}))


def load_state(folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> int:
    """Bring back what `save_state` wrote; returns the step to go on from, 0 where there is nothing."""
    if not (folder / "step.json").exists():
        return 0
    tensors = load_file(folder / "state.safetensors")
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")}, strict=False)
    for place, optimizer in enumerate(optimizers):
        content = optimizer.state_dict()
        for name, tensor in tensors.items():
            where, *rest = name.split(".")
            if where == str(place):
                content["state"].setdefault(int(rest[0]), {})[rest[1]] = tensor
        optimizer.load_state_dict(content)
    return json.loads((folder / "step.json").read_text())["step"]


def pretrain(folder: Path, total: int, every: int = 500) -> LlamaForCausalLM:
    """Train to `total` steps, going on from the state in `folder`; prints a line each 100 steps."""
    tokenizer = train_tokenizer()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(tokenizer).to(device)
    optimizers = make_optimizers(model)
    full_rates = [MUON_RATE, ADAM_RATE]
    first = load_state(folder, model, optimizers)
    seen, losses, begun = 0, [], time.perf_counter()
    for step, batch in enumerate(stream(tokenizer, total, first), start=first):
        for optimizer, rate in zip(optimizers, full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_at(step, total)
        loss = loss_of(model, batch.to(device), tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += int((batch != tokenizer.pad_token_id).sum())
        losses.append(loss.detach())
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - begun
            print(f"step {step + 1:6d}  loss {torch.stack(losses).mean():.3f}  {seen / seconds:6.0f} tokens/s  "
                  f"{seconds / 60:.1f} min", flush=True)
            losses = []
        if (step + 1) % every == 0 or step + 1 == total:
            save_state(folder, step + 1, model, optimizers)
    return model


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """The model in 16 bits with its tokenizer, as a Hugging Face folder."""
    model.to(torch.bfloat16).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--state", type=Path, default=DATA.parent / "runs" / "base", help="where the checkpoint lies")
    parser.add_argument("--out", type=Path, default=DATA / "base")
    options = parser.parse_args()
    export(pretrain(options.state, options.steps), options.out)


if __name__ == "__main__":
    main()
