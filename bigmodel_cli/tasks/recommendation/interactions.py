"""Interactions of users with items: cleaned, cut down to a stable core, and split by user or time.

All of them are in memory at once, as a few numbers each; names are kept once. Legend: n
interactions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigmodel_cli.artifacts.ledger import SHOWN, Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import Rows, Units
from bigmodel_cli.tasks.clean import as_array, as_column, trimmed

PARTS = ("train", "val", "test")
BLOCK = 1 << 20  # interactions in one batch of units
NAMES = {  # by which columns go, in small letters and without `_`
    "user": ("user", "userid", "uid", "customer", "customerid", "visitorid", "reviewerid",
             "member", "memberid", "session", "sessionid"),
    "item": ("item", "itemid", "iid", "movie", "movieid", "product", "productid", "asin",
             "parentasin", "article", "articleid", "track", "trackid", "song", "songid", "book",
             "bookid", "businessid", "gameid", "recipeid"),
    "timestamp": ("timestamp", "time", "ts", "datetime", "date", "createdat", "unixreviewtime",
                  "eventtime", "tdat"),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
}  # fmt: skip
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True, slots=True)
class Interactions:
    """Columns (n,) in the order of the files. users, items: places in the lists of names; times:
    numbers, or None; parts: of PARTS, what their source was named for; sizes: bytes of text.
    where: of each interaction."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.float64] | None
    parts: NDArray[np.int8]
    sizes: NDArray[np.int32]
    user_names: list[str]
    item_names: list[str]
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.users)


def usual(columns: Iterable[str], name: str) -> list[str]:
    """The columns whose names are usual for what the task calls `name`, the best first."""
    plain = {column.lower().replace("_", "").replace(" ", ""): column for column in columns}
    return [plain[known] for known in NAMES[name] if known in plain]


def numbers(texts: pa.Array) -> NDArray[np.float64]:
    """Numbers, or ISO dates as seconds since 1970 (UTC, unless they say otherwise): (n,); not a
    number for what is neither."""
    for read in (_plain, _dates):
        try:
            values = read(texts)
        except pa.ArrowInvalid:
            continue
        return values
    texts = pc.utf8_trim_whitespace(texts)
    plain = as_array(pc.fill_null(pc.match_substring_regex(texts, NUMBER), False))
    values = np.full(len(texts), math.nan)
    if plain.any():
        values[plain] = _plain(texts.take(as_column(np.flatnonzero(plain))))
    for place in np.flatnonzero(~plain).tolist():
        try:
            date = datetime.fromisoformat(texts[place].as_py() or "")
            values[place] = date.replace(tzinfo=date.tzinfo or UTC).timestamp()
        except (ValueError, OverflowError):
            continue
    return values


def _plain(texts: pa.Array) -> NDArray[np.float64]:
    return _doubles(pc.cast(texts, pa.float64()))


def _dates(texts: pa.Array) -> NDArray[np.float64]:
    local = pc.replace_substring_regex(texts, r"(Z|\+00:00)$", "")
    return _doubles(pc.cast(pc.cast(local, pa.timestamp("us")), pa.int64())) / 1e6


def _doubles(column: pa.Array) -> NDArray[np.float64]:
    """The values of numbers, not a number where there is none."""
    values: NDArray[np.float64] = column.to_numpy(zero_copy_only=False).astype(np.float64)
    values[~np.isfinite(values)] = math.nan
    return values


class _Names:
    """Texts by number, in the order in which they are first seen."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def codes(self, column: pa.Array) -> NDArray[np.int32]:
        """The number of each text: (n,); −1 where there is none."""
        coded = pc.dictionary_encode(trimmed(column))
        known = self._numbers
        table = [
            known.setdefault(name, len(known)) if name else -1
            for name in coded.dictionary.to_pylist()
        ]
        places = as_array(pc.fill_null(coded.indices, len(table)))
        codes: NDArray[np.int32] = np.array([*table, -1], np.int32)[places]
        return codes

    def texts(self) -> list[str]:
        return list(self._numbers)


def collect(rows: Iterable[Rows], ledger: Ledger, min_rating: float | None) -> Interactions:
    """Reads all rows; drops those without a user, an item, a time that can be read, or a rating
    that is high enough."""
    users, items = _Names(), _Names()
    parts: list[tuple[NDArray[Any], ...]] = []
    first, places, wheres = [0], [], []
    timed: set[bool] = set()
    for batch in rows:
        table = batch.table
        names = [
            name for name in ("user", "item", "timestamp", "rating") if name in table.schema.names
        ]
        sizes = sum(
            as_array(pc.fill_null(pc.binary_length(table.column(name)), 0)) for name in names
        )
        assert isinstance(sizes, np.ndarray)
        ledger.came_in(len(sizes), int(sizes.sum()))
        timed.add("timestamp" in names)
        if len(timed) > 1:
            raise DataError(
                f"{batch.where(0)}: some sources have timestamps and some have none, so there is "
                "no order in time",
                "leave one kind out with --exclude, or name the column: --column timestamp=NAME",
            )
        user, item = users.codes(table.column("user")), items.codes(table.column("item"))
        reasons = {"no_user": user < 0, "no_item": item < 0}
        times = np.zeros(0)
        if "timestamp" in names:
            times = numbers(table.column("timestamp"))
            reasons["bad_timestamp"] = np.isnan(times)
        if min_rating is not None:
            rating = numbers(table.column("rating"))
            reasons["bad_rating"] = np.isnan(rating)
            reasons["low_rating"] = rating < min_rating
        kept = np.ones(len(user), bool)
        for reason, bad in reasons.items():
            drop(ledger, reason, np.flatnonzero(bad & kept), sizes, batch.where)
            kept &= ~bad
        part = np.full(int(kept.sum()), PARTS.index(batch.split or "train"), np.int8)
        parts.append(
            (
                user[kept],
                item[kept],
                times[kept] if len(times) else times,
                part,
                sizes[kept].astype(np.int32),
            )
        )
        first.append(first[-1] + len(part))
        places.append(np.flatnonzero(kept).astype(np.int32))
        wheres.append(batch.where)

    def where(index: int) -> str:
        number = int(np.searchsorted(first, index, side="right")) - 1
        return wheres[number](int(places[number][index - first[number]]))

    if not parts:
        parts = [
            (
                np.zeros(0, np.int32),
                np.zeros(0, np.int32),
                np.zeros(0),
                np.zeros(0, np.int8),
                np.zeros(0, np.int32),
            )
        ]
    user, item, times, part, size = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Interactions(user, item, times if timed == {True} else None, part, size, users.texts(),
                        items.texts(), where)  # fmt: skip


def drop(
    ledger: Ledger,
    reason: str,
    places: NDArray[np.int64],
    sizes: NDArray[Any],
    where: Callable[[int], str],
) -> None:
    """Counts many rows at once; the first are named."""
    for place in places[:SHOWN].tolist():
        ledger.drop(reason, int(sizes[place]), where(place))
    rest = places[SHOWN:]
    if len(rest):
        ledger.drop(reason, int(sizes[rest].sum()), "", len(rest))


def repeats(data: Interactions, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The interactions that say again what another of the same user, item and time said before
    them; `order` sorts by user and time, and leaves the rest as it was."""
    assert data.times is not None
    users, times = data.users[order], data.times[order]
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    tied = np.flatnonzero(np.append(False, same) | np.append(same, False))
    runs = np.cumsum(np.append(True, ~same))[tied]
    items = data.items[order[tied]]
    within = np.lexsort((items, runs))  # stable: the first of equal ones stays the first
    again = (np.diff(runs[within]) == 0) & (np.diff(items[within]) == 0)
    found: NDArray[np.int64] = np.sort(order[tied[within[1:][again]]])
    return found


def sifted(data: Interactions, ledger: Ledger, least: int) -> tuple[NDArray[np.int64], list[str]]:
    """What is left of them, by user, part and time (then as in the files); and what to say of it.
    Drops repeats, and users and items with fewer than `least`."""
    remarks = []
    left = np.ones(len(data), bool)
    if data.times is None:
        order = np.argsort(data.users, kind="stable")
        remarks.append("no timestamps: rows are taken to be in their order in time")
        pairs = data.users.astype(np.int64) * max(1, len(data.item_names)) + data.items
        both = int(np.isin(pairs[data.parts > 0], pairs[data.parts == 0]).sum())
        if both:
            remarks.append(
                f"{both:,} interactions of val and test are in train, too: without timestamps it "
                "it is unknown whether they are the same ones"
            )
    else:
        order = np.lexsort((data.times, data.users))
        again = repeats(data, order)
        drop(ledger, "duplicate_exact", again, data.sizes, data.where)
        left[again] = False
    places = np.flatnonzero(left)
    for reason, rare in core(data.users[places], data.items[places], least):
        drop(ledger, reason, places[rare], data.sizes, data.where)
        left[places[rare]] = False
    order = order[left[order]]
    if data.times is not None:
        same = (np.diff(data.users[order]) == 0) & (np.diff(data.times[order]) == 0)
        if same.any():
            remarks.append(
                f"{int(same.sum()):,} of {len(order):,} interactions have the same user and time "
                "as the one before: these stay in the order of the files"
            )
    return order[np.lexsort((data.parts[order], data.users[order]))], remarks


def core(
    users: NDArray[np.int32], items: NDArray[np.int32], least: int
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """What to leave out, (reason, places), until each user and each item that is left has at least
    so many interactions: one and the same rest, in whatever order they go."""
    left = np.arange(len(users))
    while True:
        before = len(left)
        for reason, codes in (("rare_user", users), ("rare_item", items)):
            rare = np.bincount(codes[left])[codes[left]] < least if len(left) else left < 0
            if rare.any():
                yield reason, left[rare]
                left = left[~rare]
        if len(left) == before:
            return


def hold_out(
    data: Interactions, order: NDArray[np.int64], by: str, shares: Mapping[str, float]
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """The part, of PARTS, of each interaction in `order`, which is given again by user and part:
    (n,) both. Parts that were named stay; of the rest, those with a share are held out."""
    parts = data.parts[order].copy()
    held = [number for number in (2, 1) if shares.get(PARTS[number])]
    free = np.flatnonzero(parts == 0)
    if by == "time":
        times = order if data.times is None else data.times[order]
        ordered = np.sort(times[free])
        begin, end = len(ordered), math.inf
        for number in held:
            begin -= round(len(ordered) * shares[PARTS[number]])
            instant = ordered[begin] if begin < len(ordered) else end
            parts[free[(times[free] >= instant) & (times[free] < end)]] = number
            end = instant
    elif len(free):
        users = data.users[order][free]
        ends = np.append(np.flatnonzero(np.diff(users)) + 1, len(users))
        enough = np.diff(ends, prepend=0) > len(held)  # something is left to train on
        for back, number in enumerate(held, 1):
            parts[free[ends[enough] - back]] = number
    again = np.lexsort((parts, data.users[order]))
    return order[again], parts[again]


def catalogue(
    data: Interactions, order: NDArray[np.int64], parts: NDArray[np.int8]
) -> tuple[list[str], list[int], NDArray[np.int32]]:
    """The items of the interactions in `order`, the most frequent of training first; how often
    each is there; and the new number of each item that was read, or −1."""
    names, number = data.item_names, len(data.item_names)
    there = np.bincount(data.items[order], minlength=number) > 0
    counts = np.bincount(data.items[order][parts == 0], minlength=number)
    ranked = sorted(np.flatnonzero(there).tolist(), key=lambda item: (-counts[item], names[item]))
    numbers_ = np.full(number, -1, np.int32)
    numbers_[ranked] = np.arange(len(ranked), dtype=np.int32)
    return [names[item] for item in ranked], counts[ranked].tolist(), numbers_


def histories(
    data: Interactions,
    order: NDArray[np.int64],
    parts: NDArray[np.int8],
    item_names: Sequence[str],
    numbers_: NDArray[np.int32],
) -> Iterator[Units]:
    """Each user's part of each split that has one, as a unit: `items`, those interactions, and
    `before`, the user's earlier ones. `order` is by user and part."""
    users, items, sizes = data.users[order], numbers_[data.items[order]], data.sizes[order]
    names = pa.array(item_names, pa.large_string())
    ends = np.append(np.flatnonzero(np.diff(users)) + 1, len(users))[: len(users)]
    starts = np.append(0, ends[:-1])[: len(ends)]
    sums = np.append(0, np.cumsum(sizes, dtype=np.int64))
    for number, part in reversed([*enumerate(PARTS)]):
        within = np.append(0, np.cumsum(parts < number))
        begins = starts + (within[ends] - within[starts])
        within = np.append(0, np.cumsum(parts <= number))
        stops = starts + (within[ends] - within[starts])
        there = stops > begins
        first, begin, stop = starts[there], begins[there], stops[there]
        blocks = (np.cumsum(stop - first) - 1) // BLOCK
        for block in np.split(np.arange(len(first)), np.flatnonzero(np.diff(blocks)) + 1):
            if len(block):
                a, b, c = first[block], begin[block], stop[block]
                who = [data.user_names[user] for user in users[a].tolist()]
                yield Units(
                    pa.RecordBatch.from_arrays(
                        [_lists(items, b, c), _lists(items, a, b)], names=["items", "before"]
                    ),
                    _keys(who, part, names, items, a, b, c),
                    sums[c] - sums[b],
                    part,
                    lambda index, who=who: f"user `{who[index]}`",  # type: ignore[misc]
                    rows=c - b,
                )


def _runs(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all runs, one after another."""
    lengths = ends - begins
    shifts = begins - np.cumsum(lengths) + lengths
    numbers_: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(shifts, lengths)
    return numbers_


def _lists(
    items: NDArray[np.int32], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> pa.Array:
    offsets = as_column(np.append(0, np.cumsum(ends - begins)))
    return pa.LargeListArray.from_arrays(offsets, as_column(items[_runs(begins, ends)]))


def _keys(
    who: list[str],
    part: str,
    names: pa.Array,
    items: NDArray[np.int32],
    firsts: NDArray[np.int64],
    begins: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> pa.Array:
    """What a unit is: user, split and all of the history by names. No two of a user are alike."""
    heads = [
        f"{part} {scored} {len(user)} {user}"
        for user, scored in zip(who, (stops - begins).tolist(), strict=True)
    ]
    texts = names.take(as_column(items[_runs(firsts, stops)]))
    offsets = as_column(np.append(0, np.cumsum(stops - firsts)).astype(np.int32))
    line = pa.scalar("\n", pa.large_string())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), line)
    return pc.binary_join_element_wise(pa.array(heads, pa.large_string()), joined, line)
