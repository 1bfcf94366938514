"""Tasks whose rows are whole examples: their order in training, and their padding.

Legend: B rows, T the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.tasks import Batch, Plan
from bigmodel_cli.tasks.packing import ORDER, generator

LIKE = 0.75  # rows that are padded together are at least so long, as a share of the longest


class ShuffledPlan(Plan):
    """Every example once an epoch, in an order of its own: a pure function of (seed, epoch).

    Whatever rows follow each other are a fair sample of the split. Lengths tell much about what a
    row is, such as its class, so only rows of the same update are put together by their lengths.

    make(examples, epochs) collates examples, each of which is in its epoch.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        seed: int,
        make: Callable[[NDArray[np.int64], NDArray[np.int64]], Batch],
    ) -> None:
        self.rows = len(lengths)
        self.row_tokens = float(lengths.mean()) if len(lengths) else 0.0
        self.even = len(lengths) > 0 and bool((lengths == lengths[0]).all())
        self._lengths, self._seed, self._make = lengths, seed, make
        self._orders: dict[int, NDArray[np.int64]] = {}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            order = generator(ORDER, self._seed, epoch).permutation(self.rows)
            self._orders = {
                **{k: v for k, v in self._orders.items() if k == epoch - 1},
                epoch: order,
            }
        return self._orders[epoch]

    def _examples(self, position: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows' examples, and the epoch of each."""
        epochs, places = np.divmod(np.arange(position, position + count), self.rows)
        examples = [self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)]
        return np.array(examples, np.int64), epochs

    def batch(self, position: int, count: int) -> Batch:
        return self._make(*self._examples(position, count))

    def parts(self, position: int, count: int, most: int) -> Iterator[Batch]:
        """The longest rows first, so that memory that does not suffice shows at once."""
        examples, epochs = self._examples(position, count)
        longest_first = np.argsort(-self._lengths[examples], kind="stable")
        examples, epochs = examples[longest_first], epochs[longest_first]
        lengths = self._lengths[examples]
        begin = 0
        while begin < count:
            alike = int((lengths[begin:] >= LIKE * lengths[begin]).sum())
            end = begin + min(alike, most)
            yield self._make(examples[begin:end], epochs[begin:end])
            begin = end


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
