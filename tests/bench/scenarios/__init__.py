"""Everything that is measured, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from measure import Bench
from results import Section
from scenarios import curves, models, proxy, small, streams, uneven


@dataclass(frozen=True)
class Scenario:
    run: Callable[[Bench], Section]
    quick: bool
    """Whether the quick bench has it too."""

    @property
    def about(self) -> str:
        return (self.run.__doc__ or "").splitlines()[0]


SCENARIOS = {
    "small": Scenario(small.forty_users, quick=True),
    "small-80": Scenario(small.eighty_users, quick=True),
    "lone": Scenario(small.lone_user, quick=True),
    "open": Scenario(curves.open_loop, quick=True),
    "bursts": Scenario(small.bursts, quick=False),
    "opt": Scenario(models.opt, quick=True),
    "builtin": Scenario(models.builtin, quick=False),
    "halves": Scenario(uneven.halves_small, quick=True),
    "halves-opt": Scenario(uneven.halves_opt, quick=False),
    "spread": Scenario(uneven.spread, quick=True),
    "long-answers": Scenario(uneven.long_answers_small, quick=True),
    "long-answers-opt": Scenario(uneven.long_answers_opt, quick=False),
    "cancellations": Scenario(uneven.cancellations, quick=True),
    "overload": Scenario(uneven.overload, quick=True),
    "lone-stream": Scenario(streams.lone_stream, quick=True),
    "lazy-readers": Scenario(streams.lazy_readers, quick=True),
    "proxy-limit": Scenario(proxy.limit, quick=True),
    "memory": Scenario(proxy.memory, quick=True),
    "locust": Scenario(small.locust, quick=False),
    "sweep": Scenario(curves.sweep, quick=False),
}
