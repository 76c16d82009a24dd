"""Other right answers to milestone 2."""
from milestones.listed import Alternative

ALTERNATIVES = [
    Alternative(
        "einsum for linear",
        "2.1",
        "low = F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A)  # (…, r)\n"
        "        update = F.linear(low, self.lora_B)  # (…, d_out)",
        'update = torch.einsum("...i,ri,or->...o", self.dropout(x.to(self.lora_A.dtype)), self.lora_A, self.lora_B)',
    ),
    Alternative(
        "scale on the inner vector",
        "2.1",
        "return (result + update * self.scaling).to(result.dtype)",
        "return (result + F.linear(low * self.scaling, self.lora_B)).to(result.dtype)",
    ),
    Alternative(
        "float64 inside",
        "2.1",
        "(result + update * self.scaling).to(result.dtype)",
        "(result.double() + self.scaling * update.double()).to(result.dtype)",
    ),
    Alternative(
        "a loop over named parameters",
        "2.2",
        "",
        '''
def freeze(model: nn.Module, bias: str = "none") -> nn.Module:
    """Let the adapters learn and nothing else. Returns the model."""
    mine = {id(p) for m in model.modules() if isinstance(m, LoRALinear) for p in (m.lora_A, m.lora_B)}
    mine |= {id(p) for m in model.modules() if isinstance(m, TrainedCopy) for p in m.tuned.parameters()}
    if bias == "all":
        mine |= {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    if bias == "lora_only":
        mine |= {id(m.base.bias) for m in model.modules() if isinstance(m, LoRALinear) and m.base.bias is not None}
    for parameter in model.parameters():
        parameter.requires_grad = id(parameter) in mine
    return model
''',
    ),
    Alternative(
        "a loop for a comprehension",
        "2.3",
        "layers = {name: LoRALinear(base, **config.for_layer(name, base)) for name, base in bases.items()}",
        "layers = {}\n    for path in names:\n        bare = model.get_submodule(path)\n"
        "        layers[path] = LoRALinear(bare, **config.for_layer(path, bare))",
    ),
    Alternative("clones for detached views", "2.4", "layer.lora_A.detach(), f", "layer.lora_A.detach().clone(), f"),
    Alternative(
        "names first",
        "2.5",
        'if "gate" in name or name in ("wi_0", "w1"):\n        return "gate_up" if "up" in name else "gate"',
        'if name == "gate_up_proj":\n        return "gate_up"\n    if name in {"w1", "wi_0"} or "gate" in name:\n'
        '        return "gate"',
    ),
    Alternative(
        "in place on the base's answer",
        "2.1",
        "return (result + update * self.scaling).to(result.dtype)",
        "return result.add_((update * self.scaling).to(result.dtype))",
    ),
    Alternative(
        "the parameters themselves for their ids",
        "2.6",
        "            if id(parameter) in seen or (packed and not parameter.is_floating_point()):\n"
        "                continue\n"
        "            seen.add(id(parameter))",
        "            if parameter in seen or (packed and not parameter.is_floating_point()):\n"
        "                continue\n"
        "            seen.add(parameter)",
    ),
    Alternative(
        "searching for the share",
        "2.7",
        "(squares.cumsum(0) / squares.sum() < energy - 1e-12).sum().item() + 1",
        "int(torch.searchsorted(squares.cumsum(0) / squares.sum(), energy - 1e-12)) + 1",
    ),
    Alternative(
        "logarithms by hand",
        "2.7",
        "torch.special.entr(shares).sum().exp().item()",
        "math.exp(-sum(s * math.log(s) for s in shares.tolist() if s > 0))",
    ),
]
