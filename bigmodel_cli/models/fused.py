"""Parts of a model whose gradient is written out, so that few passes over memory compute it.

Autograd would make more passes over memory, and most of it keep more. Legend: M positions, D width,
V vocabulary; B batch, T positions, S those seen, N heads, K key and value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# logits that are in work at a time: as many as stay in a processor's cache, or keep a GPU busy
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}
MOST = (1 << 31) - 1  # of more than that a compiled kernel computes places in 64 bits


def wide(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would compute products of `x` in."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def written_out() -> bool:
    """Whether there is a gradient to write out, and no compiler that fuses better."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w · x / √(mean(x²) + ε) over the last axis, computed in fp32 (Zhang & Sennrich 2019)."""
    if written_out():
        return RMSNormFunction.apply(x, weight, eps, product_dtype(x))  # type: ignore[no-any-return, no-untyped-call]
    return _normed(x, weight, eps).to(x.dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    full = wide(x)
    return full * torch.rsqrt(full.square().mean(-1, keepdim=True) + eps) * weight


def norm_rotate(x_BTNH: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`rms_norm`, then RoPE, whose pairs are (i, i + H/2), computed in fp32: (B, N, T, H). cos,
    sin: of `rotary_angles`."""
    if written_out():
        dtype = product_dtype(x_BTNH)
        return NormRotateFunction.apply(x_BTNH, weight, eps, cos, sin, dtype)  # type: ignore[no-any-return, no-untyped-call]
    return rotate(_normed(x_BTNH, weight, eps).transpose(1, 2), cos, sin).to(x_BTNH.dtype)


def rotate(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE alone, computed in at least fp32. cos, sin: of `rotary_angles`."""
    x_BNTH = wide(x_BNTH)
    return torch.addcmul(x_BNTH * cos, x_BNTH.roll(x_BNTH.shape[-1] // 2, -1), sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(g) · u of the halves (g, u) of the last axis (Shazeer 2020)."""
    if written_out():
        return SwiGLUFunction.apply(gate_up)  # type: ignore[no-any-return, no-untyped-call]
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul(up)


def attend(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, bias: Tensor, causal: bool, dropout: float
) -> Tensor:
    """softmax(QKᵀ/√H + bias)·V as plain products, which on a CPU take half of the time of torch's
    fused kernel. bias: −∞ where a position is not seen, else 0, (B or 1, 1, T, S). `causal`: T = S,
    and the first half of the queries needs no more than half of the keys."""
    N, T, H = q_BNTH.shape[1:]
    K, S = k_BKSH.shape[1:3]
    if K != N:
        k_BKSH, v_BKSH = (x.repeat_interleave(N // K, 1) for x in (k_BKSH, v_BKSH))
    if written_out() and not dropout:
        return AttendFunction.apply(q_BNTH, k_BKSH, v_BKSH, bias, causal)  # type: ignore[no-any-return, no-untyped-call]
    parts = []
    for begin, end, seen in _spans(T, S, causal):
        scores = q_BNTH[:, :, begin:end] * H**-0.5 @ k_BKSH[:, :, :seen].transpose(2, 3)
        scores.add_(bias[..., begin:end, :seen])
        parts.append(F.dropout(scores.softmax(-1), dropout) @ v_BKSH[:, :, :seen])
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def _spans(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """Queries that are computed together, begin and end, and how many keys they see."""
    if not causal or queries < 2:
        return [(0, queries, keys)]
    return [(0, queries // 2, queries // 2), (queries // 2, queries, keys)]


def to_gradient(logits_MV: Tensor, targets_M1: Tensor) -> Tensor:
    """Σ −log softmax(logits)[target] over targets that are not negative; the logits become its
    gradient, softmax − one-hot."""
    index, real = targets_M1.clamp(min=0), targets_M1 >= 0
    shares = F.log_softmax(wide(logits_MV), -1)
    total = -(shares.gather(1, index) * real).sum()
    if torch.compiler.is_compiling():  # one kernel
        columns = torch.arange(shares.shape[1], device=index.device, dtype=torch.int32)
        logits_MV.copy_((shares.exp() - (columns == index.int()).to(shares.dtype)) * real)
    else:
        shares.exp_()
        shares.scatter_(1, index, shares.gather(1, index) - 1)
        logits_MV.copy_(shares.mul_(real))
    return total


def cross_entropy(
    x_MD: Tensor,
    weight_VD: Tensor,
    targets_M: Tensor,
    turn: Callable[[Tensor, Tensor], Tensor] = to_gradient,
) -> Tensor:
    """Σ −log softmax(x·Wᵀ)[target] in nats over positions whose target is not negative. turn:
    `to_gradient`, or what a compiler made of it."""
    return CrossEntropyFunction.apply(x_MD, weight_VD, targets_M, turn)  # type: ignore[no-any-return, no-untyped-call]


class RMSNormFunction(torch.autograd.Function):
    """With x̂ = x / √(mean(x²) + ε) and v = w · dy: dx = (v − x̂ · mean(x̂ · v)) / √(…) and
    dw = Σ dy · x̂. The result has the type that the next product wants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        full = wide(x)
        scale = _scale(full, eps)
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (full * scale).mul_(weight).to(dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_norm_gradients(wide(gradients[0]), *ctx.saved_tensors), None, None


class NormRotateFunction(torch.autograd.Function):
    """RMSNormFunction's result is turned; its gradient is turned back."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTNH: Tensor,
        weight: Tensor,
        eps: float,
        cos: Tensor,
        sin: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        full = wide(x_BTNH)
        scale = _scale(full, eps)
        ctx.save_for_backward(x_BTNH, weight, scale, cos, sin)
        return _exchanged(_turn((full * scale).mul_(weight), cos, *sin.chunk(2, -1)), dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *of_norm, cos, sin = ctx.saved_tensors
        dy_BTNH = _exchanged(gradients[0], of_norm[2].dtype)
        dz_BTNH = _turn(dy_BTNH, cos, *reversed(sin.chunk(2, -1)))
        return *_norm_gradients(dz_BTNH, *of_norm), None, None, None, None


def _scale(full: Tensor, eps: float) -> Tensor:
    """1 / √(mean(x²) + ε)."""
    norm: Tensor = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
    return norm.square_().div_(full.shape[-1]).add_(eps).rsqrt_()


def _norm_gradients(dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dw: see RMSNormFunction."""
    normed = wide(x) * scale
    product = dy * normed
    mean = (product @ weight).div_(-x.shape[-1]).unsqueeze(-1)
    dw = product.flatten(0, -2).sum(0)
    dx = (dy * weight).addcmul_(normed, mean).mul_(scale)
    return dx.to(x.dtype), dw


def _turn(x_BTNH: Tensor, cos: Tensor, of_second: Tensor, of_first: Tensor) -> Tensor:
    """x · cos + (x with its halves exchanged) · sin, sin as its halves."""
    y = x_BTNH * cos.transpose(1, 2)
    first, second = x_BTNH.chunk(2, -1)
    y_first, y_second = y.chunk(2, -1)
    y_first.addcmul_(second, of_second.transpose(1, 2))
    y_second.addcmul_(first, of_first.transpose(1, 2))
    return y


def _exchanged(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions and heads exchanged; on a CPU in memory, too, where the next products want it."""
    x = x.transpose(1, 2)
    if x.device.type != "cpu":
        return x.to(dtype)
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous()


class SwiGLUFunction(torch.autograd.Function):
    """Its gradient is written into one array, where autograd would join two; silu(g) is kept."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        dy = gradients[0]
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, -1)
        torch.mul(dy, opened, out=d_up)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=d_gate)
        return out


class AttendFunction(torch.autograd.Function):
    """With shares P = softmax(QKᵀ/√H + bias) and dP = dY·Vᵀ: dV = Pᵀ·dY, dS = P ∘ (dP − Σ P ∘ dP),
    dQ = dS·K/√H, dK = dSᵀ·Q/√H. A half's part of dK and dV is added where autograd would fill it up
    with zeros, and the result lies in memory as the next product wants it."""

    @staticmethod
    def forward(
        ctx: Any, q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, bias: Tensor, causal: bool
    ) -> Tensor:
        B, N, T, H = q_BNTH.shape
        q, k, v = (x.flatten(0, 1) for x in (q_BNTH * H**-0.5, k_BNSH, v_BNSH))
        ctx.spans = _spans(T, k.shape[1], causal)
        shares = []
        y_BNTH = q_BNTH.new_empty(B, T, N, H).transpose(1, 2)
        for begin, end, seen in ctx.spans:
            scores = q[:, begin:end] @ k[:, :seen].mT
            scores.unflatten(0, (B, N)).add_(bias[..., begin:end, :seen])
            shares.append(scores.softmax(-1))
            y_BNTH[:, :, begin:end] = (shares[-1] @ v[:, :seen]).unflatten(0, (B, N))
        ctx.save_for_backward(q, k, v, *shares)
        return y_BNTH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        dy = gradients[0].flatten(0, 1)
        dq = torch.empty_like(q)
        total: list[Tensor] = []
        for (begin, end, seen), share in reversed(list(zip(ctx.spans, shares, strict=True))):
            d = dy[:, begin:end]
            ds = torch._softmax_backward_data(d @ v[:, :seen].mT, share, -1, share.dtype)
            dq[:, begin:end] = ds @ k[:, :seen]
            parts = [ds.mT @ q[:, begin:end], share.mT @ d]
            for sum_, part in zip(total, parts, strict=False):
                sum_[:, :seen] += part
            total = total or parts  # the last queries see all keys
        total.insert(0, dq.mul_(q.shape[-1] ** -0.5))
        B, N = gradients[0].shape[:2]
        return *(x.view(B, N, *x.shape[1:]) for x in total), None, None


class CrossEntropyFunction(torch.autograd.Function):
    """The logits become their gradient, softmax − one-hot, as soon as they are known, some rows at
    a time; nothing else of their size is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x_MD: Tensor,
        weight_VD: Tensor,
        targets_M: Tensor,
        turn: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        dtype = product_dtype(x_MD)
        kind = x_MD.device.type
        with torch.autocast(kind, enabled=False):
            x, weight = x_MD.to(dtype), weight_VD.to(dtype)
            logits_MV = x @ weight.T
            total = torch.zeros((), dtype=wide(x_MD[:0]).dtype, device=x.device)
            # what is compiled keeps nothing beside the logits
            most = max(1, (CHUNK[kind] if turn is to_gradient else MOST) // len(weight))
            parts = max(1, -(-len(x) // most))
            for some in zip(
                logits_MV.tensor_split(parts), targets_M[:, None].tensor_split(parts), strict=True
            ):
                total += turn(*some)
        ctx.save_for_backward(x, weight, logits_MV)
        ctx.dtypes = x_MD.dtype, weight_VD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, d_logits = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dx, dw = (d_logits @ weight).to(ctx.dtypes[0]), (d_logits.T @ x).to(ctx.dtypes[1])
        return dx.mul_(gradients[0]), dw.mul_(gradients[0]), None, None
