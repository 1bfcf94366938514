"""What a task asks of a model: what its rows are, and what comes out. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Convolution:
    """A square kernel over `inputs` channels, moved by `stride`; `positions`: how many results
    each of its `outputs` has in a row."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    positions: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.kernel**2


@dataclass(frozen=True)
class ImageShape:
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
    with a part that a transformer sees both ways; image: what rows are instead of tokens, if
    anything.
    """

    vocabulary: int
    context: int
    causal: bool
    classes: int = 0
    prefix: bool = False
    image: ImageShape | None = None
