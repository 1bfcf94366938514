"""A model: embed → backbone → head, the same whatever the family.

Legend: B batch, T time, D width, V vocabulary, C classes (of pixels: channels), H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.errors import ArtifactError
from bigmodel_cli.models import fused
from bigmodel_cli.models.config import (
    MixerConfig,
    MlpConfig,
    ModelConfig,
    RnnConfig,
    TransformerConfig,
)
from bigmodel_cli.models.embed import RMSNorm, linear
from bigmodel_cli.models.mixer import Mixer
from bigmodel_cli.models.mlp import FeedForward
from bigmodel_cli.models.patch_embed import Stem
from bigmodel_cli.models.rnn import Recurrent
from bigmodel_cli.models.transformer import Transformer, last_norm

BACKBONES: dict[type[ModelConfig], type[nn.Module]] = {
    TransformerConfig: Transformer,
    RnnConfig: Recurrent,
    MlpConfig: FeedForward,
    MixerConfig: Mixer,
}


class State(Protocol):
    """What an incremental model remembers of each of its independent slots."""

    def select(self, indices: Tensor) -> None: ...


class SequenceModel(nn.Module):
    """Tokens or images in; out comes a distribution over the vocabulary at each position, or, of
    a shape with classes, one over these for each row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vocabulary, width = config.shape.vocabulary, config.width
        image = config.shape.image
        self.embed = (
            Stem(image, width, not config.learned_positions, config.stem_bias)
            if image
            else nn.Embedding(vocabulary, width)
        )
        self.backbone = BACKBONES[type(config)](config)
        self.norm: nn.Module = (
            last_norm(config) if isinstance(config, TransformerConfig) else RMSNorm(width)
        )
        self.pooler = linear(width, width, bias=True) if config.pooler else None
        # a classifier sees few rows, so what it sees of them is dropped, too
        self.dropout = nn.Dropout(config.dropout if config.shape.classes else 0.0)
        classes = config.shape.classes
        self.turn = fused.to_gradient
        self.head: nn.Module | None = None
        if not config.tied:
            self.head = nn.Linear(width, classes or vocabulary, bias=classes > 0)
        with torch.no_grad():
            if isinstance(self.embed, nn.Embedding):
                self.embed.weight.normal_(std=0.02)
            for name, weight in self.head.named_parameters() if self.head is not None else ():
                weight.zero_() if name == "bias" else weight.normal_(std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that no precision replaces by whole numbers."""
        return next(self.parameters()).dtype

    @property
    def table(self) -> Tensor:
        """(V, D): what the last layer is multiplied by."""
        return self.embed.weight if self.head is None else self.head.weight  # type: ignore[return-value]

    def logits(self, x: Tensor) -> Tensor:
        """Logits (…, V) of what `features` gives (…, D): of some positions, where all are many."""
        return F.linear(x, self.table) if self.head is None else self.head(x)

    def _logits(self, x: Tensor) -> Tensor:
        return self.logits(self.norm(x))

    def forward(
        self,
        tokens_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        pixels_BCHW: Tensor | None = None,
        **seen: Tensor | None,
    ) -> Tensor:
        """Logits (B, T, V), or (B, C), of tokens or of pixels. Positions of different segments in
        one row do not see each other; without segments each row is one. An image's class is read
        from its mean features; a text's from the mean and the largest ones of its first segment,
        added (Shen et al. 2018 put them beside each other). seen: what else a transformer's
        attention gets, see there."""
        given = tokens_BT if pixels_BCHW is None else pixels_BCHW
        assert given is not None, "tokens or pixels"
        if self.config.shape.classes:
            x_BTD = self.features(given, segments_BT, **seen)
            if self.config.reads_first:
                first_BD = x_BTD[:, 0]
                if self.pooler is not None:
                    first_BD = self.pooler(first_BD).tanh()
                return self.head(self.dropout(first_BD))  # type: ignore[no-any-return, misc]
            if segments_BT is None:
                segments_BT = x_BTD.new_zeros(x_BTD.shape[:2], dtype=torch.int64)
            real_BT1 = (segments_BT == segments_BT[:, :1])[..., None]
            pooled_BD = (x_BTD * real_BT1).sum(1) / real_BT1.sum(1)
            if pixels_BCHW is None:
                pooled_BD = pooled_BD + x_BTD.masked_fill(~real_BT1, -torch.inf).amax(1)
            return self.head(self.dropout(pooled_BD))  # type: ignore[no-any-return, misc]
        return self._logits(self.backbone(self.embed(given), segments_BT, **seen))

    def features(
        self, tokens_BT: Tensor, segments_BT: Tensor | None = None, **seen: Tensor | None
    ) -> Tensor:
        """The normed last layer (B, T, D), of tokens or, in their place, of pixels."""
        x_BTD = self.dropout(self.embed(tokens_BT))
        return self.norm(self.backbone(x_BTD, segments_BT, **seen))  # type: ignore[no-any-return]

    def loss_sum(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        segments_BT: Tensor | None = None,
        **seen: Tensor | None,
    ) -> Tensor:
        """The sum of −log p(target) in nats over the positions whose target is not negative."""
        x_MD = self.features(tokens_BT, segments_BT, **seen).flatten(0, 1)
        targets_M = targets_BT.flatten()
        real = targets_M >= 0
        if real.device.type == "cpu" and not real.all():  # where one need not wait to know it
            x_MD, targets_M = x_MD[real], targets_M[real]
        return fused.cross_entropy(x_MD, self.table, targets_M, self.turn)

    def compile_parts(self) -> None:
        """Has kernels fused by torch.compile when they first run: those of the blocks and, on a
        GPU, of the last layer's loss."""
        self.backbone.compile_parts()  # type: ignore[operator]
        if self.device.type == "cuda":
            self.turn = torch.compile(fused.to_gradient, dynamic=False)
            # one for each number of bounds: what is not compiled would compute other bits
            torch._dynamo.config.recompile_limit = 64
            torch._dynamo.config.fail_on_recompile_limit_hit = True

    def start(self, slots: int, room: int | None = None) -> State:
        """The empty state of `slots` independent texts, for `extend`, each of at most `room` tokens
        (else of the context). Causal models only."""
        room = min(room or self.config.shape.context, self.config.shape.context)
        return self.backbone.start(slots, room, self.device, self.dtype)  # type: ignore[no-any-return, operator]

    def extend(self, state: State, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Appends tokens (rows padded on the right, `lengths_B` ≥ 1 of each valid) and gives the
        logits (B, V) after each row's last valid token. At most `context` tokens in all. What an
        empty state of a shape with `prefix` gets first is the prefix."""
        x_BTD = self.backbone.extend(state, self.embed(tokens_BT), lengths_B)  # type: ignore[operator]
        rows = torch.arange(len(lengths_B), device=lengths_B.device)
        return self._logits(x_BTD[rows, lengths_B - 1])


def build(config: ModelConfig, weights: Mapping[str, Tensor], where: str) -> SequenceModel:
    """A model with these weights. Raises ArtifactError when they are not this model's."""
    count = sum(tensor.numel() for tensor in weights.values())
    if config.layers > len(weights) or config.parameters() > 2 * count:  # before it is built
        raise ArtifactError(
            f"the weights in `{where}` do not fit their configuration: they are {count:,} numbers, "
            f"not {config.parameters():,}",
            "train again",
        )
    odd_kinds = {tensor.dtype for tensor in weights.values()} - {torch.float32}
    if odd_kinds:
        raise ArtifactError(
            f"the weights in `{where}` are of {odd_kinds.pop()}, not of torch.float32",
            "train again",
        )
    with torch.device("meta"):
        model = SequenceModel(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != given:
        odd = sorted(set(wanted.items()) ^ set(given.items()))
        raise ArtifactError(
            f"the weights in `{where}` do not fit their configuration: {odd[0][0]}", "train again"
        )
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()
