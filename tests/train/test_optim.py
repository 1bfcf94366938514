"""The optimizers."""

from __future__ import annotations

import torch

from bigmodel_cli.train.optim import Muon


def test_matrices_updated_together_are_those_updated_one_by_one() -> None:
    torch.manual_seed(0)
    shapes = [(12, 8), (8, 12), (12, 8), (8, 8), (12, 8)]
    weights = [torch.randn(shape) for shape in shapes]
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}
    found = []
    for kind in (torch.optim.Muon, Muon):
        torch.manual_seed(1)
        ours = [torch.nn.Parameter(weight.clone()) for weight in weights]
        optimizer = kind(ours, **settings)  # type: ignore[arg-type]
        for _ in range(3):
            for weight in ours:
                weight.grad = torch.randn(weight.shape)
            if isinstance(optimizer, Muon):
                with torch.no_grad():
                    for shape in set(shapes):
                        alike = [w for w in ours if w.shape == shape]
                        optimizer.update(alike, optimizer.param_groups[0])
            else:
                optimizer.step()
        found.append((ours, [optimizer.state[w]["momentum_buffer"] for w in ours]))
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2)
    moved = [a.detach() - b for a, b in zip(found[0][0], weights, strict=True)]
    assert all(float(difference.abs().max()) > 0.01 for difference in moved)
