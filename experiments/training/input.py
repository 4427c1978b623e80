"""From data sets to what lies on the devices when a step begins.

Sets that were decoded into memory are put on every device once, and a step
gathers its examples there: all that a training run sends to the devices
afterwards is the order of each epoch. Larger sets are streamed, a batch a step.
In both cases the examples of a step are a function of (seed, step) alone, and
worker w of P takes the w-th of P equal parts of the batch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import Split, StreamedSplit, epoch_order
from experiments.training.workers import PER_WORKER, REPLICATED, Workers


class ResidentFeed(NamedTuple):
  """A set on the device, and the order of one epoch."""

  data: Any  # `image` uint8 [N, H, W, C] and `label` int32 [N], replicated
  order: Any  # int32 [P, steps, batch / P], indices into `data`


class ResidentInput:
  """Training batches from a set that lies on the devices."""

  kinds = ResidentFeed(data=REPLICATED, order=PER_WORKER)

  def __init__(
    self, split: Split, workers: Workers, *, batch_size: int, seed: int
  ):
    self.steps_per_epoch = _steps_per_epoch(split, batch_size)
    self._length, self._seed = len(split), seed
    self._workers, self._batch_size = workers, batch_size
    self._data = workers.place(
      {'image': split.image, 'label': split.label}, REPLICATED
    )
    self._epoch = -1
    self._feed: ResidentFeed | None = None

  def feed(self, step: int) -> ResidentFeed:
    """Returns what the step after `step` steps takes its batch from."""
    epoch = step // self.steps_per_epoch
    if epoch != self._epoch or self._feed is None:
      order = epoch_order(self._seed, epoch, self._length)
      order = order[: self.steps_per_epoch * self._batch_size]
      order = order.reshape(self.steps_per_epoch, self._workers.count, -1)
      placed = self._workers.place(order.swapaxes(0, 1), PER_WORKER)
      self._epoch, self._feed = epoch, ResidentFeed(self._data, placed)
    return self._feed

  def select(self, feed: ResidentFeed, step: jax.Array) -> dict[str, jax.Array]:
    """Takes a worker's examples of a step out of its feed, on the device."""
    rows = feed.order[step % self.steps_per_epoch]
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), feed.data)


class StreamedInput:
  """Training batches from a set that is read as it is used."""

  kinds = PER_WORKER

  def __init__(
    self, split: StreamedSplit, workers: Workers, *, batch_size: int, seed: int
  ):
    self.steps_per_epoch = _steps_per_epoch(split, batch_size)
    self._split, self._workers = split, workers
    self._per_worker = batch_size // workers.count
    self._arguments = {'seed': seed, 'batch_size': batch_size}
    self._batches: Iterator[Any] | None = None
    self._step = -1

  def feed(self, step: int) -> dict[str, jax.Array]:
    """Returns the batch of the step after `step` steps."""
    if self._batches is None or step != self._step + 1:
      local = self._workers.local_rows
      rows = slice(
        local.start * self._per_worker, local.stop * self._per_worker
      )
      self._batches = self._split.batches(
        first_step=step, rows=rows, **self._arguments
      )
    self._step = step
    batch = next(self._batches)
    return self._workers.place_local(
      jax.tree.map(
        lambda leaf: leaf.reshape((-1, self._per_worker, *leaf.shape[1:])),
        batch,
      )
    )

  def select(self, feed: Any, step: jax.Array) -> Any:
    """A streamed feed is the batch."""
    del step
    return feed


def make_input(
  split: Split | StreamedSplit, workers: Workers, *, batch_size: int, seed: int
) -> ResidentInput | StreamedInput:
  """Chooses how training batches reach the devices.

  Raises:
    ValueError: the batch can't be dealt out to the workers, or the set is
      smaller than a batch.
  """
  if batch_size < 1 or batch_size % workers.count:
    raise ValueError(
      f'batch_size={batch_size} is not divisible by workers={workers.count}'
    )
  if isinstance(split, Split):
    return ResidentInput(split, workers, batch_size=batch_size, seed=seed)
  return StreamedInput(split, workers, batch_size=batch_size, seed=seed)


def _steps_per_epoch(split: Split | StreamedSplit, batch_size: int) -> int:
  steps = len(split) // batch_size
  if not steps:
    raise ValueError(
      f'batch_size={batch_size} exceeds the {len(split)} training examples'
    )
  return steps


class EvaluationInput:
  """The batches of one pass over a split, for evaluation on all devices.

  Batches of a set in memory stay on the devices. The last batch is padded with
  examples of weight zero.
  """

  def __init__(
    self, split: Split | StreamedSplit, workers: Workers, *, batch_size: int
  ):
    devices = workers.mesh.devices.size
    self._batch_size = -(-batch_size // devices) * devices
    self._split, self._workers = split, workers
    self._kept: list[Any] | None = None

  def __iter__(self) -> Iterator[dict[str, jax.Array]]:
    """Yields `image`, `label` and `weight`, rows dealt out over the devices."""
    if self._kept is None:
      placed = (self._workers.place_local(b) for b in self._local_batches())
      if isinstance(self._split, StreamedSplit):
        return placed
      self._kept = list(placed)
    return iter(self._kept)

  def _local_batches(self) -> Iterator[dict[str, np.ndarray]]:
    devices = self._workers.mesh.devices.size
    local = self._workers.local_rows
    if self._workers.simulated:
      local = slice(0, 1)
    share = self._batch_size // devices
    rows = slice(local.start * share, local.stop * share)
    if isinstance(self._split, StreamedSplit):
      return self._split.ordered(batch_size=self._batch_size, rows=rows)
    return self._padded(self._split, rows)

  def _padded(
    self, split: Split, rows: slice
  ) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(split), self._batch_size):
      index = np.arange(start, start + self._batch_size)[rows]
      weight = (index < len(split)).astype(np.float32)
      index = np.minimum(index, len(split) - 1)
      yield {
        'image': split.image[index],
        'label': split.label[index],
        'weight': weight,
      }
