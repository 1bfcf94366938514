"""AdamW, or Muon on inner matrices with AdamW on the rest; and their state as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.errors import ArtifactError

# peak learning rates, measured for updates of 2,048 tokens (docs/defaults.md)
LEARNING_RATES = {"muon": 6e-3, "adamw": 2e-3}


# σ ← aσ + bσ³ + cσ⁵ (Jordan et al. 2024) thrice, not five times: as good (docs/defaults.md)
STEP = 3.4445, -4.775, 2.0315
STEPS = 3
# numbers in a stack of matrices: as many as stay in a processor's cache, or keep a GPU busy
STACK = {"cpu": 1 << 22, "cuda": 1 << 26}


def orthogonal(x_nAB: Tensor) -> Tensor:
    """About U·Vᵀ of each bfloat16 matrix U·S·Vᵀ; singular values far below the others stay small.

    Newton–Schulz steps multiply x by polynomials of x·xᵀ, which commute: they are found from these
    products of the shorter side alone, and x is multiplied once, by what they make together. Of
    2r + 9 products instead of 6r + 3, where the longer side is r times the shorter. bfloat16 leaves
    an error of 1 to 3 %, of 10 to 20 % where one singular value is all of the matrix: less than
    the steps' own.
    """
    size = x_nAB.norm(dim=(1, 2), keepdim=True, dtype=torch.float32).clamp(min=1e-7)
    tall = x_nAB.shape[1] > x_nAB.shape[2]
    x = (x_nAB.mT if tall else x_nAB) / size.to(x_nAB.dtype)
    a, b, c = STEP
    gram = x @ x.mT
    change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # a step makes a·x + change·x
    factor = change.clone()  # and all so far factor·x
    factor.diagonal(dim1=1, dim2=2).add_(a)
    for _ in range(STEPS - 1):
        gram = torch.baddbmm(gram, change, gram, beta=a)
        gram = torch.baddbmm(gram, gram, change, beta=a)
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor = torch.baddbmm(factor, change, factor, beta=a)
    made: Tensor = factor @ x
    return made.mT if tall else made


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024), matrices of one shape at a time; its updates
    have the size of AdamW's (Liu et al. 2025), so that one rate serves both."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault(parameter.shape, []).append(parameter)
        for shape, alike in shapes.items():
            count = max(1, STACK[alike[0].device.type] // shape.numel())
            for begin in range(0, len(alike), count):
                self._update(alike[begin : begin + count], group)

    def _update(self, alike: list[Tensor], group: Mapping[str, Any]) -> None:
        grads = [p.grad for p in alike if p.grad is not None]
        for parameter, grad in zip(alike, grads, strict=True):
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(grad)
        buffers = [self.state[p]["momentum_buffer"] for p in alike]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        x = grads[0].new_empty((len(grads), *grads[0].shape), dtype=torch.bfloat16)
        torch._foreach_copy_(x.unbind(), torch._foreach_lerp(grads, buffers, group["momentum"]))
        rate = group["lr"] * 0.2 * max(x.shape[1:]) ** 0.5
        torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(alike, orthogonal(x).unbind(), alpha=-rate)


class Optimizers:
    """One or two torch optimizers that step together."""

    def __init__(
        self, model: nn.Module, kind: str, learning_rate: float, weight_decay: float
    ) -> None:
        self.names: dict[Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters()
        }
        self.learning_rate = learning_rate
        inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "backbone" in n]
        outer = [p for n, p in model.named_parameters() if p.dim() == 2 and "backbone" not in n]
        vectors = [p for p in model.parameters() if p.dim() != 2]
        self.parts: list[torch.optim.Optimizer] = []
        if kind == "muon":
            self.parts.append(Muon(inner, learning_rate, weight_decay))
            inner = []
        groups = [
            {"params": inner, "weight_decay": weight_decay},
            {"params": outer, "weight_decay": 0.0},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.parts.append(
            torch.optim.AdamW(
                [g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.95), fused=True
            )
        )

    def step(self, share: float) -> None:
        """Updates the weights with `share` of the peak learning rate, and drops the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.learning_rate * share
            part.step()
        self.zero()

    def zero(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All state, by weight: `<weight>/<what>`."""
        return {
            f"{self.names[parameter]}/{what}": torch.as_tensor(value)
            for part in self.parts
            for parameter, state in part.state.items()
            for what, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up saved state. Raises ArtifactError when it is another model's."""
        owners = {
            self.names[p]: (part, p)
            for part in self.parts
            for group in part.param_groups
            for p in group["params"]
        }
        for key, tensor in tensors.items():
            name, _, what = key.rpartition("/")
            if name not in owners:
                raise ArtifactError(
                    f"the optimizer's state has `{key}`, which is no weight of this model",
                    "train again: bigmodel train --restart",
                )
            part, parameter = owners[name]
            # AdamW's fused step wants its counter on the weights' device
            part.state[parameter][what] = tensor.to(parameter.device)
