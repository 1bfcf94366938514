"""A model's weights in the form that answers fastest. Legend: M positions, K inputs, N outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_cli.errors import UsageError, did_you_mean
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.sequence import SequenceModel

PRECISIONS = ("fp32", "bf16", "int8")
TYPICAL = 32  # positions at a time, which the blocks are laid out for


class PackedLinear(nn.Module):
    """y = x·Wᵀ with the weight laid out in the blocks that oneDNN wants: for the few positions of
    decoding two to three times as fast as torch's own product on a CPU."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None = None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach(), TYPICAL)
        self.bias_N = None if bias_N is None else bias_N.detach()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias_N, "none", [], "")
        return y


class Int8Linear(nn.Module):
    """y = x·Wᵀ in whole numbers from −127 to 127: a weight's are steps of its row's largest, made
    once; an input's are steps of its position's largest, for each input (dynamic quantization)."""

    weight_NK: Tensor
    scale_N: Tensor

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None = None) -> None:
        super().__init__()
        self.bias_N = None if bias_N is None else bias_N.detach()
        whole, scale = _quantize(weight_NK.detach())
        self.register_buffer("weight_NK", whole)
        self.register_buffer("scale_N", scale.flatten())

    def forward(self, x: Tensor) -> Tensor:
        whole, scale = _quantize(x.flatten(0, -2))
        y_MN = torch._int_mm(whole, self.weight_NK.t()) * scale * self.scale_N
        y_MN = y_MN if self.bias_N is None else y_MN + self.bias_N
        return y_MN.view(*x.shape[:-1], -1)


def _quantize(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (M, K), int8, and the step of each row (M, 1)."""
    step = x_MK.abs().amax(-1, keepdim=True).clamp_(min=1e-30).div_(127)
    return (x_MK / step).round_().to(torch.int8), step


def check(config: ModelConfig, precision: str, device: str) -> None:
    """Raises UsageError for a precision that is not known, or has no kernels here."""
    if precision not in PRECISIONS:
        raise UsageError(f"--precision is `{precision}`", did_you_mean(precision, PRECISIONS))
    if precision not in config.precisions or (precision == "int8" and device == "cuda"):
        what = "a GPU" if precision in config.precisions else config.kind
        raise UsageError(f"--precision is `{precision}`, which {what} cannot have", "use bf16")


def lower(model: SequenceModel, precision: str) -> SequenceModel:
    """The model itself in this precision, for answering: bf16 all of it; int8 its matrices, while
    all else stays fp32. Raises UsageError, as `check` does."""
    device = model.device.type
    check(model.config, precision, device)
    if precision == "bf16":
        model.bfloat16()
    kind = Int8Linear if precision == "int8" else PackedLinear
    if kind is PackedLinear and not (device == "cpu" and _packs(precision)):
        return model
    if not model.config.shape.classes:  # whose head is small
        model.head = kind(model.table)
    for module in list(model.backbone.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.Linear):
                setattr(module, name, kind(part.weight, part.bias))
    return model


def _packs(precision: str) -> bool:
    """Whether oneDNN is there, and has such products on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return precision == "fp32" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
