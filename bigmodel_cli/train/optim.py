"""AdamW, or Muon on inner matrices with AdamW on the rest; and their state as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.errors import ArtifactError

# peak learning rates, measured for updates of 2,048 tokens (docs/defaults.md)
LEARNING_RATES = {"muon": 6e-3, "adamw": 2e-3}


def orthogonalized(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Matrices (…, A, B) after `steps` times x ← a·x + b·g·x + c·g²·x, g = x·xᵀ (Jordan et al.
    2024), in products of the shorter side."""
    a, b, c = coefficients
    A, B = x.shape[-2:]
    add = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x.mT @ x if A > B else x @ x.mT
        parts = add(gram, gram, gram, beta=b, alpha=c)
        x = add(x, *((x, parts) if A > B else (parts, x)), beta=a)
    return x


class Muon(torch.optim.Muon):
    """torch's with Nesterov's momentum and `match_rms_adamw`, by `orthogonalized`. On a GPU
    matrices of one shape are orthogonalized together: it would idle between many small products,
    one after another."""

    together: bool | None = None  # None: on a GPU

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 (what torch calls it)
        for group in self.param_groups:
            stacks: dict[Any, list[Tensor]] = {}
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    together = parameter.is_cuda if self.together is None else self.together
                    stacks.setdefault(parameter.shape if together else number, []).append(parameter)
            for alike in stacks.values():
                self.update(alike, group)

    def update(self, alike: list[Tensor], group: Mapping[str, Any]) -> None:
        """Updates matrices (A, B) of one shape, stacked as (n, A, B) if there are several."""
        grads = [p.grad for p in alike if p.grad is not None]
        for parameter, grad in zip(alike, grads, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(grad)
        buffers = [self.state[p]["momentum_buffer"] for p in alike]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, buffers, group["momentum"])
        x = (torch.stack(ahead) if len(ahead) > 1 else ahead[0]).bfloat16()
        del ahead
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=group["eps"])
        x = orthogonalized(x, group["ns_coefficients"], group["ns_steps"]).to(alike[0].dtype)
        rate = group["lr"] * 0.2 * max(x.shape[-2:]) ** 0.5  # match_rms_adamw
        torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(alike, list(x.reshape(-1, *alike[0].shape)), alpha=-rate)


class Optimizers:
    """One or two torch optimizers that step together."""

    def __init__(
        self, model: nn.Module, kind: str, learning_rate: float, weight_decay: float
    ) -> None:
        self.names: dict[Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters()
        }
        self.learning_rate = learning_rate
        tables = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
        matrices = {p: n for n, p in model.named_parameters() if p.dim() == 2}
        inner = [p for p, n in matrices.items() if "backbone" in n and p not in tables]
        outer = [p for p, n in matrices.items() if "backbone" not in n or p in tables]
        vectors = [p for p in model.parameters() if p.dim() != 2]
        self.parts: list[torch.optim.Optimizer] = []
        if kind == "muon":
            # its updates are scaled to AdamW's size (Liu et al. 2025), so that one rate serves both
            self.parts.append(
                Muon(
                    inner,
                    lr=learning_rate,
                    weight_decay=weight_decay,
                    momentum=0.95,
                    adjust_lr_fn="match_rms_adamw",
                    ns_steps=3,  # of 5: as good, at three fifths of the cost (docs/defaults.md)
                )
            )
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
                    f"the optimizer's state has `{key}`, which is not a weight of this model",
                    "train again: bigmodel train --restart",
                )
            part, parameter = owners[name]
            if tensor.numel() != 1 and tensor.shape != parameter.shape:
                raise ArtifactError(
                    f"the optimizer's state `{key}` has the shape {tuple(tensor.shape)}, not "
                    f"{tuple(parameter.shape)}",
                    "train again: bigmodel train --restart",
                )
            # AdamW's fused step wants its counter on the weights' device
            part.state[parameter][what] = tensor.to(parameter.device)
