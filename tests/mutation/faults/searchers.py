"""Faults in searchers."""

from fault import Fault

FAULTS = [
    Fault(
        "searchers/resampling.py",
        'indices = np.searchsorted(edges, points, side="right")',
        'indices = np.searchsorted(edges, points, side="left")',
        "tests/test_resampling.py",
        equivalent="differs only where a uniform number meets an edge exactly",
    ),
]
