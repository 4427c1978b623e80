"""Batches of examples that are decoded as they are asked for.

grain reads and decodes with threads. Its data set here is the range of stream
positions: which example lies at a position is computed (`order.py`), so there
is no iterator state to save.
"""

import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from experiments.datasets import order
from experiments.datasets.splits import Examples, ImageShape

Batch = dict[str, np.ndarray]

# Reading waits and decoding computes; for images of a few kB, more threads than
# this only wait for Python's lock.
_READ_THREADS = min(16, 2 * (os.cpu_count() or 1))
# Enough to decode the next batch while one is in use; images of a large set are
# too big for grain's default of 500 elements to be a bound on memory.
_BATCHES_IN_FLIGHT = 2


class StreamedSplit:
  """Examples that stay on disk until a batch asks for them.

  Args:
    examples: the stored examples, at random access.
    indices: int32 [N], those of the examples that make up this split, in the
      split's stored order; all of them by default.
  """

  def __init__(
    self, examples: Examples, *, indices: np.ndarray | None = None
  ) -> None:
    if indices is None:
      indices = np.arange(len(examples), dtype=np.int32)
    self._examples, self._indices = examples, indices

  def __len__(self) -> int:
    return len(self._indices)

  @property
  def image_shape(self) -> ImageShape:
    """The shape of every image."""
    return self._examples.image_shape

  def take(self, indices: np.ndarray) -> 'StreamedSplit':
    """Returns the examples at `indices`, integer [M], still on disk."""
    return StreamedSplit(self._examples, indices=self._indices[indices])

  def batches(
    self, *, seed: int, batch_size: int, first_step: int, rows: slice
  ) -> Iterator[Batch]:
    """Yields some rows of the global batches, step after step, without end.

    Args:
      seed: of the order, see `epoch_order`.
      batch_size: examples in a global batch, B.
      first_step: steps of the run before the first batch.
      rows: the rows to decode, `slice(start, stop)` within 0 to B: those of
        this process.

    Returns:
      One dictionary a step: `image` uint8 [rows, H, W, C] and `label` int32
      [rows], the examples `step_indices(seed, step, B, N)[rows]`.

    Raises:
      ValueError: an argument is out of range; and while iterating, an example
        cannot be read or decoded.
    """
    fixed = {'seed': seed, 'batch_size': batch_size, 'length': len(self)}
    order.step_indices(step=first_step, **fixed)
    start, size = _row_range(rows, batch_size)

    def read(position: int) -> Batch:
      step, row = divmod(position, size)
      indices = order.step_indices(step=first_step + step, **fixed)
      return self._read(indices[start + row])

    return _stream(read, count=sys.maxsize, batch_size=size)

  def ordered(self, *, batch_size: int, rows: slice) -> Iterator[Batch]:
    """Yields some rows of the global batches of one pass in stored order.

    Args:
      batch_size: examples in a global batch, B.
      rows: the rows to decode, `slice(start, stop)` within 0 to B: those of
        this process.

    Returns:
      ceil(N / B) dictionaries, whatever the rows: `image` uint8
      [rows, H, W, C], `label` int32 [rows] and `weight` float32 [rows], which
      is 1 for an example and 0 for the zeros that fill up the last batch.

    Raises:
      ValueError: an argument is out of range; and while iterating, an example
        cannot be read or decoded.
    """
    start, size = _row_range(rows, batch_size)
    blank = {
      'image': np.zeros(self.image_shape, np.uint8),
      'label': np.zeros((), np.int32),
      'weight': np.zeros((), np.float32),
    }

    def read(position: int) -> Batch:
      batch, row = divmod(position, size)
      index = batch * batch_size + start + row
      if index >= len(self):
        return blank
      return {**self._read(index), 'weight': np.ones((), np.float32)}

    count = -(-len(self) // batch_size) * size
    return _stream(read, count=count, batch_size=size)

  def _read(self, index: int) -> Batch:
    example = self._examples[int(self._indices[index])]
    label = np.asarray(example.label, np.int32)
    return {'image': example.image, 'label': label}


def _row_range(rows: slice, batch_size: int) -> tuple[int, int]:
  """Returns the first row and how many there are."""
  start = 0 if rows.start is None else rows.start
  stop = batch_size if rows.stop is None else rows.stop
  if rows.step not in (None, 1) or not 0 <= start < stop <= batch_size:
    raise ValueError(
      f'rows={rows} is not a non-empty range within batch_size={batch_size}'
    )
  return start, stop - start


def _stream(
  read: Callable[[int], Batch], *, count: int, batch_size: int
) -> Iterator[Batch]:
  """Yields `read` of positions 0, 1, ... in batches."""
  import grain  # Takes 0.6 s, and sets in memory have no use for it.

  options = grain.ReadOptions(
    num_threads=_READ_THREADS,
    prefetch_buffer_size=_BATCHES_IN_FLIGHT * batch_size,
  )
  positions = grain.MapDataset.range(count).map(read)
  batches = positions.to_iter_dataset(options).batch(batch_size)
  iterator = iter(batches)
  try:
    yield from iterator
  except ValueError as error:
    # grain appends remarks on tracebacks to the one line that there was.
    raise ValueError(str(error).partition('\n')[0]) from None
  finally:
    iterator.close()
