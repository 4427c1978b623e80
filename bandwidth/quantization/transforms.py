"""Trained weight sharing: tensors keep their few distinct values in training.

`share_params` makes the values few. `share_gradients`, placed first in
`optax.chain`, turns gradients into gradients of the centroids, the same for all
weights of a cluster. What follows in the chain (momentum, Adam, weight decay, a
learning rate) acts on each element alone, so that equal weights with equal
gradients stay equal, and a pruned zero with a zero gradient stays zero.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.quantization import kmeans
from bandwidth.quantization.codebook import (
  Codebook,
  Sharing,
  check_axis,
  code_dtype,
  fit_codebook,
)

SharingRules = Sequence[tuple[str, Sharing | int | None]]
"""Pairs (regular expression over names, how to share). An integer b stands for
`Sharing(entries=2**b)`; None leaves the parameter alone."""

ClusterReduction = Callable[[jax.Array, jax.Array, int], jax.Array]
"""`(gradients, codes, segments) -> float32 [segments]`, where gradients are
float32 [n] and codes int32 [n]."""


class SharedParams(NamedTuple):
  """Parameters with shared weights.

  Attributes:
    params: as the parameters given, in values and dtypes, but that each shared
      tensor has at most `entries` distinct values.
    codebooks: the codebook of each shared parameter, by name.
  """

  params: Params
  codebooks: dict[str, Codebook]


class ShareGradientsState(NamedTuple):
  """State of `share_gradients`.

  Attributes:
    codes: uint8 or uint16 in the shape of each shared parameter; uint8 [] for
      the others. Checkpoints so carry which weights share a value.
  """

  codes: Any


def share_params(
  params: Params,
  rules: SharingRules,
  *,
  masks: Any = None,
  solver: kmeans.Solver | None = None,
) -> SharedParams:
  """Shares the weights of the parameters that the rules name, on the host.

  Args:
    params: tree of concrete arrays (not under jit).
    rules: bits or `Sharing` for each parameter; the first match wins.
    masks: as `params`: True survives; a scalar True where all do. None: what
      is not zero survives, where zero is reserved.
    solver: `kmeans.lloyd(...)`, which is the default, or
      `kmeans.exact_kmeans()`.

  Returns:
    The parameters with shared weights, and their codebooks.

  Raises:
    ValueError: a bad rule; what `fit_codebook` raises, naming the parameter.

  >>> params = {'kernel': jnp.array([0.0, 0.9, 1.1, 3.0]), 'bias': jnp.ones(2)}
  >>> rules = [('bias', None), ('.*', Sharing(entries=3))]
  >>> shared = share_params(params, rules)
  >>> shared.params['kernel'].tolist()
  [0.0, 1.0, 1.0, 3.0]
  """
  sharing = _match(rules, params)
  codebooks = {}

  def share(name: str, leaf: Any, mask: Any = None) -> Any:
    rule = sharing[name]
    if rule is None:
      return leaf
    with _naming(name):
      codebooks[name] = fit_codebook(leaf, rule, mask=mask, solver=solver)
    return jnp.asarray(codebooks[name].decode()).astype(leaf.dtype)

  rest = () if masks is None else (masks,)
  return SharedParams(tree.map_named(share, params, *rest), codebooks)


def cluster_sum(
  gradient: jax.Array, codes: jax.Array, segments: int
) -> jax.Array:
  """Sums gradients by code: ∂L/∂C_k = Σ_i ∂L/∂W_i [code_i = k].

  This is the gradient of the centroid (arXiv 1510.00149, equation 3). It grows
  with the size of the cluster; Adam does not mind, plain SGD wants a learning
  rate smaller by about that size.
  """
  return jax.ops.segment_sum(gradient, codes, segments)


def cluster_mean(
  gradient: jax.Array, codes: jax.Array, segments: int
) -> jax.Array:
  """Averages gradients by code; learning rates of dense training fit."""
  count = jax.ops.segment_sum(jnp.ones_like(gradient), codes, segments)
  return cluster_sum(gradient, codes, segments) / jnp.maximum(count, 1)


def share_gradients(
  rules: SharingRules, *, reduction: ClusterReduction = cluster_sum
) -> optax.GradientTransformation:
  """Turns gradients of weights into gradients of their centroids.

  Place it first in `optax.chain`. Each weight gets its centroid's gradient,
  accumulated in float32; a reserved zero gets 0. All that follows must act on
  each element alone. Optimizers that mix elements of a tensor (Muon, Shampoo,
  factored second moments) or add noise break the sharing; norms over a whole
  tensor (clipping, LARS) do not.

  `init` reads the codes from the parameters, which `share_params` must have
  made: equal values share a code. More distinct values than entries are an
  error, but under `jax.jit` nothing can be checked.

  Args:
    rules: the rules that were given to `share_params`.
    reduction: `cluster_sum`, the paper's, or `cluster_mean`.

  Returns:
    A transformation whose updates have the gradients' dtypes.

  Raises:
    ValueError: a bad rule; at `init`, a parameter that is not shared.

  >>> tx = share_gradients([('.*', 1)])
  >>> state = tx.init({'w': jnp.array([0.0, 2.0, 2.0])})
  >>> updates, _ = tx.update({'w': jnp.array([5.0, 1.0, 3.0])}, state)
  >>> updates['w'].tolist()
  [0.0, 4.0, 4.0]
  """
  _check_rules(rules)

  def init_fn(params: Params) -> ShareGradientsState:
    sharing = _match(rules, params)

    def codes(name: str, leaf: jax.Array) -> jax.Array:
      rule = sharing[name]
      if rule is None:
        return jnp.zeros((), jnp.uint8)
      with _naming(name):
        return codes_by_value(leaf, rule)

    return ShareGradientsState(codes=tree.map_named(codes, params))

  def update_fn(
    updates: Params, state: optax.OptState, params: Params | None = None
  ) -> tuple[Params, optax.OptState]:
    del params
    codes = cast(ShareGradientsState, state).codes
    sharing = _match(rules, updates)

    def share(name: str, grad: jax.Array, codes: jax.Array) -> jax.Array:
      rule = sharing[name]
      return grad if rule is None else _tie(grad, codes, rule, reduction)

    return tree.map_named(share, updates, codes), state

  return optax.GradientTransformation(init_fn, update_fn)


def codes_by_value(weights: jax.Array, sharing: Sharing) -> jax.Array:
  """Numbers the distinct values of a tensor, or of each group of it.

  Args:
    weights: float array of any shape; may be traced.
    sharing: gives the entries, the axis and whether zero is reserved.

  Returns:
    uint8 or uint16, in the shape of `weights`: the rank of each value among the
    distinct ones; where zero is reserved, 0 for zeros and ranks from 1 on.

  Raises:
    ValueError: there are more distinct values than entries, and `weights` is
      concrete.

  >>> codes_by_value(jnp.array([3.0, 0.0, -1.0, 3.0]), Sharing(entries=4))
  Array([2, 0, 1, 2], dtype=uint8)
  """
  check_axis(sharing.axis, weights.shape)
  codes = _rank_rows(_rows(weights, sharing.axis), sharing)
  if codes.size and not isinstance(codes, jax.core.Tracer):
    distinct = int(codes.max()) + 1
    if distinct > sharing.entries:
      raise ValueError(
        f'{distinct} distinct values exceed entries={sharing.entries}; '
        'share_params makes them few'
      )
  codes = jnp.minimum(codes, sharing.entries - 1)
  codes = codes.astype(code_dtype(sharing.entries))
  return _unrows(codes, weights.shape, sharing.axis)


def read_codebooks(
  params: Params, state: ShareGradientsState, rules: SharingRules
) -> dict[str, Codebook]:
  """Reads the trained codebooks back from parameters and optimizer state.

  Args:
    params: the trained parameters, concrete.
    state: the state of `share_gradients` within the optimizer's state.
    rules: the rules that were given to `share_gradients`.

  Returns:
    The codebook of each shared parameter, by name; decoding one gives that
    parameter's values exactly.

  Raises:
    ValueError: weights of one code differ, which means that something in the
      optimizer does not act on each element alone.

  >>> params = {'w': jnp.array([0.0, 2.0, 2.0])}
  >>> state = share_gradients([('w', 1)]).init(params)
  >>> read_codebooks(params, state, [('w', 1)])['w'].centroids
  array([0., 2.], dtype=float32)
  """
  sharing = _match(rules, params)
  codes = jax.tree.leaves(state.codes)
  books = {}
  for (name, leaf), code in zip(tree.named_leaves(params), codes, strict=True):
    rule = sharing[name]
    if rule is not None:
      books[name] = _read(name, np.asarray(leaf), np.asarray(code), rule)
  return books


class _naming:
  """Prefixes the ValueErrors of a block with a parameter's name."""

  def __init__(self, name: str):
    self.name = name

  def __enter__(self) -> None:
    return None

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    del kind, trace
    if isinstance(error, ValueError):
      raise ValueError(f'{self.name}: {error}') from None


def _check_rules(rules: SharingRules) -> None:
  for pattern, value in rules:
    bits = isinstance(value, int) and not isinstance(value, bool)
    if bits and not 1 <= value <= 16:
      raise ValueError(f'rules: {pattern!r} has bits={value}, not 1 to 16')
    if not (value is None or bits or isinstance(value, Sharing)):
      raise ValueError(
        f'rules: {pattern!r} has {value!r}, neither bits, Sharing nor None'
      )


def _match(rules: SharingRules, params: Params) -> Mapping[str, Sharing | None]:
  _check_rules(rules)
  matched = tree.match_rules(rules, params)
  return {
    name: Sharing(entries=2**value) if isinstance(value, int) else value
    for name, value in matched.items()
  }


def _rows(array: jax.Array, axis: int | None) -> jax.Array:
  if axis is None:
    return array.reshape(1, -1)
  rows = jnp.moveaxis(array, axis, 0)
  return rows.reshape(len(rows), rows.size // max(len(rows), 1))


def _unrows(
  rows: jax.Array, shape: tuple[int, ...], axis: int | None
) -> jax.Array:
  if axis is None:
    return rows.reshape(shape)
  order = (shape[axis], *np.delete(shape, axis))
  return jnp.moveaxis(rows.reshape(order), 0, axis)


@functools.partial(jax.jit, static_argnames='sharing')
def _rank_rows(rows: jax.Array, sharing: Sharing) -> jax.Array:
  return jax.vmap(lambda row: _ranks(row, sharing))(rows)


def _ranks(row: jax.Array, sharing: Sharing) -> jax.Array:
  values = row.astype(jnp.float32)
  offset = int(sharing.reserve_zero)
  ordered = jnp.sort(values)
  new = jnp.ones(row.shape, bool).at[1:].set(ordered[1:] != ordered[:-1])
  if offset:
    new &= ordered != 0
  rank = jnp.cumsum(new) - 1 + offset
  codes = rank[jnp.searchsorted(ordered, values)]
  return jnp.where(values == 0, 0, codes) if offset else codes


def _tie(
  grad: jax.Array,
  codes: jax.Array,
  sharing: Sharing,
  reduction: ClusterReduction,
) -> jax.Array:
  rows = _rows(grad.astype(jnp.float32), sharing.axis)
  codes = _rows(codes, sharing.axis).astype(jnp.int32)
  # One segment for each pair of group and code.
  groups = jnp.arange(rows.shape[0], dtype=jnp.int32)[:, None]
  ids = (codes + groups * sharing.entries).ravel()
  sums = reduction(rows.ravel(), ids, rows.shape[0] * sharing.entries)
  tied = sums[ids].reshape(rows.shape)
  if sharing.reserve_zero:
    tied = jnp.where(codes == 0, 0.0, tied)
  return _unrows(tied, grad.shape, sharing.axis).astype(grad.dtype)


def _read(
  name: str, weights: np.ndarray, codes: np.ndarray, sharing: Sharing
) -> Codebook:
  if codes.shape != weights.shape:
    raise ValueError(f'{name}: codes {codes.shape} for weights {weights.shape}')
  rows = np.asarray(_rows(jnp.asarray(weights), sharing.axis), np.float32)
  row_codes = np.asarray(_rows(jnp.asarray(codes), sharing.axis))
  entries = int(codes.max()) + 1 if codes.size else 1
  centroids = np.zeros((len(rows), entries), np.float32)
  for row, code, table in zip(rows, row_codes, centroids, strict=True):
    table[code] = row
    if sharing.reserve_zero:
      table[0] = 0
    if not np.array_equal(table[code], row):
      raise ValueError(f'{name}: weights of one code have different values')
  return Codebook(
    codes=codes.astype(code_dtype(entries)),
    centroids=centroids[0] if sharing.axis is None else centroids,
    axis=sharing.axis,
    reserves_zero=sharing.reserve_zero,
  )
