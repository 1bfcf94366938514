"""Tokenizers: byte-level BPE, characters and bytes, all lossless on any text, in one file format.

All three are byte-level BPE models in `tokenizers` form, so that one decoder, and one table of
each token's raw bytes, serves them: `bytes` has no merges; `chars` merges the bytes of each
character and never across characters; `bpe` splits text with exactly Qwen2's regex (which other
engines know by name) and has no normalizer, so that nothing is lost.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.artifacts.growth import MOST_GROWTH, growth
from bigmodel_cli.artifacts.manifest import write_atomic
from bigmodel_cli.errors import ArtifactError, DataError
from bigmodel_cli.worker import beside

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "tokenizer.json"
ENDOFTEXT, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"
SPECIALS = (
    ENDOFTEXT,
    PAD,
    MASK,
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|spare_{i}|>" for i in range(11)),
)
# Qwen2's pre-tokenizer regex, to the letter: llama.cpp knows it as `qwen2`.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECE = 1 << 16  # a longer text is encoded in pieces of about so many bytes
BATCH = 1 << 20  # bytes that tokenizers encodes in one call, which bounds memory
FAST_BATCH = 4 << 20  # and gigatoken, whose result is smaller
CACHE = 384 << 20  # bytes that gigatoken may remember before it starts again
# What two encoders may see differently: digits, scripts, marks, emoji, spaces, controls, pieces
HARD = (
    "", " ", "  a  b", "\t\n \r\n\n x\u00a0y \u2028\u0085z\u3000", "1234567890" * 20,
    "3.14e-10, 0x1F", "I'LL can't we've 's 'S \u2019s", "snake_case HTTP2 __init__(self): #!?",
    "Zürich naïve ﬀ Ǆ ß e\u0301\u0300 \u0301", "Straße и Привет, Ελλάδα!", "שלום مرحبا ٣٤٥ ½²³ Ⅷ",
    "你好世界 日本語テキスト 한국어 ไทย हिन्दी मराठी",
    "🙂👩\u200d👩\u200d👧\u200d👦🇩🇪 \U000e0041\ufe0f",
    "\x00\x01\x1f\x7f\x9f\ufeff\ufffd", "\U0010ffff\ue000", "a" * 5000, "<s></s>[INST]",
    "<|endoftext|> <|im_start|>user<|im_end|>",
)  # fmt: skip
HINT = "build it again: bigmodel prepare SOURCE --force"
OTHER = (
    "use a tokenizer that has an unknown token, or a new one, which reads any text: bigmodel "
    "prepare SOURCE --tokenizer bpe"
)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, as ByteLevel uses it: character → byte."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in kept}
    shifted = (byte for byte in range(256) if byte not in set(kept))
    table.update({chr(256 + i): byte for i, byte in enumerate(shifted)})
    return table


ALPHABET = _byte_alphabet()


def peak_memory() -> int:
    """The most bytes of memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


class Tokenizer:
    """Text ↔ token ids. Special tokens spelled out in a text are plain text."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._fast: Any = None  # gigatoken's, once it is proved
        self._most_memory = 0
        self.inner.encode_special_tokens = True  # they are text unless we add them ourselves
        self.inner.no_truncation()
        self.inner.no_padding()
        if getattr(inner.model, "dropout", None):
            inner.model.dropout = None  # the same text has the same tokens
        self.size: int = inner.get_vocab_size(with_added_tokens=True)
        self.endoftext: int = inner.token_to_id(ENDOFTEXT)
        self.pad: int = inner.token_to_id(PAD)
        self.mask: int = inner.token_to_id(MASK)
        self._spec = spec = json.loads(inner.to_str())
        steps = (spec.get(name) for name in ("normalizer", "pre_tokenizer", "decoder"))
        if (grown := max(map(growth, steps))) > MOST_GROWTH:
            raise ValueError(f"it makes a text up to {grown:,.0f} times as long")
        decoder = spec.get("decoder") or {}
        parts = decoder.get("decoders", [decoder])
        self.byte_level = any(part.get("type") == "ByteLevel" for part in parts)
        self.specials = {
            token["id"]: token["content"] for token in spec["added_tokens"] if token["special"]
        }
        self.added = {token["id"] for token in spec["added_tokens"]}
        model = spec["model"]
        self.unknown: int | None = (  # what stands for text that has no token
            model["unk_id"]
            if model.get("unk_id") is not None
            else inner.token_to_id(model.get("unk_token") or "")
        )
        pre = spec.get("pre_tokenizer") or {}
        steps = pre.get("pretokenizers", [pre])
        self.pieces = (  # may a long text be cut at line ends before it is encoded?
            self.byte_level
            and spec.get("normalizer") is None
            and not any(step.get("add_prefix_space") for step in steps)
        )

        # special tokens that the model's vocabulary finds in a text which spells them
        own = model["vocab"] if isinstance(model["vocab"], dict) else dict(model["vocab"])
        whole = model["type"] != "BPE" or model.get("ignore_merges")  # else no merge makes them
        self._spelled = [
            token
            for token, text in self.specials.items()
            if whole and text in own and token != self.unknown
        ]

        self._ids_of_bytes: NDArray[Any] | None = None  # where each byte is a token
        odd = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
        if (
            self.pieces
            and spec["model"].get("merges") == []
            and not any(spec["model"].get(name) for name in odd)
            and [step.get("type") for step in steps] == ["ByteLevel"]
            and self.added <= {*self.specials}
        ):
            ids = [inner.token_to_id(char) for char in sorted(ALPHABET, key=ALPHABET.__getitem__)]
            self._ids_of_bytes = None if None in ids else np.array(ids, self.dtype)

    @property
    def dtype(self) -> Any:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.size <= 1 << 16 else np.uint32

    def hasten(self, texts: Sequence[str]) -> str:
        """Lets gigatoken encode from now on, where it can, provided that it gives the very ids of
        `tokenizers` for these texts and for HARD ones; if it does not, says where they differ.

        gigatoken never hears of the special tokens, since it would find them in a text.
        """
        if self._ids_of_bytes is not None:
            return ""
        try:
            self._renew()
        except Exception:  # it raises plain RuntimeError for a kind that it does not know
            return ""
        slow = copy.copy(self)
        slow._fast = None
        added = [f"a{t['content']} {t['content']}b" for t in self._spec["added_tokens"]]
        proof = [*HARD, *self.specials.values(), *added, *texts]
        found: list[tuple[NDArray[Any], NDArray[np.int64]]] = []
        try:
            with beside(lambda: found.append(slow.encode_batch(proof))):
                fast_ids, fast_counts = self.encode_batch(proof)
        except DataError:  # it has no token for a hard text
            self._fast = None
            return ""
        ids, counts = found[0]
        if np.array_equal(ids, fast_ids) and np.array_equal(counts, fast_counts):
            return ""
        self._fast = None
        place = 0  # of the first difference
        while np.array_equal(ids[: counts[place]], fast_ids[: fast_counts[place]]):
            ids, fast_ids = ids[counts[place] :], fast_ids[fast_counts[place] :]
            place += 1
        return f"gigatoken encodes {shorten(proof[place])} in another way"

    @functools.cached_property
    def _without_specials(self) -> str:
        known = [token for token in self._spec["added_tokens"] if not token["special"]]
        return json.dumps({**self._spec, "added_tokens": known})

    def _renew(self) -> None:
        import gigatoken

        self._fast = gigatoken.Tokenizer.from_json(self._without_specials)
        self._most_memory = peak_memory() + CACHE

    def encode_batch(
        self, texts: Sequence[str] | pa.Array
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """All texts' ids one after another, and each text's number of ids. No token is added."""
        import pyarrow as pa

        if isinstance(texts, pa.Array):
            _, places, data = texts.buffers()
            ends = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        else:
            parts = [text.encode() for text in texts]
            ends = np.cumsum([0, *map(len, parts)])
            data = pa.py_buffer(b"".join(parts))
        if self._fast and peak_memory() > self._most_memory:  # it never forgets a word
            self._renew()
        view = memoryview(data or b"")
        owner = None
        if self.pieces and len(texts) and np.diff(ends).max() > PIECE:
            sizes = [list(_pieces(view[begin:end])) for begin, end in itertools.pairwise(ends)]
            owner = np.repeat(np.arange(len(texts)), [len(part) for part in sizes])
            ends = ends[0] + np.cumsum([0, *itertools.chain.from_iterable(sizes)])
        if self._ids_of_bytes is not None:
            ids = [self._ids_of_bytes[np.frombuffer(view[ends[0] : ends[-1]], np.uint8)]]
            counts = np.diff(ends)
        else:
            pieces = pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), data)
            groups = _groups(np.diff(ends), FAST_BATCH if self._fast else BATCH)
            found = [self._encode(pieces[first:last]) for first, last in groups]
            ids = [part for part, _ in found]
            counts = np.concatenate([np.zeros(0, np.int64), *(part for _, part in found)])
        if owner is not None:
            counts = np.bincount(owner, counts, len(texts)).astype(np.int64)
        return (
            ids[0] if len(ids) == 1 else np.concatenate([np.zeros(0, self.dtype), *ids])
        ), counts

    def _encode(self, texts: pa.Array) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if self._fast:
            import awkward as ak

            found = self._fast.encode_batch(ak.from_arrow(texts))
            return ak.to_numpy(ak.flatten(found)).astype(self.dtype), ak.to_numpy(ak.num(found))
        parts = [np.array(item.ids, self.dtype) for item in self._items(texts.to_pylist())]
        ids = np.concatenate(parts)
        if self._spelled and (spelled := np.isin(ids, self._spelled)).any():
            if self.unknown is None:
                token = self.inner.id_to_token(int(ids[spelled][0]))
                raise DataError(
                    f"the tokenizer cannot encode a text that spells `{token}`: it has "
                    "no unknown token",
                    OTHER,
                )
            ids[spelled] = self.unknown
        return ids, np.array([len(part) for part in parts], np.int64)

    def _items(self, texts: Sequence[str]) -> Any:
        """Texts as `tokenizers` encodes them. Raises DataError for one that it cannot encode."""
        try:
            return self.inner.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            if not is_of_library(error):
                raise
            if len(texts) > 1:
                return [item for text in texts for item in self._items([text])]
            raise DataError(
                f"the tokenizer cannot encode `{shorten(texts[0])}`: {error}",
                OTHER,
            ) from None

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self.encode_batch([text])[0]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        if self.byte_level:
            table = self.token_bytes
            return b"".join(table[i] for i in ids).decode("utf-8", errors="replace")
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The raw bytes of each id; nothing for special tokens. Only of byte-level tokenizers."""
        known, as_latin = ALPHABET.keys(), str.maketrans({c: chr(b) for c, b in ALPHABET.items()})
        table = []
        for index in range(self.size):
            token = self.inner.id_to_token(index)
            if index in self.specials or token is None:
                table.append(b"")
            elif index not in self.added and known >= {*token}:
                table.append(token.translate(as_latin).encode("latin-1"))
            else:
                table.append(token.encode())
        return table

    @functools.cached_property
    def token_lengths(self) -> NDArray[np.int64]:
        """The number of raw bytes of each id: (V,)."""
        return np.array([len(raw) for raw in self.token_bytes], np.int64)

    @functools.cached_property
    def signature(self) -> str:
        """The beginning of the SHA-256 of its file: what two tokenizations have in common."""
        return hashlib.sha256(self.inner.to_str().encode()).hexdigest()[:12]

    def save(self, folder: Path) -> None:
        write_atomic(folder / FILE, self.inner.to_str(pretty=True).encode())


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    return json.dumps(text if len(text) <= 60 else text[:57] + "…", ensure_ascii=False)


def _pieces(text: memoryview) -> Iterator[int]:
    """The sizes of pieces of UTF-8 that end at line ends, else before spaces (where the regex would
    split as well), else anywhere between characters: the tokens are nearly those of the whole."""
    start = 0
    while len(text) - start > PIECE:
        window = bytes(text[start : start + PIECE])
        cut = window.rfind(b"\n") + 1 or max(0, window.rfind(b" ")) or PIECE
        while start + cut < len(text) and text[start + cut] & 0xC0 == 0x80:
            cut += 1
        yield cut
        start += cut
    yield len(text) - start


def _groups(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Neighbours of about so many bytes together: (first, last + 1)."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield first, last
        first = last


def is_of_library(error: BaseException) -> bool:
    """Whether `tokenizers` raised an error: it raises plain Exception, or what Rust panics with,
    which is none, as a signal is."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def load(folder: Path, hint: str = HINT) -> Tokenizer:
    """Reads tokenizer.json from a folder. Raises ArtifactError."""
    from tokenizers import Tokenizer as Inner

    path = folder / FILE
    try:
        tokenizer = Tokenizer(Inner.from_str(path.read_text("utf-8")))
    except FileNotFoundError:
        raise ArtifactError(f"there is no tokenizer at `{path}`", hint) from None
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise ArtifactError(f"the tokenizer `{path}` is corrupt: {error}", hint) from None
    if None in (tokenizer.endoftext, tokenizer.pad, tokenizer.mask):
        raise ArtifactError(f"the tokenizer `{path}` lacks {ENDOFTEXT}, {PAD} or {MASK}", hint)
    ids = tokenizer.inner.get_vocab(with_added_tokens=True).values()
    if max(ids) >= tokenizer.size or len({*ids}) < len(ids):
        raise ArtifactError(
            f"the tokenizer `{path}` has {tokenizer.size:,} tokens with {len({*ids}):,} ids of up "
            f"to {max(ids):,}: one token must have one id",
            hint,
        )
    return tokenizer


def default_vocabulary(size: int) -> int:
    """Tokens for `size` bytes of text: 1,024 under half a megabyte, 8,192 under 256, then more."""
    for limit, tokens in ((1 << 19, 1024), (4 << 20, 2048), (32 << 20, 4096), (256 << 20, 8192)):
        if size < limit:
            return tokens
    if size < 2 << 30:
        return 16384
    return 32768


def train(
    texts: Iterable[str], kind: str, size: int, wait: Callable[[Callable[[], None]], None]
) -> Tokenizer:
    """A new tokenizer of `kind` (bpe, chars, bytes) with at most `size` tokens.

    `wait` runs the training and returns when it is done: it may be interrupted.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    alphabet = sorted(ALPHABET, key=ALPHABET.__getitem__)
    start = {token: i for i, token in enumerate((*SPECIALS, *alphabet))}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def isolate(pattern: str) -> Any:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, byte_level])

    if kind == "bpe":
        inner = Inner(models.BPE())
        inner.pre_tokenizer = isolate(QWEN2)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIALS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        wait(lambda: inner.train_from_iterator(iter(texts), trainer))
    else:
        vocabulary, merges = dict(start), []
        if kind == "chars":
            letters = {byte: letter for letter, byte in ALPHABET.items()}
            for char in sorted(set().union(*texts)):
                token = ""
                for byte in char.encode():
                    if token and token + letters[byte] not in vocabulary:
                        merges.append((token, letters[byte]))
                        vocabulary[token + letters[byte]] = len(vocabulary)
                    token += letters[byte]
        inner = Inner(models.BPE(vocab=vocabulary, merges=merges))
        inner.pre_tokenizer = isolate(r"[\s\S]") if kind == "chars" else byte_level
        inner.add_special_tokens(list(SPECIALS))
    inner.decoder = decoders.ByteLevel()
    return finish(inner)


def finish(inner: Any) -> Tokenizer:
    """A tokenizer that begins every text with `<|endoftext|>`, as all of ours do."""
    from tokenizers import processors

    # Every engine that loads it starts a text from the same ids as training did.
    inner.post_processor = processors.TemplateProcessing(
        single=f"{ENDOFTEXT} $A",
        pair=f"{ENDOFTEXT} $A {ENDOFTEXT} $B:1",
        special_tokens=[(ENDOFTEXT, inner.token_to_id(ENDOFTEXT))],
    )
    return Tokenizer(inner)
