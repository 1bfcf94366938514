"""Models of images: their parts, sizes by formula, and every precision."""

import copy

import pytest
import torch

from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.precision import lower
from bigmodel_cli.models.sequence import SequenceModel, build
from bigmodel_cli.models.shape import ImageShape, Shape
from bigmodel_cli.models.sizes import model_config

FAMILIES = ("transformer", "rnn", "mlp")


def config(
    family: str, stem: str, size: int = 12, patch: int = 2, channels: int = 3
) -> ModelConfig:
    picture = ImageShape(channels, size, patch, stem)
    shape = Shape(0, picture.positions, causal=False, classes=5, image=picture)
    return model_config(family, "nano", shape, width=32, layers=2, heads=2)


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_formula_of_parameters_and_json(family: str, stem: str) -> None:
    for size, patch in ((12, 1), (12, 2), (28, 4), (12, 6), (21, 7), (8, 8)):
        shape = config(family, stem, size, patch)
        model = SequenceModel(shape)
        assert shape.parameters() == sum(p.numel() for p in model.parameters()), (size, patch)
        assert ModelConfig.from_json(shape.to_json()) == shape
        pixels = torch.randn(2, 3, size, size)
        assert model.embed(pixels).shape == (2, (size // patch) ** 2, 32)
        assert model(pixels_BCHW=pixels).shape == (2, 5)
        assert shape.activation_bytes() > 4 * 3 * size * size


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("family", ["transformer", "mlp"])
def test_flops_are_those_that_are_counted(family: str, stem: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape = config(family, stem, 28, 4)
    model = SequenceModel(shape).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(pixels_BCHW=torch.randn(2, 3, 28, 28))
    counted = counter.get_total_flops() / (2 * 49)
    assert shape.flops() == pytest.approx(counted, rel=0.03)


def test_a_patch_stem_is_a_matrix_for_each_square() -> None:
    stem = SequenceModel(config("mlp", "patch")).embed
    pixels = torch.randn(1, 3, 12, 12)
    square = pixels[0, :, 2:4, 8:10].flatten()  # the second row's fifth
    matrix = stem.convolutions[0].weight.flatten(1)
    assert torch.allclose(stem(pixels)[0, 6 + 4], matrix @ square + stem.places[10], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_see_each_other(family: str) -> None:
    model = SequenceModel(config(family, "conv")).eval()
    for weight in model.parameters():  # also those that begin as zero
        torch.nn.init.normal_(weight, std=0.1)
    pixels = torch.randn(4, 3, 12, 12)
    alone = model(pixels_BCHW=pixels[1:2])
    assert torch.allclose(model(pixels_BCHW=pixels)[1:2], alone, atol=1e-5)


def test_a_mixer_sees_all_places() -> None:
    model = SequenceModel(config("mlp", "patch")).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    pixels = torch.randn(1, 3, 12, 12)
    changed = pixels.clone()
    changed[0, :, 0, 0] += 5
    difference = (model.features(pixels) - model.features(changed)).abs().amax(-1)
    assert bool((difference > 1e-6).all())


@pytest.mark.parametrize(
    ("family", "precision"),
    [(f, p) for f in FAMILIES for p in ("fp32", "bf16", "int8") if (f, p) != ("rnn", "int8")],
)
def test_lower_precisions_answer_alike(family: str, precision: str) -> None:
    model = SequenceModel(config(family, "conv")).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    again = build(model.config, model.state_dict(), "here")
    lowered = lower(copy.deepcopy(again), precision)
    pixels = torch.randn(3, 3, 12, 12)
    with torch.inference_mode():
        exact, rough = model(pixels_BCHW=pixels), lowered(pixels_BCHW=pixels).float()
    limit = {"fp32": 1e-5, "bf16": 0.2, "int8": 0.2}[precision]
    assert float((exact - rough).abs().max()) < limit * float(exact.abs().max() + 1)
