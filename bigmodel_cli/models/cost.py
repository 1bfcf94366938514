"""What training costs: how many rows an update and a pass take, and whether compiling is repaid.

From the configuration and the machine's size alone, never from timing. No torch.
"""

from __future__ import annotations

from bigmodel_cli.models.config import ModelConfig

TOKENS_PER_UPDATE = 2048  # for up to 4 million weights
LOGITS_BYTES = 32 << 20  # larger arrays come from the system page by page
WEIGHT_BYTES = 18  # in training: itself, its gradient, what the optimizer keeps, and copies
SHARE = 0.4  # of the memory, for weights, optimizer and one pass
COMPILED_SECONDS = {"cpu": 600, "cuda": 60}  # of a run that repays it
NOMINAL_FLOPS = {"cpu": 150e9, "cuda": 100e12}  # of one thread, of a GPU


def batch_size(model: ModelConfig, row_tokens: float, device: str) -> int:
    """Rows per update: small models in short runs gain more from many updates than from exact
    gradients (docs/defaults.md); larger ones want more tokens, and a GPU is idle with few."""
    tokens: float = TOKENS_PER_UPDATE * max(1.0, model.parameters() / 4e6) ** 0.5
    tokens *= 8 if device == "cuda" else 1
    return max(1, round(tokens / row_tokens))


def micro_batch(model: ModelConfig, row_tokens: float, batch: int, device: str, memory: int) -> int:
    """Rows at a time: what fits in `memory` bytes beside weights and optimizer; on a CPU no more
    than keeps each array near the caches (measured: 1.5 times as fast as all at once)."""
    room = max(0, memory * SHARE - model.parameters() * WEIGHT_BYTES)
    most = max(1, int(room // model.activation_bytes(device)))
    if device == "cpu" and not model.recurrent:
        logits = 1 if model.shape.classes else model.shape.vocabulary
        tokens = min(2048, max(1024, LOGITS_BYTES // (2 * logits)))
        most = min(most, max(1, int(tokens // row_tokens)))
    return -(-batch // -(-batch // most))  # equal parts


def repays_compiling(
    model: ModelConfig, tokens: float, seconds: float | None, device: str, threads: int
) -> bool:
    """Whether a run over so many tokens, or of so many seconds, is long enough for kernels that
    take about 20 seconds to be fused and then save a fifth of the time (docs/defaults.md)."""
    if seconds is None:  # at a guess
        speed = NOMINAL_FLOPS[device] * (threads if device == "cpu" else 1)
        seconds = 3 * model.flops() * tokens / speed
    return seconds >= COMPILED_SECONDS[device]
