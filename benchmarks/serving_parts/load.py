"""Open loops: arrivals that do not wait for answers."""

import numpy as np

from serving_parts.ways import Arrival


def at_once(requests):
    """A saturated server: everything is there at the start."""
    return [Arrival(request, 0.0) for request in requests]


def poisson(requests, rate, seed):
    """``rate`` requests per second, independent of each other."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(requests))
    return [Arrival(request, float(at)) for request, at in zip(requests, np.cumsum(gaps), strict=True)]


def bursts(requests, rate, size, seed):
    """The same mean rate in groups of ``size`` that arrive together, at Poisson times."""
    groups = -(-len(requests) // size)
    at = np.cumsum(np.random.default_rng(seed).exponential(size / rate, groups))
    return [Arrival(request, float(at[i // size])) for i, request in enumerate(requests)]
