"""How long each thing is measured: the full bench ends within 36 minutes on two cores, the quick one within 5."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Times in seconds."""

    quick: bool
    seconds: int
    """Of a run."""
    long: int
    """Of a run on the large model, whose batches take half a second each."""
    brief: int
    """Of a run that chooses between timers, or of a point on a curve."""
    warm_up: int
    repeats: int
    """Of the comparison that matters most."""
    few: int
    """Of the others."""


FULL = Plan(quick=False, seconds=6, long=20, brief=3, warm_up=2, repeats=5, few=3)
QUICK = Plan(quick=True, seconds=2, long=12, brief=1, warm_up=1, repeats=2, few=1)
