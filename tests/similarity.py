"""Centred kernel alignment as it is defined, on whole Gram matrices."""

import numpy as np


def hsic_by_definition(K: np.ndarray, L: np.ndarray, debiased: bool) -> float:
    """HSIC of Gretton et al. 2005, or of Song et al. 2012 (eq. 5)."""
    n = len(K)
    if not debiased:
        H = np.eye(n) - 1 / n
        return np.trace(K @ H @ L @ H) / (n - 1) ** 2
    K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(n)
    total = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (np.trace(K @ L) + total - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def cka_by_definition(K: np.ndarray, L: np.ndarray, debiased: bool) -> float:
    """Kornblith et al. 2019, eq. 4."""
    self_hsic = [hsic_by_definition(z, z, debiased) for z in (K, L)]
    return hsic_by_definition(K, L, debiased) / np.sqrt(self_hsic[0] * self_hsic[1])
