"""A model in the form that answers: the same answers, or nearly so in fewer bits."""

from __future__ import annotations

import copy

import pytest
import torch

from bigmodel_cli.errors import UsageError
from bigmodel_cli.models.generate import Decoder
from bigmodel_cli.models.precision import Int8Linear, lower
from bigmodel_cli.models.sampling import Sampling
from tests.models.test_sequence import KINDS, make

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


def written(model: object, count: int = 30) -> list[list[int]]:
    decoder = Decoder(model, PROMPTS, [Sampling()] * 3)  # type: ignore[arg-type]
    for _ in range(count):
        decoder.step()
    return decoder.texts


@pytest.mark.parametrize(("family", "options"), KINDS)
@torch.inference_mode()
def test_fp32_and_bf16_answer_as_the_model_does(family: str, options: dict[str, object]) -> None:
    model = make(family, **options)
    tokens = torch.randint(0, 50, (3, 20))
    expected = model(tokens)
    packed = lower(copy.deepcopy(model), "fp32")
    torch.testing.assert_close(packed(tokens), expected, rtol=1e-4, atol=1e-4)
    assert written(packed) == written(model)
    low = lower(copy.deepcopy(model), "bf16")
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    away = (low(tokens).float() - expected).norm() / expected.norm()
    assert 0 < away < 0.05
    assert len(written(low)[2]) == 35


@pytest.mark.parametrize(("family", "options"), [kind for kind in KINDS if kind[0] != "rnn"])
@torch.inference_mode()
def test_int8_answers_nearly_as_the_model_does(family: str, options: dict[str, object]) -> None:
    model = make(family, **options)
    tokens = torch.randint(0, 50, (3, 20))
    expected = model(tokens)
    low = lower(copy.deepcopy(model), "int8")
    assert not any(isinstance(part, torch.nn.Linear) for part in low.modules())
    away = (low(tokens) - expected).norm() / expected.norm()
    assert 0 < away < 0.05
    assert len(written(low)[2]) == 35


def test_whole_numbers_lose_less_than_a_step_of_each_row() -> None:
    """Also where a row is zero, or a hundred thousand times as large as another."""
    torch.manual_seed(0)
    weight, x = torch.randn(7, 64), torch.randn(5, 64)
    weight[3], weight[4], x[2] = 0, weight[4] * 1e5, 0
    exact = x.double() @ weight.double().T
    y = Int8Linear(weight)(x)
    room = (x.norm(dim=1)[:, None] * weight.norm(dim=1)[None]).double() * 0.02
    assert ((y - exact).abs() <= room + 1e-12).all()
    assert not y[:, 3].any()
    assert not y[2].any()


def test_what_int8_has_no_kernels_for_is_refused() -> None:
    with pytest.raises(UsageError, match="a recurrent model cannot have"):
        lower(make("rnn"), "int8")
