"""When a program that ended is started again. Plain data; the clock is passed in."""

from dataclasses import dataclass

# Seconds.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# A program that was ready for so long is well again.
WELL = 60.0


@dataclass
class Restarts:
    """The restarts of one program."""

    # Whether it, or another like it, has ever been ready.
    proved: bool = False
    pause: float = 0.0
    ready_since: float | None = None

    def ready(self, now: float) -> None:
        """It serves."""
        self.proved = True
        if self.ready_since is None:
            self.ready_since = now

    def ended(self, now: float) -> float | None:
        """When to start it again; None where it has never been ready, so that another try would end as this one did.

        The first restart is at once; each further one doubles the pause, until the program was ready for a minute.
        """
        if not self.proved:
            return None
        if self.ready_since is not None and now - self.ready_since >= WELL:
            self.pause = 0.0
        self.ready_since = None
        at = now + self.pause
        self.pause = min(max(FIRST_PAUSE, 2 * self.pause), LONGEST_PAUSE)
        return at
