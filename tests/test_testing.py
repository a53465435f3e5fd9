"""The host-sync check raises on what stalls a device, and on nothing else."""

from __future__ import annotations

import pytest
import torch

from fastscore.testing import HostSyncError, no_host_sync

X, MASK, INDEX = torch.arange(12.0).reshape(3, 4), torch.arange(12).reshape(3, 4) > 5, torch.tensor([0, 2])

STALLS = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X.mean()),
    "int": lambda: int(INDEX[0]),
    "bool": lambda: bool(X.sum() > 0),
    "if": lambda: 1 if X.sum() > 0 else 0,
    "nonzero": lambda: MASK.nonzero(),
    "mask index": lambda: X[MASK],
    "mask assign": lambda: X.clone().__setitem__(MASK, 0.0),
    "unique": lambda: X.unique(),
    "repeat_interleave": lambda: X.repeat_interleave(torch.tensor([1, 2, 3]), 0),
    "tensor of a number": lambda: X * torch.tensor(3.0),
    "number in where": lambda: torch.where(MASK, X, torch.inf),
    "generator": lambda: torch.rand_like(X),
    "dropout": lambda: torch.nn.functional.dropout(X, 0.5, True),
    "tolist": lambda: X.tolist(),
    "numpy": lambda: X.numpy(),
    "print": lambda: str(X),
    "allclose": lambda: torch.allclose(X, X),
    "equal": lambda: torch.equal(X, X),
    "max": lambda: max(X[0]),
    "range": lambda: list(range(int(X.sum()))),
    "other device": lambda: X.to("meta"),
    "solve": lambda: torch.linalg.solve(torch.eye(3), torch.ones(3, 1)),
}
FINE = {
    "masked_fill": lambda: X.masked_fill(MASK, 0.0),
    "integer index": lambda: X[INDEX],
    "host index": lambda: X[1] * X,
    "iterate": lambda: [row + 1 for row in X],
    "number": lambda: X * 3.0,
    "full": lambda: torch.full((2,), 1.0),
    "cast": lambda: X.double(),
    "where": lambda: torch.where(MASK, X, -X),
    "copy": lambda: X.clone().copy_(X),
}


@pytest.mark.parametrize("name", STALLS)
def test_stalls_raise(name):
    with pytest.raises(HostSyncError), no_host_sync():
        STALLS[name]()


@pytest.mark.parametrize("name", FINE)
def test_the_rest_passes(name):
    with no_host_sync():
        FINE[name]()
