"""AdamW, or Muon on inner matrices with AdamW on the rest; and their state as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.errors import ArtifactError

# peak learning rates, measured for updates of 2,048 tokens (docs/defaults.md)
LEARNING_RATES = {"muon": 6e-3, "adamw": 2e-3}


class Muon(torch.optim.Muon):
    """torch's. On a GPU matrices of one shape are orthogonalized together: it would idle between
    many small products, one after another."""

    together: bool | None = None  # None: on a GPU

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        on_gpu = any(parameter.is_cuda for parameter in group["params"])
        if not (on_gpu if self.together is None else self.together):
            return super().step(closure)  # type: ignore[no-untyped-call]
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in (p for p in group["params"] if p.grad is not None):
            shapes.setdefault(parameter.shape, []).append(parameter)
        for alike in shapes.values():
            self.update(alike, group)
        return None

    def update(self, alike: list[Tensor], group: Mapping[str, Any]) -> None:
        """Updates matrices (A, B) of one shape, stacked as (n, A, B)."""
        grads = [p.grad for p in alike if p.grad is not None]
        for parameter, grad in zip(alike, grads, strict=True):
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(grad)
        buffers = [self.state[p]["momentum_buffer"] for p in alike]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        x = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"])).bfloat16()
        A, B = x.shape[1:]
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
        a, b, c = group["ns_coefficients"]
        for _ in range(group["ns_steps"]):  # in products of the shorter side
            gram = x.mT @ x if A > B else x @ x.mT
            parts = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, *((x, parts) if A > B else (parts, x)), beta=a)
        x = x.to(alike[0].dtype)
        rate = group["lr"] * 0.2 * max(A, B) ** 0.5  # match_rms_adamw
        torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(alike, list(x.unbind()), alpha=-rate)


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
                    f"the optimizer's state has `{key}`, which is no weight of this model",
                    "train again: bigmodel train --restart",
                )
            part, parameter = owners[name]
            # AdamW's fused step wants its counter on the weights' device
            part.state[parameter][what] = tensor.to(parameter.device)
