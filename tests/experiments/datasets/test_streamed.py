import itertools
import threading

import numpy as np
import pytest

from experiments.datasets import StreamedSplit, step_indices
from experiments.datasets.splits import Example


class Stored:
  """Examples whose pixels and label tell their number."""

  image_shape = (2, 3, 1)

  def __init__(self, length, bad=()):
    self.length, self.bad = length, bad
    self.read = []

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    self.read.append(index)
    if index in self.bad:
      raise ValueError(f'shard-{index}: damaged')
    return Example(np.full(self.image_shape, index % 256, np.uint8), index)


def test_batches_are_those_of_the_step_indices():
  split = StreamedSplit(Stored(23))
  arguments = {'seed': 5, 'batch_size': 7}
  stream = split.batches(first_step=2, rows=slice(0, 7), **arguments)
  for step, batch in zip(range(2, 9), stream, strict=False):
    expected = step_indices(step=step, length=23, **arguments)
    np.testing.assert_array_equal(batch['label'], expected)
    assert batch['label'].dtype == np.int32
    assert batch['image'].shape == (7, 2, 3, 1)
    assert batch['image'].dtype == np.uint8
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], expected)
  stream.close()


def test_processes_share_a_batch():
  def first(rows):
    split = StreamedSplit(Stored(40))
    stream = split.batches(seed=1, batch_size=8, first_step=3, rows=rows)
    labels = [b['label'] for b in itertools.islice(stream, 4)]
    stream.close()
    return labels

  parts = [first(slice(start, start + 2)) for start in range(0, 8, 2)]
  for whole, *shares in zip(first(slice(None)), *parts, strict=True):
    np.testing.assert_array_equal(whole, np.concatenate(shares))


def test_a_stream_reads_its_own_rows_and_little_ahead():
  stored = Stored(1000)
  stream = StreamedSplit(stored).batches(
    seed=0, batch_size=100, first_step=0, rows=slice(10, 14)
  )
  next(stream)
  stream.close()
  assert len(stored.read) <= 4 * 4
  expected = [
    step_indices(seed=0, step=step, batch_size=100, length=1000)[10:14]
    for step in range(4)
  ]
  assert set(stored.read) <= set(np.concatenate(expected))


@pytest.mark.parametrize(('length', 'batch'), [(10, 4), (8, 4), (3, 4), (5, 1)])
def test_ordered_is_one_pass_with_weights(length, batch):
  split = StreamedSplit(Stored(length))
  half = max(batch // 2, 1)
  steps = -(-length // batch)
  padded = np.arange(steps * batch).reshape(steps, batch)
  for rows in (slice(0, half), slice(batch - half, batch)):
    batches = list(split.ordered(batch_size=batch, rows=rows))
    assert len(batches) == steps
    for got, numbers in zip(batches, padded[:, rows], strict=True):
      valid = numbers < length
      np.testing.assert_array_equal(got['weight'], valid)
      np.testing.assert_array_equal(got['label'], numbers * valid)
      np.testing.assert_array_equal(got['image'][:, 0, 0, 0], numbers * valid)
      assert got['weight'].dtype == np.float32
      assert got['label'].dtype == np.int32


def test_take_keeps_the_given_order():
  split = (
    StreamedSplit(Stored(10)).take(np.array([7, 2, 5])).take(np.array([2, 0]))
  )
  assert len(split) == 2
  (batch,) = split.ordered(batch_size=2, rows=slice(None))
  assert batch['label'].tolist() == [5, 7]


@pytest.mark.parametrize(
  ('rows', 'batch', 'message'),
  [
    (slice(2, 2), 4, r'rows=slice\(2, 2, None\) is not'),
    (slice(0, 5), 4, 'is not a non-empty range within batch_size=4'),
    (slice(-1, 4), 4, 'is not'),
    (slice(0, 4, 2), 4, 'is not'),
    (slice(0, 11), 11, 'batch_size=11 is not in 1 to 10'),
  ],
)
def test_bad_arguments_are_told_at_once(rows, batch, message):
  split = StreamedSplit(Stored(10))
  with pytest.raises(ValueError, match=message):
    split.batches(seed=0, batch_size=batch, first_step=0, rows=rows)
  if batch == 4:
    with pytest.raises(ValueError, match=message):
      split.ordered(batch_size=batch, rows=rows)
  with pytest.raises(ValueError, match='batch_size=0'):
    split.ordered(batch_size=0, rows=slice(0, 1))


def test_damage_is_told_by_its_own_message():
  split = StreamedSplit(Stored(10, bad={6}))
  with pytest.raises(ValueError, match=r'^shard-6: damaged$'):
    list(split.ordered(batch_size=4, rows=slice(None)))


def test_closing_ends_the_threads():
  before = threading.active_count()
  for _ in range(20):
    stream = StreamedSplit(Stored(10)).batches(
      seed=0, batch_size=2, first_step=0, rows=slice(None)
    )
    next(stream)
    stream.close()
  for thread in threading.enumerate():
    if thread.name.startswith('grain-prefetch'):
      thread.join(timeout=10)
  assert threading.active_count() <= before
