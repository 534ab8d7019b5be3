"""How sure a rate is that was counted: pass rates of the report, precision of an audit."""

from __future__ import annotations


def wilson(passed: int, total: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927): (low, high); (0, 1) without observations."""
    from scipy.stats import binomtest  # half a second: a build reads labels, and needs no interval

    if not total:
        return 0.0, 1.0
    found = binomtest(passed, total).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
