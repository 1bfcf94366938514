"""Which split a file's name says that it is of."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from bigmodel_cli.prepare.sources import Source, shown

SPLITS = {
    "train": ("train", "training", "训练", "訓練"),
    "val": ("val", "valid", "validation", "dev", "devel", "验证", "驗證", "开发", "開發"),
    "test": ("test", "testing", "eval", "evaluation", "t10k", "测试", "測試"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
# Latin letters around make another word of it, such as `contest`; Chinese is written without spaces
_WORD = re.compile(
    "|".join(
        word if ord(word[0]) > 0x7F else rf"(?<![a-z]){word}(?=(?:data|set)?(?![a-z]))"
        for word in sorted(_SPLIT_OF, key=len, reverse=True)
    )
)
_WITHIN_A_NAME = re.compile(r"(?<=[a-z])(?=[A-Z])")  # reviewsTrain is two words


def splits_in(name: str) -> set[str]:
    """The splits that the words of a name mean."""
    return {_SPLIT_OF[word] for word in _WORD.findall(_plain(name))}


def _plain(name: str) -> str:
    return _WITHIN_A_NAME.sub(" ", name).lower()


def recognise_splits(
    sources: Sequence[Source], say: Callable[[str], None] = lambda _: None
) -> list[Source]:
    """Marks what is named train, val or test, by a word of the file's name or a folder's, if
    something is named train and something else val or test; else a name means nothing.

    A text may be about a test or a train: of texts the word must come first, or what the rest of
    the name says must be named for another split, too.
    """
    rests: dict[str, set[str]] = {}
    for source in sources:
        for split in splits_in(_file(source)):
            rests.setdefault(_rest(source), set()).add(split)
    found: dict[Source, str | None] = {}
    unclear = []
    for source in sources:
        splits = _named(source, rests)
        found[source] = next(iter(splits)) if len(splits) == 1 else None
        if len(splits) > 1:
            unclear.append(source)
    if unclear:
        say(f"{shown(unclear)}: named for several splits, so the content decides the split")
    named = {split for split in found.values() if split}
    if "train" in named and named & {"val", "test"}:
        parts = [
            f"{split} {shown([s for s in sources if found[s] == split])}"
            for split in SPLITS
            if split in named
        ]
        others = [source for source in sources if not found[source]]
        say("splits by name: " + "; ".join(parts) + (f"; others {shown(others)}" if others else ""))
        return [dataclasses.replace(source, split=found[source]) for source in sources]
    held = [s for s in sources if found[s] in ("val", "test") and s.kind != "text"]
    if held and len(held) < len(sources):
        example = held[0]
        say(
            f"{shown(held)}: named for a split, but nothing is named for train, so the content "
            f"decides the split; to hold it out: --{found[example]} {example.path}"
        )
    return list(sources)


def _file(source: Source) -> str:
    return source.name.rpartition("/")[2]


def _rest(source: Source) -> str:
    """What a file's name says beside its split: neither numbers nor what stands between words."""
    return re.sub(r"[\W\d_]+", " ", _WORD.sub(" ", _plain(_file(source)))).strip()


def _named(source: Source, rests: dict[str, set[str]]) -> set[str]:
    """The splits that a source is named for: by its file, else by the nearest folder."""
    if source.path is None:
        return set()
    *folders, file = source.name.split("/")
    if source.kind == "image":  # whose folder is its class
        file = ""
        folders = folders[:-1] if not source.folders else folders
    splits = splits_in(file)
    alike = len(rests.get(_rest(source), ())) > 1
    if splits and (source.kind != "text" or _WORD.match(_plain(file)) or alike):
        return splits
    for folder in reversed(folders):
        key, equals, _ = folder.partition("=")
        if (not equals or key.lower() == "split") and (splits := splits_in(folder)):
            return splits
    return set()
