"""How long each thing is measured: the full bench takes about 18 minutes on two cores, the quick one about 5."""

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


FULL = Plan(quick=False, seconds=4, long=14, brief=2, warm_up=1, repeats=3, few=2)
QUICK = Plan(quick=True, seconds=1, long=8, brief=1, warm_up=1, repeats=1, few=1)
