"""Tasks whose rows are whole examples: their order in training, and their padding.

Legend: B rows, T the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.tasks import Batch
from bigmodel_cli.tasks.packing import ORDER, generator

# rows sorted by length, and those of them that stay together: powers of 2, as micro-batches are
BLOCK, CHUNK = 2048, 64


class ShuffledPlan:
    """Every example once an epoch, in an order drawn anew; those that come together are of about
    the same length, so that little is padding. A pure function of (lengths, seed, epoch).

    make(examples, epochs) collates examples, each of which is in its epoch.
    """

    def __init__(
        self, lengths: NDArray[np.int64], seed: int,
        make: Callable[[NDArray[np.int64], NDArray[np.int64]], Batch],
    ) -> None:  # fmt: skip
        self.rows = len(lengths)
        self.row_tokens = float(lengths.mean()) if len(lengths) else 0.0
        self.even = len(lengths) > 0 and bool((lengths == lengths[0]).all())
        self._lengths, self._seed, self._make = lengths, seed, make
        self._orders: dict[int, NDArray[np.int64]] = {}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            random = generator(ORDER, self._seed, epoch)
            order = random.permutation(self.rows)
            for begin in range(0, self.rows, BLOCK):
                block = order[begin : begin + BLOCK]
                block = block[np.argsort(self._lengths[block], kind="stable")]
                chunks = [block[i : i + CHUNK] for i in range(0, len(block), CHUNK)]
                mixed = [chunks[i] for i in random.permutation(len(chunks))]
                order[begin : begin + BLOCK] = np.concatenate(mixed)
            self._orders = {**{k: v for k, v in self._orders.items() if k == epoch - 1},
                            epoch: order}  # fmt: skip
        return self._orders[epoch]

    def batch(self, position: int, count: int) -> Batch:
        epochs, places = np.divmod(np.arange(position, position + count), self.rows)
        examples = [self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)]
        return self._make(np.array(examples), epochs)


def by_length(
    lengths: NDArray[np.int64], rows: int, limit: int | None
) -> Iterator[NDArray[np.int64]]:
    """The examples in batches of at most `rows`, the longest first; of many only `limit`, evenly
    spread, since those that come first may be of one kind."""
    count = min(len(lengths), limit or len(lengths))
    chosen = np.arange(count) * len(lengths) // max(1, count)
    order = chosen[np.argsort(-lengths[chosen], kind="stable")]
    for first in range(0, len(order), rows):
        yield order[first : first + rows]


def padded(
    rows: Sequence[NDArray[Any]], value: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of unlike lengths as one array (B, T), padded on the right, and the segments (B, T): 0,
    and 1 where padding is."""
    lengths = np.array([len(row) for row in rows])
    there = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    whole = np.full(there.shape, value, np.int64)
    if lengths.any():
        whole[there] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return whole, (~there).astype(np.int64)
