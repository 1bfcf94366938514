"""AdamW, or Muon on inner matrices with AdamW on the rest; and their state as tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bigmodel_cli.errors import ArtifactError

# peak learning rates, measured for updates of 2,048 tokens (docs/defaults.md)
LEARNING_RATES = {"muon": 6e-3, "adamw": 2e-3}


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
                torch.optim.Muon(
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
