"""What a model is made of, and the named sizes. No torch: `--help` prints this table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import ArtifactError, UsageError, did_you_mean

# positions that attend to each other in plain matrix products on a CPU; the square of more would
# fill the memory
LONGEST_PRODUCT = 1024
MOST, MOST_PIXELS = 1 << 40, 1024  # of any number that describes a model, and of an image's side


@dataclass(frozen=True)
class Convolution:
    """A square kernel over `inputs` channels, moved by `stride`; `positions`: how many results
    each of its `outputs` has in a row."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    positions: int


@dataclass(frozen=True)
class Picture:
    """Rows that are images of `channels` × `size` × `size` values, which the model sees as a
    sequence of patches of `patch` a side.

    stem: `patch` makes each square a position by one matrix (Dosovitskiy et al. 2020); `conv` by
    small kernels that overlap (Xiao et al. 2021).
    """

    channels: int
    size: int
    patch: int
    stem: str = "patch"

    @property
    def positions(self) -> int:
        return (self.size // self.patch) ** 2

    def convolutions(self, width: int) -> list[Convolution]:
        """From pixels to positions of `width`. Of a `conv` stem the first keeps the size, the
        others divide it by the prime factors of the patch and add channels."""
        if self.stem == "patch":
            return [Convolution(self.channels, width, self.patch, self.patch, self.positions)]
        strides, rest = [1], self.patch
        while rest > 1:
            strides.append(next(n for n in range(2, rest + 1) if rest % n == 0))
            rest //= strides[-1]
        strides += [1] * (len(strides) == 1)
        found, inputs, side = [], self.channels, self.size
        for number, stride in enumerate(strides, 1):
            outputs = max(8, width >> (len(strides) - number)) if number < len(strides) else width
            side //= stride
            kernel = max(3, stride | 1)  # odd, so that the middle of each is its place
            found.append(Convolution(inputs, outputs, kernel, stride, side * side))
            inputs = outputs
        return found


@dataclass(frozen=True)
class Shape:
    """What a task asks of a model.

    vocabulary: number of token ids in and out; context: the longest row in tokens;
    causal: whether position t may see only positions ≤ t; classes: if any, a row is one of them,
    and the model gives their logits, not its tokens'; prefix: whether rows of a causal model begin
    with a part that a transformer sees both ways; picture: what rows are instead of tokens, if
    anything.
    """

    vocabulary: int
    context: int
    causal: bool
    classes: int = 0
    prefix: bool = False
    picture: Picture | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a model's tensors; saved beside its weights."""

    family: str  # transformer | rnn | mlp
    shape: Shape
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    cell: str
    window: int
    tied: bool
    dropout: float = 0.0

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> ModelConfig:
        """Raises ArtifactError for a document that describes no model."""
        try:
            shape = Shape(**document["shape"])
            if isinstance(shape.picture, Mapping):
                shape = dataclasses.replace(shape, picture=Picture(**shape.picture))
            config = ModelConfig(**{**document, "shape": shape})
            wrong = _impossible(config)
        except (KeyError, TypeError) as error:
            wrong = str(error)
        if wrong:
            raise ArtifactError(
                f"the model's configuration is corrupt: {wrong}", "train again, or deploy again"
            )
        return config

    @property
    def mixing(self) -> int:
        """Features inside of the part of a Mixer that mixes positions."""
        return max(16, self.hidden // 4)

    @property
    def parameters(self) -> int:
        """The number of trained weights, by formula."""
        D, V, H, L = self.width, self.shape.vocabulary, self.hidden, self.layers
        C = self.shape.classes
        if self.family == "transformer":
            kv = self.kv_heads * self.head_width
            body = L * (2 * D * D + 2 * D * kv + 3 * D * H + 2 * D + 2 * self.head_width)
        elif self.family == "rnn":
            gates = {"elman": 1, "gru": 3, "lstm": 4}[self.cell]
            part = D if self.shape.causal else D // 2
            directions = 1 if self.shape.causal else 2
            body = L * (directions * gates * (D * part + part * part + 2 * part) + D)
        elif self.shape.picture:
            body = L * (2 * self.shape.context * self.mixing + 2 * D * H + 2 * D)
        else:
            body = max(1, self.window) * D * D + L * (2 * D * H + D)
        embed = V * D
        if self.shape.picture:
            kernels = self.shape.picture.convolutions(D)
            embed = self.shape.context * D + sum(_weights(kernel) for kernel in kernels)
            embed += sum(2 * kernel.outputs for kernel in kernels[:-1])  # of their norms
        if C:
            return body + D + embed + (D + 1) * C
        return body + D + embed * (1 if self.tied else 2)


def _impossible(config: ModelConfig) -> str:
    """What no model has, in words; nothing if all is well. Raises TypeError for a value of another
    type than its field's."""
    shape, picture = config.shape, config.shape.picture
    for part in (config, shape, *([picture] if picture else [])):
        for item in dataclasses.fields(part):  # type: ignore[arg-type]
            value, kinds = getattr(part, item.name), {"int": int, "bool": bool, "str": str}
            kind = kinds.get(str(item.type))
            if kind and type(value) is not kind:
                raise TypeError(f"`{item.name}` is `{value}`, but must be of type {item.type}")
            least = 0 if item.name in ("vocabulary", "classes", "window") else 1
            if kind is int and not least <= value <= MOST:
                return f"`{item.name}` is {value:,}"
    if config.family not in ("transformer", "rnn", "mlp"):
        return f"`family` is `{config.family}`"
    if config.cell not in ("elman", "gru", "lstm"):
        return f"`cell` is `{config.cell}`"
    if not isinstance(config.dropout, int | float) or not 0 <= config.dropout < 1:
        return f"`dropout` is `{config.dropout}`"
    if config.width % config.heads or config.heads % config.kv_heads:
        return f"{config.width} features, {config.heads} heads and {config.kv_heads} for keys"
    if picture is None:
        return "" if shape.vocabulary else "`vocabulary` is 0"
    if not isinstance(picture, Picture):
        return "`picture` is unknown"
    if picture.channels not in (1, 3) or picture.size > MOST_PIXELS or picture.size % picture.patch:
        return f"images of {picture.channels} × {picture.size} in patches of {picture.patch}"
    return "" if picture.positions == shape.context else f"`context` is {shape.context}"


def _weights(kernel: Convolution) -> int:
    return kernel.inputs * kernel.outputs * kernel.kernel**2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one text's tokens are chosen. temperature 0: the most likely one; top_k 0 and top_p 1:
    no limit. The same seed gives the same text."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Search:
    """How the most likely text is searched for. beam: texts that go on side by side, of which 1 is
    greedy; penalty: the power α of the length by which a text's log probability is divided."""

    beam: int = 5
    penalty: float = 1.0


# width, layers, heads: about 1, 4, 11, 42 and 124 million weights with small vocabularies
SIZES: dict[str, dict[str, tuple[int, int, int]]] = {
    "nano": {"transformer": (128, 4, 4), "rnn": (192, 3, 1), "mlp": (160, 2, 1)},
    "micro": {"transformer": (256, 4, 4), "rnn": (384, 3, 1), "mlp": (320, 2, 1)},
    "mini": {"transformer": (384, 6, 6), "rnn": (640, 3, 1), "mlp": (512, 3, 1)},
    "small": {"transformer": (512, 12, 8), "rnn": (1024, 4, 1), "mlp": (1024, 2, 1)},
    "base": {"transformer": (768, 12, 12), "rnn": (1280, 4, 1), "mlp": (1280, 3, 1)},
}
TABLE_VOCABULARIES = {"nano": 2048, "micro": 2048, "mini": 2048, "small": 8192, "base": 50304}


def hidden_width(family: str, width: int) -> int:
    """8/3 of the width in a transformer (SwiGLU's three matrices), else 4 times; by 64s."""
    wanted = width * 8 / 3 if family == "transformer" else width * 4
    return max(64, round(wanted / 64) * 64)


def model_config(
    family: str,
    size: str,
    shape: Shape,
    *,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
    cell: str = "lstm",
    window: int = 16,
    tie: bool = True,
    dropout: float = 0.0,
) -> ModelConfig:
    """A named size with what was set otherwise. Raises UsageError for sizes that do not fit."""
    if size not in SIZES:
        raise UsageError(f"--size is `{size}`", did_you_mean(size, SIZES))
    base_width, base_layers, base_heads = SIZES[size][family]
    width = width or base_width
    if heads is None:
        heads = base_heads if width == base_width else max(1, width // 64)
        heads = heads if family == "transformer" and width % heads == 0 else 1
    if width % heads or (family == "transformer" and width // heads % 2):
        raise UsageError(
            f"--width {width} cannot be cut into --heads {heads} of an even width",
            "choose a width that is a multiple of twice the heads",
        )
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise UsageError(f"--heads {heads} is not a multiple of --kv-heads {kv_heads}")
    if family == "rnn" and not shape.causal and width % 2:
        raise UsageError(f"--width {width} must be even for an rnn of two directions")
    return ModelConfig(
        family=family,
        shape=shape,
        width=width,
        layers=layers or base_layers,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden or hidden_width(family, width),
        cell=cell,
        window=window,
        tied=tie and not shape.classes,
        dropout=dropout,
    )


def size_table() -> list[tuple[str, str, str, str]]:
    """For the help: size, and each family's shape with its millions of weights."""
    rows = []
    for size, families in SIZES.items():
        cells = []
        for family in families:
            config = model_config(family, size, Shape(TABLE_VOCABULARIES[size], 256, True))
            heads = f", {config.heads} heads" if family == "transformer" else ""
            cells.append(f"{config.layers}×{config.width}{heads}: {config.parameters / 1e6:.1f} M")
        rows.append((size, *cells))
    return rows  # type: ignore[return-value]


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations of one forward pass, per token: 2 per weight that multiplies, and
    attention over the mean number of positions seen. Training takes 3 times as many."""
    lookup = 0 if config.tied else config.shape.vocabulary * config.width
    flops = 2.0 * (config.parameters - lookup)
    picture, T = config.shape.picture, config.shape.context
    if picture:  # whose weights do not each multiply once for a position
        kernels = picture.convolutions(config.width)
        flops += 2.0 * sum(_weights(part) * (part.positions / T - 1) for part in kernels)
        flops -= 2.0 * T * config.width  # its places are added
        if config.family == "mlp":
            flops += 4.0 * config.layers * config.mixing * (config.width - T)
    if config.family == "transformer":
        seen = config.shape.context / (2 if config.shape.causal else 1)
        flops += 4.0 * config.layers * config.width * seen
    return flops


def row_bytes(config: ModelConfig, device: str = "cpu") -> int:
    """About the memory that training takes per row, in bytes: activations kept for the backward
    pass, and logits in fp32 with their gradient. An estimate on the safe side."""
    D, H, T = config.width, config.hidden, config.shape.context
    if config.family == "transformer":
        products = T <= LONGEST_PRODUCT if device == "cpu" else config.head_width % 8 > 0
        seen = 6 * config.heads * T if products else T
        layer = 4 * (14 * D + 6 * H) + seen
    elif config.family == "rnn":
        layer = 4 * 14 * D
    else:
        layer = 4 * (4 * D + 3 * H)
    extra = 8 * (config.window * D or T) if config.family == "mlp" else 0
    if picture := config.shape.picture:
        kernels = picture.convolutions(D)
        extra = 16 * sum(part.outputs * part.positions for part in kernels) // T
        if config.family == "mlp":
            layer += 4 * (4 * D + 3 * config.mixing * D // T)
    logits = 0 if config.shape.classes else 14 * config.shape.vocabulary
    return T * (config.layers * layer + extra + logits)
