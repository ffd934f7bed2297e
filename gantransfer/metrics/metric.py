"""What a metric is: a name, what it needs of both sides, how few pictures it takes, and a function of a `Case`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gantransfer.metrics.pictures import Pictures
from gantransfer.metrics.statistics import Statistics

NOTHING: frozenset[str] = frozenset()
MOMENTS = frozenset({"moments"})
FEATURES = frozenset({"features"})
LOGITS = frozenset({"logits"})


@dataclass(frozen=True)
class Value:
    """One number of a metric.

    Attributes:
      metric: what the number is called.
      value: the number.
      spread: of subsets or splits, where the metric has one; not the error of the value.
      details: further JSON.
    """

    metric: str
    value: float
    spread: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What a metric is computed of.

    Attributes:
      real, fake: statistics of both sides under the metric's network.
      real_pictures, fake_pictures: the sides themselves; no real ones where their statistics are from a file.
      network: the feature network.
      settings: of the metric, by the protocol.
      seed: of everything that the metric draws.
      train, train_pictures: what the generator was trained on; None where not known.
      folder: where pictures go; None: nowhere.
      names: of the metric's numbers.
    """

    real: Statistics
    fake: Statistics
    real_pictures: Pictures | None
    fake_pictures: Pictures
    network: Any
    settings: Mapping[str, Any]
    seed: int = 0
    train: Statistics | None = None
    train_pictures: Pictures | None = None
    folder: Path | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: what it is asked for by.
      makes: names of its numbers.
      about: its definition in a line.
      paper: where it is from.
      better: whether `lower` or `higher` is better; empty where neither is.
      compute: from a `Case` to values.
      real, fake: what it needs of the sides' features.
      network: the network that published numbers take; None: the protocol's.
      pipeline: how pictures are brought to the network's size, where the metric's name says so; None: the protocol's.
      tied: whether the metric's name stands for its network, so that no other takes its place.
      settings: what can be set, with defaults.
      least: fewest pictures of each side: a number, or the name of a setting that it must exceed.
      labels: whether both sides need the same classes.
      train: whether it needs the images that were trained on.
      most_train: how many of these it is made for; None: any number.
      maps: whether it compares maps of the network's stages, which not every network has.
      generator: whether it needs a generator, not pictures of one.
      pictures: whether it looks at the real pictures themselves.
      named: names of its numbers under some settings on a network, where they depend on these; None: `makes`.
    """

    name: str
    makes: tuple[str, ...]
    about: str
    paper: str
    better: str
    compute: Callable[[Case], list[Value]]
    real: frozenset[str] = NOTHING
    fake: frozenset[str] = NOTHING
    network: str | None = None
    pipeline: str | None = None
    tied: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    least: int | str = 2
    labels: bool = False
    train: bool = False
    most_train: int | None = None
    maps: bool = False
    generator: bool = False
    pictures: bool = False
    named: Callable[[str, Mapping[str, Any], str | None], str] | None = None

    def names(self, settings: Mapping[str, Any], network: str | None) -> tuple[str, ...]:
        """Names of its numbers under these settings on this network."""
        return self.makes if self.named is None else (self.named(self.name, settings, network),)

    @property
    def needs_network(self) -> bool:
        """Whether a feature network takes part."""
        return bool(self.real or self.fake or self.network)

    @property
    def needs_real(self) -> bool:
        """Whether real images take part."""
        return bool(self.real) or self.pictures

    @property
    def of_moments(self) -> bool:
        """Whether mean and covariance are all that it needs of real images, so that a file of them will do."""
        return self.real == MOMENTS and not (self.labels or self.pictures)

    def least_images(self, settings: Mapping[str, Any]) -> int:
        """Fewest pictures of each side under these settings."""
        return self.least if isinstance(self.least, int) else int(settings[self.least]) + 1
