"""Where to compute, and in which precision."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch

from bigmodel_cli.errors import NO_THREAD, ResourceError, UsageError
from bigmodel_cli.worker import can_start

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def set_up(device: str, threads: int) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here; `threads` CPU threads, 0 for one per
    core that this process may use, shared with torchrun's others on this machine. Raises UsageError
    when there is no GPU, ResourceError when the system has not so many threads to give."""
    threads = threads or max(1, len(os.sched_getaffinity(0)) // neighbours())
    if threads > 1 and not can_start(threads):
        raise ResourceError(f"the system does not have {threads} threads to give", NO_THREAD)
    torch.set_num_threads(threads)
    _keep_freed_memory()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device is `cuda`, but torch finds none here", "use --device cpu")
    if device == "cuda":  # said of a backward pass whose first kernel is a product; it goes well
        warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA")
    if device == "cuda" and neighbours() > 1:
        torch.cuda.set_device(_local("LOCAL_RANK", 0) % torch.cuda.device_count())
    return torch.device(device)


def neighbours() -> int:
    """How many of torchrun's ranks there are on this machine."""
    return max(1, _local("LOCAL_WORLD_SIZE", 1))


def _local(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _keep_freed_memory() -> None:
    """Has glibc keep what tensors free for the next ones, instead of giving it back to the system,
    which hands out and clears each page again: up to a fifth of a CPU's training time."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for setting, value in (
            (M_MMAP_THRESHOLD, 32 << 20),
            (M_TRIM_THRESHOLD, (1 << 31) - 1),
            (M_TOP_PAD, 256 << 20),
        ):
            libc.mallopt(setting, value)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool((probe and probe()) or (amx and amx()))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 computes matrix products in bfloat16; weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def cannot_compile(device: torch.device) -> str:
    """Why torch.compile does not work here; nothing if it does."""
    import torch._inductor.config as inductor

    inductor.fallback_random = True  # dropout draws what it would draw without
    inductor.compile_threads = 1  # no other processes, which a signal would reach, too
    try:
        torch.compile(lambda x: (x + 1).relu(), dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds: no compiler, no room, no permission
        return next(iter(str(error).splitlines()), type(error).__name__)[:200]
    return ""
