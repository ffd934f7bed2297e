"""Batches of a run, gathered on the device inside the step or streamed from files: the same images both ways."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

from gantransfer.data.image_set import ImageSet
from gantransfer.data.order import MAX_POSITION, positions_to_draws
from gantransfer.errors import UserError

__all__ = [
    "DeviceImages",
    "Stream",
    "device_images",
    "fits_on_device",
    "gather",
    "positions_to_draws",
    "stream",
    "to_float",
]

# Batches that are decoded ahead of the step, per worker.
AHEAD = 4


class DeviceImages(NamedTuple):
    """A whole set as arrays: a pytree that lives on the device and is an argument of the step, never donated.

    Attributes:
      images: uint8 `(n, h, w, channels)`.
      labels: int32 `(n,)`.
    """

    images: UInt8[Array, "n h w c"] | UInt8[np.ndarray, "n h w c"]
    labels: Int32[Array, " n"] | Int32[np.ndarray, " n"]


def fits_on_device(image_set: ImageSet, limit_bytes: int) -> bool:
    """Whether the set as uint8, with its labels, takes at most `limit_bytes`."""
    pixels = image_set.resolution**2 * image_set.channels
    return len(image_set) * (pixels + 4) <= limit_bytes


def device_images(image_set: ImageSet) -> DeviceImages:
    """Decodes the whole set into host arrays, ready for `jax.device_put` with the sharding of the caller's choice."""
    return DeviceImages(*image_set.arrays())


def to_float(images: UInt8[Array, "n h w c"] | UInt8[np.ndarray, "n h w c"]) -> Float[Array, "n h w c"]:
    """Maps uint8 pixels to float32 in [-1, 1]: x / 127.5 - 1, rounded once.

    The literal expression depends on how it is compiled (as a reciprocal, as a fused multiply-add) and gives white as
    1.0000001 under jit; 2 x - 255 is exact, so that every compiler gives the same bits and white is 1.
    """
    return (2.0 * jnp.asarray(images).astype(jnp.float32) - 255.0) * np.float32(1 / 255)


def gather(
    held: DeviceImages,
    indices: Int32[Array, " b"] | Int32[np.ndarray, " b"],
    flips: Bool[Array, " b"] | Bool[np.ndarray, " b"],
) -> tuple[Float[Array, "b h w c"], Int32[Array, " b"]]:
    """The batch that `positions_to_draws` names, for use inside jit: float32 images in [-1, 1] and int32 labels."""
    images = jnp.asarray(held.images)[indices]
    images = jnp.where(jnp.asarray(flips)[:, None, None, None], images[:, :, ::-1], images)
    return to_float(images), jnp.asarray(held.labels)[indices]


@dataclass(frozen=True)
class _Batches:
    """What grain reads: batch number k of a run, counted from the image position `first`."""

    image_set: ImageSet
    seed: int
    batch: int
    mirror: bool
    process_index: int
    process_count: int
    first: int = 0

    def __len__(self) -> int:
        return (MAX_POSITION - self.first) // self.batch

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        local = self.batch // self.process_count
        start = self.first + int(number) * self.batch + self.process_index * local
        positions = np.arange(start, start + local, dtype=np.int64)
        indices, flips = positions_to_draws(self.seed, positions, len(self.image_set), mirror=self.mirror, xp=np)
        images = np.stack([self.image_set.read(int(i))[0] for i in indices])
        images[flips] = images[flips, :, ::-1]
        return images, self.image_set.labels[indices]


class Stream(Iterator[tuple[np.ndarray, np.ndarray]]):
    """Endless batches of a run, decoded ahead by threads or worker processes; made by `stream`.

    The state is one integer, the position of the first image of the next batch, whatever the number of workers. So a
    run may go on with other workers, or on the device path, and shows the same images.
    """

    def __init__(self, batches: _Batches, workers: int):
        self._batches, self._workers, self._batch = batches, workers, batches.batch
        self._inner: Any = None
        self.set_state(batches.first)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        """The next `(uint8 images (b, h, w, c), int32 labels (b,))`; b is this process's share of the batch."""
        if self._inner is None:
            self._inner = self._start()
        images, labels = next(self._inner)
        self._position += self._batch
        return images, labels

    def get_state(self) -> int:
        """How many images the run has shown before the next batch."""
        return self._position

    def set_state(self, position: int) -> None:
        """Goes to the batch that begins at this image position; batches decoded ahead are thrown away."""
        if not 0 <= position <= MAX_POSITION - self._batch:
            raise UserError("images_seen", position, f"0 to {MAX_POSITION - self._batch}")
        self.close()
        self._position = position

    def close(self) -> None:
        """Ends the threads or worker processes; the next batch starts new ones."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def _start(self) -> Any:
        # Imported here: grain takes seconds to import, and sets that live on the device never need it.
        import grain
        from absl import flags

        # Whole batches are grain's elements: were batching left to grain, each worker would batch its own slice of the
        # images and the number of workers would change the data.
        elements = grain.MapDataset.source(replace(self._batches, first=self._position))
        if self._workers == 0:
            return iter(elements.to_iter_dataset(grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)))
        if not flags.FLAGS.is_parsed():
            # Grain's multiprocessing reads absl flags, which nobody has parsed in a notebook or under pytest.
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=AHEAD)
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        return iter(elements.to_iter_dataset(reading).mp_prefetch(options))


def stream(
    image_set: ImageSet,
    *,
    seed: int,
    batch: int,
    first: int = 0,
    mirror: bool = False,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """Streams the batches of a run through grain, for sets too large for the device.

    Args:
      image_set: what to show.
      seed, mirror: as in `positions_to_draws`; the images are the ones that `gather` gives at the same positions.
      batch: images of the global batch.
      first: image position of the first batch (`images_seen` of a run that goes on).
      workers: worker processes that read and decode; 0 uses threads of this process, which suffices for most sets,
        since image decoders run outside Python's lock. Worker processes start by spawn: a script needs
        `if __name__ == "__main__"`.
      process_index, process_count: this host and the number of hosts; host i gets the i-th contiguous share of a batch.

    Raises:
      UserError: the batch cannot be shared among the hosts, or a number is out of range.
    """
    if batch < 1 or batch % process_count:
        raise UserError("batch", batch, f"a positive multiple of the number of hosts ({process_count})")
    if workers < 0:
        raise UserError("data.workers", workers, "0 (threads) or the number of worker processes")
    if not 0 <= process_index < process_count:
        raise UserError("process_index", process_index, f"0 to {process_count - 1}")
    return Stream(_Batches(image_set, seed, batch, mirror, process_index, process_count, first), workers)
