"""Runge-Kutta tableaus against the order conditions of rooted trees (Butcher 1963)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastscore.solvers import RK2, RK4, BogackiShampine, Dopri5, Euler, Heun

# (tableau, order, order of the embedded method)
METHODS = {
    "euler": (Euler.tableau, 1, None),
    "heun": (Heun.tableau, 2, None),
    "midpoint": (RK2().tableau, 2, None),
    "ralston": (RK2(2 / 3).tableau, 2, None),
    "rk4": (RK4.tableau, 4, None),
    "bogacki-shampine": (BogackiShampine.tableau, 3, 2),
    "dormand-prince": (Dopri5.tableau, 5, 4),
}


def grown(tree):
    """A rooted tree, a sorted tuple of subtrees, with one more leaf at each of its nodes in turn."""
    yield tuple(sorted((*tree, ())))
    for k, sub in enumerate(tree):
        for larger in grown(sub):
            yield tuple(sorted((*tree[:k], larger, *tree[k + 1 :])))


def trees(size):
    return {()} if size == 1 else {larger for tree in trees(size - 1) for larger in grown(tree)}


def count(tree):
    return 1 + sum(map(count, tree))


def density(tree):
    """Gamma of a tree: its size times the densities of its subtrees; a method of its order has b . phi = 1 / gamma."""
    return count(tree) * math.prod(map(density, tree))


def phi(tree, A):
    return math.prod((A @ phi(sub, A) for sub in tree), start=np.ones(len(A)))


def residual(tree, A, b):
    """What the condition of a tree leaves, in units of the roundings that it may leave."""
    left = b @ phi(tree, A) - 1.0 / density(tree)
    operations = (len(A) + 1) * count(tree) + 1
    return abs(left) / (operations * np.finfo(float).eps * (abs(b) @ phi(tree, abs(A)) + 1.0))


def test_trees_are_all_there():
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("name", METHODS)
def test_order_conditions(name):
    tableau, order, embedded = METHODS[name]
    stages = len(tableau.nodes)
    A, b = np.zeros((stages, stages)), np.zeros(stages)
    for k, row in enumerate(tableau.rows[:stages]):
        A[k, : len(row)] = row
    b[: len(tableau.rows[-1])] = tableau.rows[-1]
    np.testing.assert_allclose(A.sum(1), tableau.nodes, rtol=0, atol=stages * np.finfo(float).eps * abs(A).sum(1).max())
    weights = {order: b} if embedded is None else {order: b, embedded: b - np.array(tableau.error)}
    for p, w in weights.items():
        for size in range(1, p + 1):
            for tree in trees(size):
                assert residual(tree, A, w) < 1.0, f"order {size}: {tree}"
        assert max(residual(tree, A, w) for tree in trees(p + 1)) > 1e6  # and no higher one, so the error is an error
