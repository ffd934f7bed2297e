"""What a user got wrong, said in one line: the field, its value, the values allowed."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct; the command line prints it as one line and exits with code 2.

    Args:
      field: what was set, as the user would write it (`data.images`, `--source`, a file's name).
      value: what it was set to.
      allowed: what would have been accepted, in words.
    """

    def __init__(self, field: str, value: object, allowed: str):
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: {value!r} is not accepted; allowed: {allowed}")

    def __reduce__(self):
        # Exceptions cross process borders in streaming data workers; the default would pass one string to three
        # arguments.
        return type(self), (self.field, self.value, self.allowed)


def one_of(field: str, value: str, names: Iterable[str]) -> str:
    """Returns `value` if it is one of `names`; else raises a `UserError` that lists them and the nearest."""
    names = sorted(names)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    raise UserError(field, value, ", ".join(names) + (f" (did you mean {near[0]}?)" if near else ""))


class NotFinite(Exception):
    """A training that left the finite numbers; one line names the metric and says what helps.

    Args:
      metric: its name.
      value: what it was.
      images_seen: when.
    """

    def __init__(self, metric: str, value: float, images_seen: int):
        self.metric, self.value, self.images_seen = metric, value, images_seen
        super().__init__(
            f"training diverged: {metric} is {value} at {images_seen / 1000:g} kimg; lower optimizer.lr_g and "
            "optimizer.lr_d in another workdir, or set compute.dtype=float32 if it was another"
        )

    def __reduce__(self):
        return type(self), (self.metric, self.value, self.images_seen)


class Stopped(Exception):
    """A run that a signal has stopped after saving everything."""

    def __init__(self, workdir: str, images_seen: int):
        self.workdir, self.images_seen = workdir, images_seen
        super().__init__(
            f"stopped by a signal at {images_seen / 1000:g} kimg, saved in {workdir}; "
            "run the same command again to go on"
        )
