"""Checks of milestone 4, first part: schedule, loss and step are exact."""
import math

import pytest
import torch
from torch import nn

from milestones.expecting import expect, refuses, same


def tiny_llama():
    """A Llama of two layers with random weights, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                        num_attention_heads=2)).eval()


def batch_of(rows: int, length: int, prompt: int) -> dict[str, torch.Tensor]:
    """Random ids; the first `prompt` labels are left out of the loss, and so is one in the middle.

    Where there is a prompt, one token of it must not be attended to.
    """
    ids = torch.randint(3, 40, (rows, length))
    labels = ids.clone()
    labels[:, :prompt] = -100
    labels[0, prompt + 1] = -100
    mask = torch.ones_like(ids)
    mask[0, 1] = int(not prompt)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def summed(model, batch):
    """Summed negative log-likelihood of the targets, computed the plain way."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


@pytest.mark.task("4.1", points=4, hint="step 0 is the first: with a warm-up its rate is 0")
def test_the_rate_rises_in_a_straight_line(lib, seed):
    warmup, peak = 4 + seed % 9, 3e-3
    for kind in ("linear", "cosine", "constant_with_warmup"):
        got = [lib.learning_rate_at(step, 100, warmup, kind, peak=peak) for step in range(warmup + 1)]
        same(got, [peak * step / warmup for step in range(warmup + 1)], f"the rates of the warm-up ({kind})", {
            "the warm-up is one step ahead": [peak * min(1, (step + 1) / warmup) for step in range(warmup + 1)],
            "there is no warm-up": got[0] == peak,
            "a way through the function ends without `return`": None in got,
            "the division drops the fraction": got[:-1] == [0] * warmup,
            "the peak is not multiplied in": [*(step / warmup for step in range(warmup)), peak]}, atol=1e-12)


@pytest.mark.task("4.1", points=5, hint="the way down begins where the warm-up ends")
def test_the_rate_comes_down_as_its_name_says(lib, seed):
    total, warmup, peak = 60 + seed % 50, 10, 2e-3
    for kind, floor in (
        ("linear", 0.0),
        ("cosine", 0.0),
        ("cosine_with_min_lr", 0.1),
        ("constant_with_warmup", 0.0),
        ("constant", 0.0),
    ):

        def down(progress, kind=kind, floor=floor):
            cosine = math.cos(math.pi * progress) / 2 + 0.5
            shares = {"linear": 1 - progress, "cosine": cosine, "cosine_with_min_lr": floor + (1 - floor) * cosine}
            return shares.get(kind, 1.0)

        steps = list(range(warmup, total + 3, 3))
        got = [lib.learning_rate_at(step, total, warmup, kind, floor, peak) for step in steps]
        share = [min(1, (step - warmup) / (total - warmup)) for step in steps]
        same(
            got,
            [peak * down(part) for part in share],
            f"the rates after the warm-up ({kind})",
            {
                "a way through the function ends without `return`": None in got,
                "a constant rate comes down": "constant" in kind and got[-1] != peak,
                "the way down is measured from step 0, not from the end of the warm-up": [
                    peak * down(min(1, step / total)) for step in steps
                ],
                "the way down begins one step late": [
                    peak * down(min(1, (step - warmup - 1) / (total - warmup - 1))) for step in steps
                ],
                "the angle is in degrees, and math.cos takes radians": [
                    peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(180 * part))) for part in share
                ],
                "the floor is taken for a rate, it is a share of the peak": [
                    floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * part)) for part in share
                ],
                "it goes on behind the last step": [peak * down((step - warmup) / (total - warmup)) for step in steps],
                "the floor cuts the wave off, it does not squeeze it": [
                    peak * max(floor, 0.5 * (1 + math.cos(math.pi * part))) for part in share
                ],
                "the floor is not looked at": kind == "cosine_with_min_lr" and abs(got[-1]) < 1e-12,
                "the cosine makes a whole wave": [peak * 0.5 * (1 + math.cos(2 * math.pi * part)) for part in share],
            },
            atol=1e-12,
        )


class Small(nn.Module):
    """Names like those of an adapted model: two matrices that learn, a norm that learns, a base that does not."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, 4))
        self.lora_B = nn.ParameterDict({"default": torch.randn(4, 2)})  # the name goes on, as in peft
        self.norm = nn.LayerNorm(4)


@pytest.mark.task("4.2", points=8, hint="norms and biases are vectors: ndim tells")
def test_what_learns_is_grouped_by_rate_and_decay(lib, seed):
    rate = 1e-3 * (1 + seed % 5)
    for ratio in (None, 16.0):
        model = Small()
        groups = lib.parameter_groups(model, rate, 0.1, ratio)
        expect(isinstance(groups, list) and all(isinstance(group, dict) for group in groups),
               "a list of groups is returned", "a list of dicts, each with params, names, lr, weight_decay",
               type(groups).__name__, {
                   "the dictionary is returned, and torch would take its keys for parameters": isinstance(groups, dict),
                   "nothing is returned": groups is None})
        got = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
        want = {
            "lora_A": (rate, 0.1),
            "lora_B.default": (rate * (ratio or 1), 0.1),
            "norm.weight": (rate, 0.0),
            "norm.bias": (rate, 0.0),
        }
        same(got, want, f"(rate, decay) by parameter, with loraplus_lr_ratio={ratio}", {
            "the frozen base is given to the optimizer": "base.weight" in got,
            "norms and biases decay too": got.get("norm.weight", (0, 0))[1] > 0,
            "adapters are not in the optimizer": "lora_A" not in got,
            "matrices do not decay: they have two dimensions": got.get("lora_A", (0, 1))[1] == 0,
            "A gets the higher rate": got.get("lora_A", (0, 0))[0] > rate,
            "A gets a lower rate, where B must get a higher one": got.get("lora_A", (rate, 0))[0] < rate,
            "A and B get the same rate": ratio is not None and got.get("lora_B.default") == (rate, 0.1)})
        own = dict(model.named_parameters())
        expect(all(len(group["params"]) == len(group["names"]) for group in groups) and
               all(parameter is own.get(name) for group in groups
                   for name, parameter in zip(group["names"], group["params"], strict=True)),
               "each name stands in the place of its parameter, and the parameters are the model's own",
               reasons={"copies are handed over, and the optimizer would train those": True})
    refuses(lambda: lib.parameter_groups(Small().requires_grad_(False), rate), "a model in which nothing learns")


@pytest.mark.task("4.3", points=9, hint="sum, do not average: who divides must know the whole window")
def test_the_loss_is_the_sum_over_target_tokens(lib, seed):
    model, batch = tiny_llama(), batch_of(3, 7, 2)
    targets, want = int((batch["labels"][:, 1:] != -100).sum()), summed(model, batch)
    inputs, labels = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"]
    logits = model(**inputs).logits
    got = lib.target_loss(model, batch)
    same(
        got.detach() if isinstance(got, torch.Tensor) else got,
        want.detach(),
        "the summed loss",
        {
            "the loss is a mean over the tokens": (want / targets).detach(),
            "labels are not shifted": nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="sum"
            ).detach(),
            "labels are shifted twice": nn.functional.cross_entropy(
                logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten(), reduction="sum"
            ).detach(),
            "the prompt is learned too": nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="sum"
            ).detach(),
            "the attention mask does not reach the model": summed(
                model, {**batch, "attention_mask": torch.ones_like(labels)}).detach(),
            "labels are read by the model in place of input_ids": summed(
                model, {**batch, "input_ids": labels.clamp(min=0)}).detach(),
        },
        rtol=1e-4,
    )
    half = tiny_llama().bfloat16()
    got = lib.target_loss(half, batch)
    narrow = isinstance(got, torch.Tensor) and got.dtype == torch.bfloat16
    same(got.detach().float() if narrow else got, summed(half, batch).detach(), "the summed loss in bfloat16", {
        "the logits are not widened to float32 before the logarithm": narrow}, rtol=1e-4)


@pytest.mark.task("4.3", points=3)
def test_the_loss_reaches_every_weight(lib, seed):
    model, batch = tiny_llama(), batch_of(2, 6, 2)
    loss = lib.target_loss(model, batch)
    expect(isinstance(loss, torch.Tensor) and loss.requires_grad, "the loss carries the way back to the weights",
           "a tensor that requires a gradient", str(loss), {
               "`.item()` makes a plain number of it": isinstance(loss, float), "nothing is returned": loss is None,
               "`.detach()` or no_grad cuts the graph": isinstance(loss, torch.Tensor)})
    loss.backward()
    plain = tiny_llama()
    plain.load_state_dict(model.state_dict())
    summed(plain, batch).backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        expect(one.grad is not None, f"{name} gets a gradient", "a gradient", "None", {"the graph is cut": True})
        same(one.grad, other.grad, f"the gradient of {name}", rtol=1e-3, atol=1e-5)


def quadratic(model, batch):
    """A summed loss for a model that is one vector; the batch's `labels` say how many targets it has."""
    return ((model.weight - batch["x"]) ** 2).sum()


def window_of(*sizes: int) -> list[dict[str, torch.Tensor]]:
    """Micro-batches of so many targets each; their `labels` count the same."""
    return [{"x": torch.randn(size, 3), "labels": torch.zeros(size, 2, dtype=torch.long)} for size in sizes]


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))


@pytest.mark.task("4.4", points=9, hint="one divisor for all micro-batches: the target tokens of the whole window")
def test_a_window_gives_the_gradient_of_one_large_batch(lib, seed):
    model, window = Vector(), window_of(5, 1, 2)
    total = sum(quadratic(model, batch) for batch in window)
    gradient, = torch.autograd.grad(total / 8, model.weight)
    means = [torch.autograd.grad(quadratic(model, batch) / len(batch["x"]), model.weight)[0] for batch in window]
    loss = lib.accumulate(model, window, 8, loss_function=quadratic)
    expect(
        model.weight.grad is not None, "gradients are in .grad", "a gradient", "None", {"nothing goes backward": True}
    )
    same(model.weight.grad, gradient, "the gradient of the window", {
        "the mean of each micro-batch is divided by the number of micro-batches": sum(means) / 3,
        "the loss is not divided": 8 * gradient, "means are added": sum(means),
        "the sum is divided by the number of micro-batches": gradient * 8 / 3,
        "only the last micro-batch counts": torch.autograd.grad(quadratic(model, window[-1]) / 8, model.weight)[0]})
    same(
        loss,
        (total / 8).detach(),
        "the returned mean loss",
        {
            "the sum is returned": total.detach(),
            "the last micro-batch's share is returned": (quadratic(model, window[-1]) / 8).detach(),
        },
    )
    expect(not loss.requires_grad, "the returned loss carries no graph", "requires_grad=False", "requires_grad=True",
           {"the graph is kept with the loss": True})


@pytest.mark.task("4.4", points=3)
def test_backward_runs_after_each_micro_batch(lib, seed):
    order = []

    def loss(model, batch):
        order.append("forward")
        return quadratic(model, batch)
    model, window = Vector(), window_of(2, 3)
    got = lib.accumulate(model, window, 5, lambda share: order.append("backward") or share.backward(), loss)
    same(order, ["forward", "backward"] * 2, "the order of the work", {
        "all activations are alive at once: backward waits for the end": order == ["forward", "forward", "backward"],
        "the given `backward` is not used, so mixed precision would not scale": "backward" not in order})
    same(got, sum(quadratic(model, batch) for batch in window).detach() / 5, "the returned mean loss", rtol=1e-4)


@pytest.mark.task("4.5", points=6, hint="zero, backward, clip, step: in this order")
def test_a_step_moves_by_the_clipped_gradient_of_its_own_window(lib, seed):
    model, window = Vector(), window_of(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = model.weight.detach().clone()
    gradient, = torch.autograd.grad(sum(quadratic(model, batch) for batch in window) / 5, model.weight)
    norm, stale, piecewise = gradient.norm(), torch.full((3,), 100.0), torch.zeros(3)
    for part in window:
        piecewise += torch.autograd.grad(quadratic(model, part) / 5, model.weight)[0]
        piecewise *= min(1.0, 0.5 / piecewise.norm().item())
    model.weight.grad = stale.clone()
    outcome = lib.train_step(model, optimizer, window, 5, 0.5, loss_function=quadratic)
    expect(hasattr(outcome, "grad_norm"), "a StepOutcome is returned", "a StepOutcome", str(outcome)[:80], {
        "nothing is returned": outcome is None})
    limit = min(1.0, 0.5 / norm.item())
    both = gradient + stale
    same(model.weight.detach(), start - 0.1 * limit * gradient, "the weights after the step", {
        "gradients are not clipped": start - 0.1 * gradient,
        "the step is taken before the gradients are clipped, and once more after": torch.allclose(
            model.weight.detach(), start - 0.1 * (1 + limit) * gradient, atol=1e-5),
        "each number of the gradient is clipped, not the length of all": start - 0.1 * gradient.clamp(-0.5, 0.5),
        "each micro-batch is clipped, not the whole window": start - 0.1 * piecewise,
        "the gradients are cleared after backward, or the step is not taken": start,
        "the last window's gradients are still there": start - 0.1 * both * min(1.0, 0.5 / both.norm().item()),
        "the step is taken twice": start - 0.2 * limit * gradient,
        "it goes uphill": start + 0.1 * limit * gradient}, rtol=1e-4, atol=1e-5)
    same(outcome.grad_norm, norm.item(), "the reported norm", {
        "the norm is taken after clipping": 0.5}, rtol=1e-4)
    before = model.weight.detach().clone()
    gradient, = torch.autograd.grad(sum(quadratic(model, batch) for batch in window) / 5, model.weight)
    lib.train_step(model, optimizer, window, 5, 0, loss_function=quadratic)
    same(model.weight.detach(), before - 0.1 * gradient, "the weights after a step with max_grad_norm=0", {
        "0 is taken for a limit, and the gradient is scaled down to nothing": before}, rtol=1e-4, atol=1e-5)


@pytest.mark.task("4.5", points=4)
def test_the_judge_can_refuse_a_step(lib, seed):
    model, window, seen = Vector(), window_of(4), []
    start, optimizer = model.weight.detach().clone(), torch.optim.SGD(model.parameters(), lr=0.1)
    mean = quadratic(model, window[0]) / 4
    gradient, = torch.autograd.grad(mean, model.weight)
    loss, norm = mean.item(), gradient.norm().item()

    def judge(loss, norm):
        seen.append((loss, norm))
        return lib.Decision("skip")
    outcome = lib.train_step(model, optimizer, window, 4, 1.0, judge=judge, loss_function=quadratic)
    expect(
        len(seen) == 1,
        "the judge is asked once",
        "1 question",
        f"{len(seen)} questions",
        {"the judge is not asked": not seen},
    )
    expect(
        all(isinstance(value, float) for value in seen[0]),
        "the judge gets plain numbers",
        "two floats",
        str(seen[0]),
        {"tensors are handed over": True},
    )
    same([float(value) for value in seen[0]], [loss, norm], "[loss, norm], as the judge gets them", {
        "the norm is taken after clipping": [loss, 1.0], "loss and norm are exchanged": [norm, loss]}, rtol=1e-4)
    same([outcome.loss, outcome.grad_norm], [loss, norm], "[loss, norm] of the outcome", {
        "the norm is taken after clipping": [loss, 1.0], "loss and norm are exchanged": [norm, loss]}, rtol=1e-4)
    same(model.weight.detach(), start, "the weights after a step that was refused", {
        "the step is applied whatever the judge says": True}, rtol=0, atol=0)
    expect(outcome.decision.action == "skip", "the outcome holds the decision", "skip", str(outcome.decision))


@pytest.mark.task("4.5", points=3)
def test_replay_adds_its_own_mean_times_its_weight(lib, seed):
    model, window, replay = tiny_llama(), [batch_of(2, 6, 2)], batch_of(2, 8, 0)
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in (window[0], replay)]
    head, start = model.lm_head.weight, model.lm_head.weight.detach().clone()
    own, other = (torch.autograd.grad(summed(model, batch) / count, head)[0]
                  for batch, count in zip((window[0], replay), counts, strict=True))
    losses = [(summed(model, batch) / count).item() for batch, count in zip((window[0], replay), counts, strict=True)]
    outcome = lib.train_step(model, torch.optim.SGD([head], lr=1.0), window, counts[0], 0, (replay, counts[1]), 0.3)
    same(
        start - head.detach(),
        own + 0.3 * other,
        "the way the weights went",
        {
            "replay is not weighted": own + other,
            "replay is left out": own,
            "replay stands alone": 0.3 * other,
            "replay is divided by the window's number of targets": own + 0.3 * other * counts[1] / counts[0],
        },
        rtol=1e-3,
        atol=1e-5,
    )
    same([outcome.loss, outcome.replay_loss], losses, "[loss, replay loss] of the outcome, each a mean of its own", {
        "the replay loss is told with its weight": [losses[0], 0.3 * losses[1]],
        "the loss holds the replay loss too": [losses[0] + 0.3 * losses[1], losses[1]],
        "the replay loss is not told": outcome.replay_loss is None}, rtol=1e-4)
