"""Rules of guidance, one function each, written from the papers: NumPy, one sample at a time, no shortcuts."""

from __future__ import annotations

import numpy as np


def in_space(space, D, x, alpha, sigma):
    """Return what a network of that prediction would have said."""
    eps = (x - alpha * D) / sigma
    return {"x0": D, "eps": eps, "flow": eps - D, "v": (alpha * eps - sigma * D) / np.hypot(alpha, sigma)}[space]


def to_x0(space, G, x, alpha, sigma):
    """Solve x = alpha D + sigma eps and the definition of G for D."""
    length = np.hypot(alpha, sigma)
    row = {"x0": (1.0, 0.0), "eps": (0.0, 1.0), "flow": (-1.0, 1.0), "v": (-sigma / length, alpha / length)}[space]
    system = np.array([[alpha, sigma], row])
    return np.linalg.solve(system, np.stack([x.ravel(), G.ravel()]))[0].reshape(x.shape)


def apg(p, u, w, state, eta=0.0, norm=None, momentum=0.0, form="paper"):
    """Sadat et al. 2024, algorithm 1; ``state`` is the running average of one sample."""
    difference = p - u
    if momentum:
        state["d"] = difference + momentum * state.get("d", 0.0)
        difference = state["d"]
    if norm is not None and np.linalg.norm(difference) > norm:
        difference = difference * norm / np.linalg.norm(difference)
    unit = p / np.linalg.norm(p)
    parallel = np.sum(difference * unit) * unit
    update = (difference - parallel) + eta * parallel
    return {"paper": p + (w - 1) * update, "diffusers": u + w * update, "comfyui": p + w * update}[form]


def cfg_zero_star(p, u, w, state):
    """Fan et al. 2025, algorithm 1, without its first steps: s is the projection of p onto u."""
    s = np.sum(p * u) / (np.sum(u * u) + 1e-8)
    return s * u + w * (p - s * u)


def tcfg(p, u, w, state):
    """Kwon et al. 2025: the unconditional score projected onto the first right singular vector."""
    _, _, vt = np.linalg.svd(np.stack([p.ravel(), u.ravel()]), full_matrices=False)
    damped = (np.sum(u.ravel() * vt[0]) * vt[0]).reshape(u.shape)
    return damped + w * (p - damped)


def cfg_norm(p, u, w, state, strength=1.0, axis=0):
    g = u + w * (p - u)
    ratio = np.linalg.norm(p, axis=axis, keepdims=True) / (np.linalg.norm(g, axis=axis, keepdims=True) + 1e-8)
    return g * np.minimum(ratio, 1.0) * strength


def mambo(p, u, w, state, damping=8.0):
    r = np.linalg.norm(p - u) / np.linalg.norm(u)
    return u + (1 + (w - 1) * np.exp(-damping * r)) * (p - u)


def rescale(p, u, w, state, phi=0.7):
    """Lin et al. 2024, eq. 14 to 16."""
    g = u + w * (p - u)
    return phi * (g * p.std(ddof=1) / g.std(ddof=1)) + (1 - phi) * g
