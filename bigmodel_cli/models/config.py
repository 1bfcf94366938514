"""Everything that determines a model's tensors, and what follows from it: one configuration for
each family. No torch.

Legend: T positions of a row, D width, V vocabulary, C classes, L layers, F hidden features,
N heads, K key and value heads, H head width, M features of what mixes positions, W window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bigmodel_cli.errors import ArtifactError
from bigmodel_cli.models.shape import ImageShape, Shape

# positions that attend to each other in plain matrix products on a CPU; the square of more would
# fill the memory
LONGEST_PRODUCT = 1024
MOST, MOST_PIXELS = 1 << 40, 1024  # of any number that describes a model, and of an image's side
MOST_LAYERS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the configurations of all families say. tied: the embedding is the last layer, too.

    A family adds its own fields, and counts what only it has; a field whose name is in `CHOICES`
    has one of these values, and a field in `MAY_BE_ZERO` need not be at least 1.
    """

    family: ClassVar[str]
    kind: ClassVar[str]  # what a message calls such a model
    can_compile: ClassVar[bool] = False  # whether torch.compile finds kernels to fuse
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")  # for answering
    recurrent: ClassVar[bool] = False  # one position after another: many rows at a time are quick
    # what a transformer may have; see there
    learned_positions = reads_first = stem_bias = pooler = False
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ("vocabulary", "classes")

    shape: Shape
    width: int
    layers: int
    tied: bool
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As config.json keeps it, where the shape's `image` is called `picture`."""
        document = {"family": self.family, **dataclasses.asdict(self)}
        document["shape"]["picture"] = document["shape"].pop("image")
        return document

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> ModelConfig:
        """Raises ArtifactError for a document that describes no model."""
        try:
            config = _read(document)
            wrong = _wrong_types(config) or config.wrong()
        except (KeyError, TypeError) as error:
            wrong = str(error)
        if wrong:
            raise ArtifactError(
                f"the model's configuration is corrupt: {wrong}", "train again, or deploy again"
            )
        return config

    def wrong(self) -> str:
        """What no model has, in words; nothing if all is well. The types are right."""
        shape, image = self.shape, self.shape.image
        parts: list[Any] = [self, shape, *([image] if image else [])]
        for part in parts:
            for item in dataclasses.fields(part):
                value = getattr(part, item.name)
                least = 0 if item.name in self.MAY_BE_ZERO else 1
                if item.type == "int" and not least <= value <= MOST:
                    return f"`{item.name}` is {value:,}"
                if value not in self.CHOICES.get(item.name, (value,)):
                    return f"`{item.name}` is `{value}`"
        if not 0 <= self.dropout < 1:
            return f"`dropout` is `{self.dropout}`"
        if self.layers > MOST_LAYERS:
            return f"`layers` is {self.layers:,}"
        if self.tied and shape.classes:
            return "`tied` is of models without classes"
        if image is None:
            return "" if shape.vocabulary else "`vocabulary` is 0"
        if shape.causal or not shape.classes or image.stem not in ("patch", "conv"):
            return "images are of models of classes that see them whole, with a stem"
        size, patch = image.size, image.patch
        if image.channels not in (1, 3) or size > MOST_PIXELS or size % patch:
            return f"images of {image.channels} × {size} in patches of {patch}"
        return "" if image.positions == shape.context else f"`context` is {shape.context}"

    @property
    def length(self) -> int:
        """The most positions that the backbone sees."""
        return self.shape.context

    def parameters(self) -> int:
        """The number of trained weights, by formula."""
        D, C, image = self.width, self.shape.classes, self.shape.image
        embedding = self.shape.vocabulary * D
        head = (D + 1) * C if C else 0 if self.tied else embedding
        if image:
            kernels = image.convolutions(D)
            embedding = sum(kernel.weights for kernel in kernels)
            embedding += sum(2 * kernel.outputs for kernel in kernels[:-1])  # of their norms
            embedding += 0 if self.learned_positions else image.positions * D
            embedding += sum(kernel.outputs for kernel in kernels) if self.stem_bias else 0
        return embedding + self._backbone() + head

    def flops(self) -> float:
        """Floating-point operations of one forward pass, per position of a row: 2 per weight that
        multiplies. Training takes 3 times as many."""
        lookup = 0 if self.tied else self.shape.vocabulary * self.width
        flops = 2.0 * (self.parameters() - lookup) + self._more_flops()
        image, T = self.shape.image, self.shape.context
        if image:  # whose weights do not each multiply once for a position
            kernels = image.convolutions(self.width)
            flops += 2.0 * sum(part.weights * (part.positions / T - 1) for part in kernels)
            flops -= 0 if self.learned_positions else 2.0 * T * self.width  # its places are added
        return flops

    def activation_bytes(self, device: str = "cpu") -> int:
        """About the memory that training takes per row, in bytes: activations kept for the backward
        pass, and logits in fp32 with their gradient. An estimate on the safe side."""
        T, image = self.shape.context, self.shape.image
        inputs = self._input_bytes()
        if image:
            kernels = image.convolutions(self.width)
            inputs += 16 * sum(part.outputs * part.positions for part in kernels) // T
        logits = 0 if self.shape.classes else 14 * self.shape.vocabulary
        layer = self._layer_bytes() + self._attention_bytes(device)
        return T * (self.layers * layer + inputs + logits)

    def _backbone(self) -> int:
        """Weights between the embedding and the last layer."""
        raise NotImplementedError

    def _more_flops(self) -> float:
        """Of a position, beside 2 per weight."""
        return 0.0

    def _layer_bytes(self) -> int:
        """What a layer keeps of a position."""
        raise NotImplementedError

    def _attention_bytes(self, device: str) -> int:  # noqa: ARG002 (what it depends on elsewhere)
        """What a layer keeps of a position for those that it sees."""
        return 0

    def _input_bytes(self) -> int:
        """What is kept of a position before the first layer, beside an image's convolutions."""
        return 0


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions beyond those of the first training are scaled, by a factor.

    linear: all angles (Chen et al. 2023). llama3: those that turn less than `low` times within the
    `original` context, while those that turn over `high` times stay, and between them a mixture
    (Llama 3.1). yarn: in the same way, by a ramp over the dimensions between `high` and `low`
    turns, and queries and keys are multiplied by `attention` (Peng et al. 2023).
    """

    kind: str
    factor: float
    original: int = 0
    low: float = 1.0
    high: float = 32.0
    attention: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """Attention and a feed-forward part in each layer. The form that is not said is that of
    `Qwen3ForCausalLM`; what can be said is enough for Llama 3, Qwen2, Mistral, GPT-2, BERT, ViT.

    norm, epsilon, norm_place: RMSNorm or LayerNorm, before each part (`pre`) or after each sum
    (`post`). qk_norm: of each head's queries and keys. qkv_bias, output_bias, feed_bias: of the
    attention's first and last matrices, and of the feed-forward part's. gated: one matrix more,
    whose activation multiplies. positions: rotary, learned (the first is `position_offset`, and an
    image's take the place of its stem's), or none. sliding_window: how many positions one sees at
    most, itself included; 0: all. token_types: rows of an embedding, of which the first is added.
    embedding_norm: of what goes into the first layer. class_token: a learned position before an
    image's. pooler: tanh of a matrix of the first position. Of a row with a class token or a
    pooler the first position is classified, else a mean (see SequenceModel). stem_bias: of an
    image's convolutions.
    """

    family: ClassVar[str] = "transformer"
    kind: ClassVar[str] = "a transformer"
    can_compile: ClassVar[bool] = True
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "norm": ("rms", "layer"),
        "norm_place": ("pre", "post"),
        "activation": ("silu", "gelu", "gelu_tanh", "relu"),
        "positions": ("rotary", "learned", "none"),
    }
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = (
        *ModelConfig.MAY_BE_ZERO,
        "position_offset",
        "sliding_window",
        "token_types",
    )

    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    norm: str = "rms"
    norm_place: str = "pre"
    epsilon: float = 1e-6
    qk_norm: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    feed_bias: bool = False
    gated: bool = True
    activation: str = "silu"
    positions: str = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    position_offset: int = 0
    sliding_window: int = 0
    token_types: int = 0
    embedding_norm: bool = False
    class_token: bool = False
    pooler: bool = False
    stem_bias: bool = False

    @property
    def learned_positions(self) -> bool:  # type: ignore[override]
        """Whether the backbone has them, so that an image's stem needs none."""
        return self.positions == "learned"

    @property
    def reads_first(self) -> bool:  # type: ignore[override]
        """Whether a row's class comes from its first position."""
        return self.class_token or self.pooler

    @property
    def length(self) -> int:
        return self.shape.context + self.class_token

    @property
    def position_rows(self) -> int:
        """Rows of the embedding of positions."""
        return self.length + self.position_offset if self.learned_positions else 0

    def wrong(self) -> str:
        if wrong := super().wrong():
            return wrong
        if self.heads % self.kv_heads:
            return f"{self.heads} heads and {self.kv_heads} for keys"
        if self.positions == "rotary" and self.head_width % 2:
            return f"`head_width` is {self.head_width}, and rotary positions need an even one"
        for name, least in (("epsilon", 0), ("rope_theta", 1)):
            if not least < getattr(self, name) < MOST:
                return f"`{name}` is `{getattr(self, name)}`"
        scaling = self.rope_scaling
        if scaling and (
            scaling.kind not in ("linear", "llama3", "yarn")
            or not 1 <= scaling.factor < MOST
            or not 0 < scaling.low < scaling.high < MOST
            or not 0 < scaling.attention < MOST
            or (scaling.kind != "linear" and not 0 < scaling.original <= MOST)
        ):
            return f"`rope_scaling` is `{scaling}`"
        if self.class_token and not self.shape.image:
            return "`class_token` is of images alone"
        if self.sliding_window and (self.shape.prefix or not self.shape.causal):
            return "`sliding_window` is of causal models without a prefix alone"
        if self.pooler and not self.shape.classes:
            return "`pooler` is of models of classes alone"
        return ""

    def _backbone(self) -> int:
        D, F, N, K, H = self.width, self.hidden, self.heads, self.kv_heads, self.head_width
        norm = D if self.norm == "rms" else 2 * D
        heads = H if self.norm == "rms" else 2 * H
        qkv, ups = (N + 2 * K) * H, F * (2 if self.gated else 1)
        layer = D * qkv + N * H * D + D * ups + F * D + 2 * norm + 2 * heads * self.qk_norm
        layer += qkv * self.qkv_bias + D * self.output_bias + (ups + D) * self.feed_bias
        last = norm * (self.norm_place == "pre") + norm * self.embedding_norm
        return self.layers * layer + last + self._added() + self.pooler * (D + 1) * D

    def _added(self) -> int:
        """Weights that are added to what goes into the first layer."""
        return (self.position_rows + self.token_types + self.class_token) * self.width

    def _more_flops(self) -> float:
        """Attention over the mean number of positions that are seen."""
        T, W = self.length, self.sliding_window
        seen = T / (2 if self.shape.causal else 1)
        if 0 < W < T:
            seen = W - W * (W - 1) / (2 * T)
        attention = 4.0 * self.layers * self.heads * self.head_width * seen
        pooler = 2 * (self.width + 1) * self.width * self.pooler  # of one position of a row
        return attention - 2 * self._added() - pooler * (1 - 1 / T)

    def _layer_bytes(self) -> int:
        return 4 * (10 * self.width + 4 * self.heads * self.head_width + 6 * self.hidden)

    def _attention_bytes(self, device: str) -> int:
        T = self.length
        products = T <= LONGEST_PRODUCT if device == "cpu" else self.head_width % 8 > 0
        return 6 * self.heads * T if products else T


@dataclass(frozen=True, kw_only=True)
class RnnConfig(ModelConfig):
    """Recurrent cells, one layer on another; without causality half of the width reads
    backwards."""

    family: ClassVar[str] = "rnn"
    kind: ClassVar[str] = "a recurrent model"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    recurrent: ClassVar[bool] = True
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"cell": ("elman", "gru", "lstm")}

    cell: str

    def wrong(self) -> str:
        odd = not self.shape.causal and self.width % 2
        return super().wrong() or (f"`width` is {self.width} for two directions" if odd else "")

    def _backbone(self) -> int:
        D = self.width
        gates = {"elman": 1, "gru": 3, "lstm": 4}[self.cell]
        part, directions = (D, 1) if self.shape.causal else (D // 2, 2)
        layer = directions * gates * (D * part + part * part + 2 * part) + D
        return self.layers * layer + D

    def _layer_bytes(self) -> int:
        return 4 * 14 * self.width


@dataclass(frozen=True, kw_only=True)
class MlpConfig(ModelConfig):
    """Layers over a window of embeddings; window 0: over the mean of them all."""

    family: ClassVar[str] = "mlp"
    kind: ClassVar[str] = "an mlp"
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = (*ModelConfig.MAY_BE_ZERO, "window")

    hidden: int
    window: int

    def _backbone(self) -> int:
        D, F = self.width, self.hidden
        return max(1, self.window) * D * D + self.layers * (2 * D * F + D) + D

    def _layer_bytes(self) -> int:
        return 4 * (4 * self.width + 3 * self.hidden)

    def _input_bytes(self) -> int:
        return 8 * (self.window * self.width or self.shape.context)


@dataclass(frozen=True, kw_only=True)
class MixerConfig(ModelConfig):
    """The mlp of images: layers that mix positions and features in turns."""

    family: ClassVar[str] = "mlp"
    kind: ClassVar[str] = "an mlp"

    hidden: int

    @property
    def mixing(self) -> int:
        """Features inside of the part that mixes positions."""
        return max(16, self.hidden // 4)

    def _backbone(self) -> int:
        T, D, M = self.shape.context, self.width, self.mixing
        return self.layers * (2 * T * M + 2 * D * self.hidden + 2 * D) + D

    def _more_flops(self) -> float:
        """What mixes positions multiplies once for a feature, not for a position."""
        return 4.0 * self.layers * self.mixing * (self.width - self.shape.context)

    def _layer_bytes(self) -> int:
        D, T = self.width, self.shape.context
        return 4 * (4 * D + 3 * self.hidden) + 4 * (4 * D + 3 * self.mixing * D // T)


FAMILIES = ("transformer", "rnn", "mlp")
# what the configuration of every family said, once, whether it had it or not
FORMER = ("heads", "kv_heads", "hidden", "cell", "window")


def config_class(family: str, shape: Shape) -> type[ModelConfig]:
    """Raises KeyError for a family that is not known."""
    mlp = MixerConfig if shape.image else MlpConfig
    return {"transformer": TransformerConfig, "rnn": RnnConfig, "mlp": mlp}[family]


def _read(document: Mapping[str, Any]) -> ModelConfig:
    """A configuration of any types. Raises KeyError, TypeError."""
    fields = {**document["shape"]}
    image = fields.pop("picture", None)
    shape = Shape(**fields, image=image)
    if isinstance(shape.image, Mapping):
        shape = dataclasses.replace(shape, image=ImageShape(**shape.image))
    if document["family"] not in FAMILIES:
        raise TypeError(f"`family` is `{document['family']}`")
    kind = config_class(document["family"], shape)
    known = {item.name for item in dataclasses.fields(kind)}
    given = {k: v for k, v in document.items() if k in known or k not in ("family", *FORMER)}
    if "head_width" in known and "head_width" not in given:  # as it was before it could be said
        width, heads = document["width"], document["heads"]
        if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
            raise TypeError(f"{width} features and {heads} heads")
        given["head_width"] = width // heads
    if isinstance(scaling := given.get("rope_scaling"), Mapping):
        given["rope_scaling"] = RopeScaling(**scaling)
    return kind(**{**given, "shape": shape})


def _wrong_types(config: ModelConfig) -> str:
    kinds = {"int": (int,), "bool": (bool,), "str": (str,), "float": (int, float)}
    parts = {"shape": Shape, "image": ImageShape, "rope_scaling": RopeScaling}
    described = config, config.shape, config.shape.image, getattr(config, "rope_scaling", None)
    for part in (part for part in described if part is not None):
        for item in dataclasses.fields(part):
            value, wanted = getattr(part, item.name), kinds.get(str(item.type))
            if wanted and type(value) not in wanted:
                return f"`{item.name}` is `{value}`, but must be of type {item.type}"
            if item.name in parts and not isinstance(value, parts[item.name] | None):
                return f"`{item.name}` is unknown"
    return ""
