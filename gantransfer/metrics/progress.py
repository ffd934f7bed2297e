"""How far a long pass is, and how long it still takes: a line now and then on standard error."""

import sys
import time
from collections.abc import Callable

SECONDS_BETWEEN = 10.0


class Progress:
    """Says a line at most every `every` seconds, and how long 1000 took at the end of what took as long.

    Args:
      what: is being done, such as "features of digits".
      every: seconds between lines.
      clock: seconds, for tests.
      say: takes a line; None prints it on standard error.
    """

    def __init__(
        self,
        what: str,
        *,
        every: float = SECONDS_BETWEEN,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ):
        self.what, self.every, self.clock = what, every, clock
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))

    def begin(self, done: int, total: int) -> None:
        """Starts the clock, with `done` of `total` done before."""
        self.before, self.total = done, total
        self.began = self.said = self.clock()
        if done:
            self.say(f"{self.what}: goes on at {done:,} of {total:,}")

    def at(self, done: int) -> None:
        """Tells how far it is."""
        now = self.clock()
        if done < self.total and now - self.said >= self.every:
            left = (now - self.began) / (done - self.before) * (self.total - done)
            self.say(f"{self.what}: {done:,} of {self.total:,}, {duration(left)} left")
            self.said = now
        elif done >= self.total and now - self.began >= self.every:
            taken = now - self.began
            per_thousand = 1000 * taken / max(done - self.before, 1)
            self.say(f"{self.what}: {self.total:,} in {duration(taken)}, {per_thousand:.3g} s per 1000")


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes: `0:42`, `12:03`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
