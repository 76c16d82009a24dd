"""Other right answers to milestone 4."""
from milestones.listed import Alternative

ALTERNATIVES = [
    Alternative(
        "cosine by the half-angle",
        "4.1",
        "wave = 0.5 * (1 + math.cos(math.pi * progress))",
        "wave = math.cos(math.pi * progress / 2) ** 2",
    ),
    Alternative(
        "by name for by ndim",
        "4.2",
        "weight_decay if parameter.ndim >= 2 else 0.0",
        '0.0 if name.endswith("bias") or "norm" in name else weight_decay',
    ),
    Alternative(
        "all logits",
        "4.3",
        "",
        '''
def target_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Plain: all logits, log-softmax, gather."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    log = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return -(log * (labels != -100)).sum()
''',
    ),
    Alternative(
        "a list and a sum",
        "4.4",
        "",
        '''
def accumulate(model, window, targets, backward=torch.Tensor.backward, loss_function=target_loss):
    """Shares in a list."""
    shares = []
    for batch in window:
        share = loss_function(model, batch) / targets
        backward(share)
        shares.append(share.detach())
    return torch.stack(shares).sum()
''',
    ),
    Alternative(
        "gradients set to zero",
        "4.5",
        "optimizer.zero_grad(set_to_none=True)",
        "optimizer.zero_grad(set_to_none=False)",
    ),
    Alternative("rename by pathlib", "4.6", "os.replace(unfinished, folder)", "unfinished.rename(folder)"),
    Alternative(
        "set comparison",
        "4.7",
        'for name in sorted(there ^ manifest["files"].keys()):',
        'for name in sorted((there - set(manifest["files"])) | (set(manifest["files"]) - there)):',
    ),
    Alternative(
        "key for items",
        "4.8",
        "sorted(checkpoints(folder).items(), reverse=True)",
        "sorted(checkpoints(folder).items(), key=lambda pair: -pair[0])",
    ),
    Alternative(
        "not finite first",
        "4.9",
        'if kind in ("nan_loss", "nan_gradient", "explosion"):',
        'if kind and kind != "spike":',
    ),
]
