r"""Options of a layer whose input channels are pruned, refitted in closed form.

The channels of a decision are ordered by importance, and the channels kept are
a prefix of that order. A reader's kernel is refitted to its own outputs before
pruning,

.. math:: \min_{W_k} \|X_k W_k - X W\|^2 + \lambda \|W_k\|^2,

where X are inputs of the unpruned network, so that an option depends only on
its layer and level. With :math:`G = X'X + \lambda I = L L'` in the order of
importance and :math:`z = L^{-1} X'X W`, all prefixes share the rows of z:
:math:`W_k = L_k^{-T} z_{1:k}`, and the error is
:math:`\|XW\|^2 - \sum_{i \le k} \|z_i\|^2`. All levels share one factorization.

The matrix of a kernel `[…, inputs, outputs]` has a row for each input and tap;
the taps of an input are adjacent.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree as tree_lib
from bandwidth.base import Params
from bandwidth.pruning import ChannelAxis, ChannelGroup, channel_positions
from bandwidth.search.linear_algebra import cholesky, solve_lower
from bandwidth.search.problem.space import Space

_HIGHEST = jax.lax.Precision.HIGHEST


class Moments(NamedTuple):
  """Moments of a layer's inputs, in the order of its kernel matrix's rows.

  Attributes:
    gram: X'X / N of the inputs X [N, n], float32 [n, n].
    mean: mean of the rows of X, float32 [n].
  """

  gram: jax.Array
  mean: jax.Array


class Reader(NamedTuple):
  """A kernel that reads a decision's channels.

  Attributes:
    kernel: name of the kernel, 'params/Conv_1/kernel'.
    part: axis of the kernel that the channels lie on.
    shift: name of the array that absorbs a constant: a bias, or the mean of the
      batch normalization that follows. None: there is none.
    sign: sign of the constant in that array: 1 in a bias, -1 in a mean.
  """

  kernel: str
  part: ChannelAxis
  shift: str | None
  sign: float


class Factor(NamedTuple):
  """The factorization from which all options of a reader follow.

  Attributes:
    lower: L, Cholesky factor, rows by importance, float32 [n, n].
    z: L^-1 X'X W, float32 [n, outputs].
    order: row of the kernel's matrix at each place, int32 [n].
    mean: mean of X by importance, float32 [n]; zeros without an intercept.
    kernel: matrix of the original kernel by importance, float32 [n, outputs].
    errors: error of the first k rows, relative to that of none, float32 [n +
      1].
  """

  lower: jax.Array
  z: jax.Array
  order: jax.Array
  mean: jax.Array
  kernel: jax.Array
  errors: jax.Array


class Option(NamedTuple):
  """A reader at one level, or at all levels along a first axis.

  Attributes:
    kernel: float32, in the original shape, zero where channels are removed.
    shift: constant to add to the outputs, float32 [outputs].
    error: squared error relative to that of no channels, float32 [].
  """

  kernel: jax.Array
  shift: jax.Array
  error: jax.Array


def moments(rows: jax.Array) -> Moments:
  """Returns the moments of inputs.

  Args:
    rows: X, the inputs as rows of the kernel's matrix see them, [N, n].
  """
  rows = rows.astype(jnp.float32)
  gram = jnp.matmul(rows.T, rows, precision=_HIGHEST) / rows.shape[0]
  return Moments(gram, rows.mean(0))


def to_matrix(kernel: jax.Array) -> jax.Array:
  """Returns a kernel [..., inputs, outputs] as [inputs * taps, outputs].

  >>> to_matrix(jnp.arange(4.0).reshape(2, 2, 1))[:, 0].tolist()
  [0.0, 2.0, 1.0, 3.0]
  """
  taps = kernel.reshape(-1, *kernel.shape[-2:])
  return jnp.moveaxis(taps, 0, 1).reshape(-1, kernel.shape[-1])


def from_matrix(matrix: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Inverts `to_matrix`, given the shape of the kernel."""
  inputs, outputs = shape[-2:]
  taps = jnp.moveaxis(matrix.reshape(inputs, -1, outputs), 1, 0)
  return taps.reshape(tuple(shape))


def channel_order(tree: Params, group: ChannelGroup) -> np.ndarray:
  """Returns the channels of a group by importance: int [channels].

  The importance of a channel is the sum of the magnitudes of all weights that
  read it; ties go to the lower channel. He et al., AMC, section 3.3.
  """
  leaves = dict(tree_lib.named_leaves(tree))
  total = np.zeros(group.channels)
  for part in group.inputs:
    kernel = np.abs(np.asarray(leaves[part.name], np.float64))
    by_input = np.moveaxis(kernel, part.axis, 0)
    sums = by_input.reshape(by_input.shape[0], -1).sum(1)
    total += sums[channel_positions(part, group, leaves)].sum(1)
  return np.argsort(-total, kind='stable')


def row_order(
  tree: Params, group: ChannelGroup, part: ChannelAxis, channels: np.ndarray
) -> np.ndarray:
  """Returns the rows of a reader's matrix by importance of their channels.

  Args:
    tree: parameters that hold the kernel.
    group: the channels that the kernel reads.
    part: the kernel's input axis; the group must cover all of it.
    channels: the group's channels by importance, int [channels].

  Returns:
    int32 [n]; each channel has n / channels rows.

  Raises:
    ValueError: the kernel reads other channels too.
  """
  leaves = dict(tree_lib.named_leaves(tree))
  shape = np.shape(leaves[part.name])
  positions = channel_positions(part, group, leaves)
  if positions.size != shape[-2]:
    raise ValueError(
      f'{part.name}: it reads {shape[-2]} inputs, and {positions.size} are '
      f'channels of {group.name}: such a join cannot be refitted'
    )
  taps = int(np.prod(shape[:-2]))
  rows = positions[channels][..., None] * taps + np.arange(taps)
  return rows.reshape(-1).astype(np.int32)


def factorize(
  kernel: jax.Array,
  order: jax.Array,
  inputs: Moments,
  *,
  ridge: float = 1e-4,
  intercept: bool = True,
) -> Factor:
  """Factorizes the moments of a reader, from which all its options follow.

  Args:
    kernel: weights, floating [..., inputs, outputs].
    order: rows of its matrix by importance, int32 [n]; see `row_order`.
    inputs: moments of the kernel's inputs, see `moments`.
    ridge: lambda, relative to the mean of the diagonal of X'X.
    intercept: whether to fit a constant too, as if X had a column of ones that
      every prefix contains and that is not regularized.
  """
  weights = to_matrix(kernel.astype(jnp.float32))[order]
  mean = inputs.mean[order] * intercept
  gram = inputs.gram[order][:, order] - mean[:, None] * mean[None]
  product = jnp.matmul(gram, weights, precision=_HIGHEST)
  scale = jnp.trace(gram) / gram.shape[0]
  # Differences of rounded numbers: only noise is left of constant inputs, and
  # nothing of dead ones, and both must be factorized.
  noise = 1e-6 * jnp.trace(inputs.gram) / gram.shape[0]
  penalty = jnp.maximum(jnp.maximum(ridge * scale, noise), 1e-12)
  lower = cholesky(gram + penalty * jnp.eye(gram.shape[0]))
  z = solve_lower(lower, product)
  energy = jnp.maximum(jnp.sum(weights * product), 1e-30)
  explained = jnp.cumsum(jnp.sum(z**2, axis=1)) / energy
  errors = 1.0 - jnp.concatenate([jnp.zeros(1), explained])
  return Factor(lower, z, order, mean, weights, jnp.maximum(errors, 0.0))


def option(
  factor: Factor, rows: jax.Array, shape: Sequence[int], *, refit: bool = True
) -> Option:
  """Returns a reader of which only the first rows stay.

  Args:
    factor: the reader's, of `factorize`.
    rows: number of rows that stay, int32 [], traced or not. All: the original
      kernel.
    shape: shape of the kernel, [..., inputs, outputs].
    refit: whether the remaining weights are fitted anew; else they keep their
      values.
  """
  count = factor.order.shape[0]
  index = jnp.arange(count)
  stays = (index < rows)[:, None]
  if refit:
    both = stays & stays.T
    lower = jnp.where(both, factor.lower, jnp.eye(count))
    right = jnp.where(stays, factor.z, 0.0)
    fitted = solve_lower(lower, right, transposed=True)
    fitted = jnp.where(rows == count, factor.kernel, fitted)
  else:
    fitted = jnp.where(stays, factor.kernel, 0.0)
  lost = factor.kernel - fitted
  shift = jnp.matmul(factor.mean, lost, precision=_HIGHEST)
  matrix = jnp.zeros_like(fitted).at[factor.order].set(fitted)
  return Option(from_matrix(matrix, shape), shift, factor.errors[rows])


def option_table(
  factor: Factor,
  channels: np.ndarray,
  shape: Sequence[int],
  *,
  all_channels: int,
  refit: bool = True,
) -> Option:
  """Returns a reader at all levels, along a first axis.

  Args:
    factor: the reader's, of `factorize`.
    channels: number of channels kept at each level, int [M].
    shape: shape of the kernel, [..., inputs, outputs].
    all_channels: number of channels of the decision.
    refit: whether the remaining weights are fitted anew.
  """
  rows = jnp.asarray(channels) * (factor.order.shape[0] // all_channels)
  return jax.lax.map(
    lambda count: option(factor, count, shape, refit=refit), rows
  )


def with_options(
  variables: Params,
  readers: Sequence[tuple[int, Reader]],
  tables: Sequence[Option],
  candidate: jax.Array,
) -> Params:
  """Puts the options of a candidate into a network.

  Removed channels are still computed, but no kernel reads them: the network
  computes what the smaller one does, and all candidates have the same shapes.

  Args:
    variables: the network's variables, with all kernels of `readers`.
    readers: each kernel, with the decision whose channels it reads.
    tables: options of each reader at all levels, see `option_table`.
    candidate: level of each decision, int32 [G].
  """
  replaced: dict[str, jax.Array] = {}
  shifts: dict[str, jax.Array] = {}
  for (decision, reader), table in zip(readers, tables, strict=True):
    chosen = jax.tree.map(lambda leaf, d=decision: leaf[candidate[d]], table)
    replaced[reader.kernel] = chosen.kernel
    if reader.shift is not None:
      shifts[reader.shift] = reader.sign * chosen.shift

  def put(name: str, leaf: jax.Array) -> jax.Array:
    if name in shifts:
      return leaf + shifts[name].astype(leaf.dtype)
    return replaced[name].astype(leaf.dtype) if name in replaced else leaf

  return tree_lib.map_named(put, variables)


def errors_by_level(
  readers: Sequence[tuple[int, Reader]],
  tables: Sequence[Option],
  space: Space,
) -> jax.Array:
  """Adds up the errors of the readers of each decision: float32 [G, M].

  Args:
    readers: each kernel, with the decision whose channels it reads.
    tables: options of each reader at all levels, see `option_table`.
    space: decisions, G, with at most M levels.
  """
  total = jnp.zeros((space.decisions, space.most_levels))
  for (decision, _), table in zip(readers, tables, strict=True):
    # The error at the last level is due to the ridge.
    errors = table.error - table.error[-1]
    total = total.at[decision, : errors.shape[0]].add(errors)
  return total


def find_readers(
  groups: Sequence[ChannelGroup], shifts: Mapping[str, tuple[str, float]]
) -> list[tuple[int, Reader]]:
  """Lists the kernels that read the channels of each decision.

  Args:
    groups: channels of each decision, in order.
    shifts: the array that absorbs a constant, and its sign, by name of a
      kernel; see `Reader`.
  """
  return [
    (i, Reader(part.name, part, *shifts.get(part.name, (None, 1.0))))
    for i, group in enumerate(groups)
    for part in group.inputs
  ]
