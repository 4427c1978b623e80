"""How selected elements reach all workers.

An exchange gets what each worker selected of every unit and returns the mean of
all, the same bits everywhere: messages are added one worker after another, and
the indices of a message are distinct, so no order of additions is left to a
compiler.

  all_gather      every worker sends its message to all others: traffic grows
                  with the number of workers
  owner_sharded   every worker owns a stripe of each unit: it is sent what all
                  selected there, adds it up, selects again and sends that to
                  all; what it does not forward it keeps. Traffic does not grow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.collectives.sparsity.selection import Stripes, select_each
from bandwidth.collectives.sparsity.units import Units, check_places
from bandwidth.collectives.traffic.closed_forms import (
  all_gather_bytes,
  all_to_all_bytes,
)
from bandwidth.collectives.wire.sparse_message import Entries, SparseMessage
from bandwidth.collectives.workers.axes import axis_names, gather_workers
from bandwidth.collectives.workers.ordered import pairwise_sum

Vectors = list[jax.Array]
"""float32, one for each unit of selection."""


class Exchanged(NamedTuple):
  """What an exchange returns.

  Attributes:
    mean: over the workers, float32 [size] of each unit.
    dense: mean of the elements that are not sparsified, float32.
    owned: what this worker keeps of the sums that it owns.
  """

  mean: Vectors
  dense: jax.Array
  owned: tuple[jax.Array, ...]


def gather_message(units: Units, density: float, values: str) -> SparseMessage:
  """Returns the layout of the message that a worker sends to all others."""
  check_places(sum(units.sizes), 'all parameters')
  return SparseMessage(
    units.sizes, units.counts(density), units.dense_size, values
  )


def all_gather(
  entries: Entries,
  dense: jax.Array,
  *,
  units: Units,
  message: SparseMessage,
  axis: str | None,
) -> Exchanged:
  """Sends a worker's entries to all others.

  Args:
    entries: entries selected by this worker.
    dense: float32 [units.dense_size], elements sent in full.
    units: units of selection, dealt out to a single owner.
    message: layout of the message, from `gather_message`.
    axis: name of the mapped axis of the workers. None: one worker.
  """
  data = message.encode(entries, dense)
  gathered = gather_workers(data, axis_names(axis))
  workers = gathered.shape[0]

  def add(p: jax.Array, sums: Vectors) -> Vectors:
    found, _ = message.decode(gathered[p])
    return _added(sums, found.indices, found.values, workers)

  start = [jnp.zeros(size, jnp.float32) for size in units.sizes]
  return Exchanged(
    mean=_for_each_worker(workers, add, start),
    dense=_dense_mean(gathered, message),
    owned=(),
  )


def owner_messages(
  units: Units, density: float, values: str, forward: float
) -> tuple[SparseMessage, SparseMessage]:
  """Returns the layouts of what goes to an owner, and of what it sends to all.

  Args:
    units: dealt out to as many owners as there are workers.
    density: fraction of the elements that a worker selects, in (0, 1].
    values: name of the format of the values, see `value_format`.
    forward: entries that an owner sends to all, as a multiple of those that it
      gets from one worker.
  """
  owners = units.layouts[0].count if units.layouts else 1
  counts, sizes = units.counts(density), units.local_sizes
  check_places(sum(sizes), 'the stripes of an owner')
  forwarded = tuple(
    min(max(round(forward * k), 1), size)
    for k, size in zip(counts, sizes, strict=True)
  )
  chunk = -(-units.dense_size // owners)
  return (
    SparseMessage(sizes, counts, chunk, values),
    SparseMessage(sizes, forwarded, chunk, values),
  )


def owner_sharded(
  entries: Entries,
  dense: jax.Array,
  owned: Sequence[jax.Array],
  *,
  units: Units,
  messages: tuple[SparseMessage, SparseMessage],
  axis: str | None,
) -> Exchanged:
  """Sends a worker's entries to their owners, and what these select to all.

  Args:
    entries: local indices and values, [owners, count] of each unit.
    dense: float32 [units.dense_size], elements sent in full.
    owned: what this worker kept of its sums, float32 [local_size] of each unit.
    units: dealt out to as many owners as there are workers.
    messages: layouts of the two messages, from `owner_messages`.
    axis: name of the mapped axis of the workers. None: one worker.
  """
  to_owner, to_all = messages
  owners = units.layouts[0].count if units.layouts else 1
  padded = jnp.pad(dense, (0, owners * to_owner.dense - dense.size))
  data = jax.vmap(to_owner.encode)(entries, padded.reshape(owners, -1))
  if axis:
    data = lax.all_to_all(data, axis, split_axis=0, concat_axis=0)

  def add(p: jax.Array, sums: Vectors) -> Vectors:
    found, _ = to_owner.decode(data[p])
    return _added(sums, found.indices, found.values, 1)

  sums = _for_each_worker(owners, add, list(owned))
  chunk = _dense_mean(data, to_owner)
  chosen = Entries(*_select(sums, to_all.counts))
  kept = [
    _replaced(s, i, v - r)
    for s, i, v, r in zip(
      sums,
      chosen.indices,
      chosen.values,
      to_all.rounded(chosen.values),
      strict=True,
    )
  ]
  message = to_all.encode(chosen, chunk)
  gathered = gather_workers(message, axis_names(axis))
  return Exchanged(
    mean=_joined_means(gathered, to_all, units),
    dense=_dense_part(gathered, to_all).reshape(-1)[: dense.size],
    owned=tuple(kept),
  )


def _joined_means(
  gathered: jax.Array, message: SparseMessage, units: Units
) -> Vectors:
  workers = gathered.shape[0]

  def put(p: jax.Array, means: Vectors) -> Vectors:
    found, _ = message.decode(gathered[p])
    places = [
      layout.places(index, p)
      for layout, index in zip(units.layouts, found.indices, strict=True)
    ]
    return _added(means, places, found.values, workers)

  start = [jnp.zeros(size, jnp.float32) for size in units.sizes]
  return _for_each_worker(workers, put, start)


def _select(
  vectors: Vectors, counts: Sequence[int]
) -> tuple[list[jax.Array], list[jax.Array]]:
  layouts = [Stripes(vector.size, 1, 1) for vector in vectors]
  indices = [i[0] for i in select_each(vectors, layouts, counts)]
  values = [v[i] for v, i in zip(vectors, indices, strict=True)]
  return indices, values


def _added(
  sums: Vectors, places: Vectors, values: Vectors, divisor: int
) -> Vectors:
  return [
    total.at[at].add(
      value / divisor,
      mode='drop',
      unique_indices=True,
      indices_are_sorted=True,
    )
    for total, at, value in zip(sums, places, values, strict=True)
  ]


def _replaced(
  vector: jax.Array, places: jax.Array, values: jax.Array
) -> jax.Array:
  return vector.at[places].set(values, mode='drop', unique_indices=True)


def _for_each_worker(workers: int, add: object, start: Vectors) -> Vectors:
  return lax.fori_loop(0, workers, add, start)


def _dense_part(gathered: jax.Array, message: SparseMessage) -> jax.Array:
  words = gathered[:, message.nbytes - 4 * message.dense :]
  words = words.reshape(gathered.shape[0], message.dense, 4)
  return lax.bitcast_convert_type(words, jnp.float32)


def _dense_mean(gathered: jax.Array, message: SparseMessage) -> jax.Array:
  return pairwise_sum(_dense_part(gathered, message)) / gathered.shape[0]


def all_gather_traffic(message: SparseMessage, workers: int) -> int:
  """Returns the bytes that a worker sends in `all_gather`."""
  return all_gather_bytes(message.nbytes, workers)


def owner_sharded_traffic(
  messages: tuple[SparseMessage, SparseMessage], workers: int
) -> int:
  """Returns the bytes that a worker sends in `owner_sharded`."""
  to_owner, to_all = messages
  return all_to_all_bytes(
    workers * to_owner.nbytes, workers
  ) + all_gather_bytes(to_all.nbytes, workers)
