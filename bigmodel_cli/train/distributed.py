"""Several processes that train one model: the ranks that torchrun starts.

Each takes a part of every update's rows; the gradients are summed, so that an update is the same
however many ranks share it. All of them decide the same at the same places: what depends on the
clock, the disk or a signal is decided by rank 0, or by all together. Rank 0 alone writes.
Without torchrun there is one rank, and all of this does nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from bigmodel_cli.errors import BigmodelError, StopError, StoppedError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"the environment has {name}=`{text}`", "unset it, or start with torchrun")
    return int(text)


def world() -> int:
    """How many ranks there are."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number among them."""
    return _number("RANK", 0) if world() > 1 else 0


def leads() -> bool:
    return rank() == 0


def share(rows: int) -> tuple[int, int]:
    """The first and the last + 1 of an update's rows that are this rank's."""
    return rows * rank() // world(), rows * (rank() + 1) // world()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Meets the other ranks, and leaves them at the end. Raises StoppedError when they are not
    there."""
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    with _together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of any kind: torch has no name for it
        if type(error).__name__ == "OutOfMemoryError":
            raise
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise StoppedError(
            f"rank {rank()} has lost the others: {text[:200]}",
            "see what the first rank to end said, and run the same command again",
        ) from error


def lead(decide: Callable[[], T]) -> T:
    """What rank 0 decides (of JSON's kinds), on every rank; all end when it raises an error, and it
    alone says so."""
    if world() == 1:
        return decide()
    import torch
    import torch.distributed as dist

    message: dict[str, Any] = {}
    failure: BigmodelError | StopError | None = None
    if leads():
        try:
            message = {"value": decide()}
        except (BigmodelError, StopError) as error:
            failure = error
            message = {"code": error.code}
    data = bytearray(json.dumps(message).encode())
    size = torch.tensor([len(data)])
    with _together():
        dist.broadcast(size, src=0)
        text = (
            torch.frombuffer(data, dtype=torch.uint8)
            if leads()
            else torch.empty(int(size), dtype=torch.uint8)
        )
        dist.broadcast(text, src=0)
    if failure:
        raise failure
    message = json.loads(bytes(text.tolist()))
    if "code" in message:
        raise SystemExit(message["code"])
    return message["value"]  # type: ignore[no-any-return]


def total(*numbers: float) -> list[float]:
    """The sums over all ranks."""
    if world() == 1:
        return [*numbers]
    import torch
    import torch.distributed as dist

    sums = torch.tensor(numbers, dtype=torch.float64)
    with _together():
        dist.all_reduce(sums)
    return [float(x) for x in sums]


def any_(flag: bool) -> bool:
    """Whether it holds on any rank."""
    return total(flag)[0] > 0


def of_rank_0(number: float) -> float:
    """Rank 0's number."""
    return total(number if leads() else 0.0)[0]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Makes each weight's gradient the sum over all ranks."""
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    weights = list(parameters)
    parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    flat = torch.cat([part.flatten() for part in parts])
    with _together():
        dist.all_reduce(flat)
    sums = torch.split(flat, [part.numel() for part in parts])
    for weight, part in zip(weights, sums, strict=True):
        weight.grad = part.view_as(weight)


def same_weights(parameters: Iterable[Tensor]) -> None:
    """Gives all ranks rank 0's weights, with which they begin."""
    if world() == 1:
        return
    import torch.distributed as dist

    with _together():
        for weight in parameters:
            dist.broadcast(weight.detach(), src=0)


def check_weights(parameters: Iterable[Tensor]) -> None:
    """Raises BigmodelError unless all ranks hold the same weights, bit for bit."""
    if world() == 1:
        return
    digest = hashlib.sha256()
    for weight in parameters:
        digest.update(weight.detach().cpu().numpy().tobytes())
    number = int.from_bytes(digest.digest()[:6], "big")  # exact as a float
    if any_(of_rank_0(number) != number):
        raise BigmodelError(
            "the ranks hold different weights: they are of unlike processors, or one of them errs",
            "train on machines of one kind",
        )
