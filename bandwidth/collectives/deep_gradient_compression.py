"""Deep Gradient Compression (Lin et al. 2018, arXiv 1712.01887)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.base import AxisName, GradientReducer, Params
from bandwidth.collectives.hierarchical import hierarchical
from bandwidth.collectives.sparse import sparse_all_reduce
from bandwidth.collectives.sparsity.memory import momentum_correction
from bandwidth.collectives.workers.axes import axis_names, axis_sizes
from bandwidth.collectives.workers.ordered import (
  axis_size,
  fixed_order_sum,
  rounded,
  same_on_all,
)
from bandwidth.collectives.workers.resplit import flush_of, resplit_of

WARM_UP_DENSITIES = (0.25, 0.0625, 0.015625, 0.004)
"""Of the epochs before the final density, one each (section 3.3)."""


class DeepGradientCompressionState(NamedTuple):
  """State of a worker."""

  sparse: Any  # of the sparse all-reduce: residual v and momentum u
  decay: Any  # float32, momentum of the decay, shaped as the parameters; or ()


def deep_gradient_compression(
  axis_name: AxisName = 'data',
  *,
  density: float = 1e-3,
  momentum: float = 0.9,
  nesterov: bool = False,
  masking: bool = True,
  clip_norm: float = 0.0,
  weight_decay: float = 0.0,
  values: str = 'float8',
  exchange: str = 'all_gather',
  scope: str = 'layer',
  dense_rules: Sequence[tuple[str, bool]] = (),
  forward: float = 2.0,
  workers: int | tuple[int, ...] = 0,
) -> GradientReducer:
  """Sends a thousandth of the gradient.

  Of a worker's gradient g, N workers:

  1. local clipping: g is scaled to a norm of at most `clip_norm sqrt(N)`, which
     is the paper's `clip_norm / sqrt(N)` for gradients that are divided by N
     beforehand and summed;
  2. momentum correction and momentum factor masking, see
     `momentum_correction`;
  3. selection, message, exchange and mean, see `sparse_all_reduce`;
  4. weight decay has a dense momentum of its own, on `weight_decay * w` of
     arrays with two or more axes, the same on all workers, and is added to what
     was received: in the compressed path decay would arrive late.

  The momentum is in here: the optimizer behind it is plain SGD, `w -= lr
  update`. Warm-up is a matter of stages, each with a density of its own
  (`WARM_UP_DENSITIES`); the state goes on from one to the next. With
  `density=1` gradients are averaged densely and u is the ordinary momentum.

  Args:
    axis_name: mapped axis of the workers; or two, the slow and the fast one:
      then gradients are averaged densely over the fast axis, and compressed
      between groups, see `hierarchical`.
    density: fraction of the elements that is sent, in (0, 1].
    momentum: momentum factor m, in [0, 1).
    nesterov: whether momentum is Nesterov's, `u = m (u + g); v = v + u + g`.
    masking: whether momentum is zeroed where an element is sent.
    clip_norm: L2 norm that the average of N gradients is clipped to; 0: off.
    weight_decay: L2 coefficient; 0: off. Needs `params` in `reduce`.
    values: 'float32', 'float16', 'float8' or 'sign', see `value_format`.
    exchange: 'all_gather', 'owner_sharded' or 'dense', see `sparse_all_reduce`.
    scope: 'layer' selects from each leaf, 'global' from all together.
    dense_rules: pairs (expression, bool): whether matching parameters are sent
      in full, as the paper does with biases and norms.
    forward: for 'owner_sharded': entries that an owner sends to all, as a
      multiple of those that it gets from one worker.
    workers: number, or sizes of the axes; needed by 'owner_sharded', for two
      axes, and by `resplit`.

  Returns:
    A reducer with the state `DeepGradientCompressionState`.

  Raises:
    ValueError: an argument is out of range or unknown; at `reduce`, `params` is
      missing for weight decay.

  >>> reducer = deep_gradient_compression('data', density=0.5, values='float32')
  >>> grads = jnp.array([[1.0, 2.0], [8.0, 1.0]])
  >>> state = jax.vmap(reducer.init)(grads)
  >>> reduce = jax.vmap(reducer.reduce, axis_name='data')
  >>> reduce(grads, state)[0][0]
  Array([4., 1.], dtype=float32)
  """
  for name, value in (
    ('clip_norm', clip_norm),
    ('weight_decay', weight_decay),
  ):
    if not value >= 0:
      raise ValueError(f'{name}={value} is negative')

  def between(axis: str | None, count: int) -> GradientReducer:
    return sparse_all_reduce(
      axis,
      density=density,
      memory=momentum_correction(momentum, nesterov=nesterov, masking=masking),
      values=values,
      exchange=exchange,
      scope=scope,
      dense_rules=dense_rules,
      forward=forward,
      workers=count,
    )

  axes = axis_names(axis_name)
  if len(axes) > 1:
    sizes = () if isinstance(workers, int) else workers
    inner, count = hierarchical(axes, between, workers=sizes), math.prod(sizes)
  else:
    count = workers if isinstance(workers, int) else workers[0]
    inner = between(axes[0] if axes else None, count)
  parts = _Parts(
    inner, axes, count, clip_norm, _Decay(weight_decay, momentum, nesterov)
  )
  return GradientReducer(
    parts.init,
    parts.reduce,
    inner.wire_bytes,
    parts.flush,
    parts.resplit,
    momentum,
  )


class _Parts(NamedTuple):
  """What a step is made of: clipping, sparse all-reduce, decay."""

  inner: GradientReducer
  axes: tuple[str, ...]  # the slow one first
  workers: int  # 0: not known
  clip_norm: float
  decay: '_Decay'

  def init(self, params: Params) -> DeepGradientCompressionState:
    return DeepGradientCompressionState(
      self.inner.init(params), self.decay.init(params)
    )

  def reduce(
    self,
    grads: Params,
    state: DeepGradientCompressionState,
    params: Params = None,
  ) -> tuple[Params, DeepGradientCompressionState]:
    if self.clip_norm:
      limit = self.clip_norm * axis_size(self.axes[:1]) ** 0.5
      grads = clip_local(grads, limit)
    mean, sparse = self.inner.reduce(grads, state.sparse, params)
    mean, decay = self.decay.add(mean, state.decay, params)
    mean = jax.tree.map(lambda leaf: same_on_all(leaf, self.axes), mean)
    return mean, DeepGradientCompressionState(sparse, decay)

  def flush(
    self, state: DeepGradientCompressionState, params: Params
  ) -> tuple[Params, DeepGradientCompressionState]:
    mean, sparse = flush_of(self.inner)(state.sparse, params)
    return mean, state._replace(sparse=sparse)

  def resplit(
    self,
    state: DeepGradientCompressionState,
    params: Params,
    *,
    workers: int | Sequence[int],
  ) -> DeepGradientCompressionState:
    sizes = axis_sizes(workers)
    if len(sizes) != max(len(self.axes), 1):
      raise ValueError(
        f'workers={sizes}: the state of {len(sizes)} axes cannot be dealt out '
        f'to the {len(self.axes)} axes {self.axes}'
      )
    resplit = resplit_of(self.inner, self.workers)
    sparse = resplit(state.sparse, params, workers=workers)
    # The same on all workers.
    decay = jax.tree.map(
      lambda leaf: leaf[:1].repeat(self.workers, axis=0),
      jax.device_get(state.decay),
    )
    return DeepGradientCompressionState(sparse, decay)


def clip_local(grads: Params, limit: float) -> Params:
  """Scales a worker's gradients to a norm of at most `limit`.

  The norm is L2 over all leaves, summed in an order that no mapping changes.

  Args:
    grads: tree of floating-point arrays, one worker's gradients.
    limit: largest L2 norm allowed, positive.
  """
  leaves = [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(grads)]
  if not leaves:
    return grads
  squares = [fixed_order_sum(leaf * leaf) for leaf in leaves]
  norm = jnp.sqrt(fixed_order_sum(jnp.stack(squares)))
  # A norm that is not finite makes everything so.
  scale = jnp.where(norm <= limit, 1.0, limit / norm)
  return jax.tree.map(
    lambda leaf: rounded(leaf.astype(jnp.float32) * scale).astype(leaf.dtype),
    grads,
  )


class _Decay(NamedTuple):
  weight: float
  momentum: float
  nesterov: bool

  def init(self, params: Params) -> Params:
    if not self.weight:
      return ()
    return jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape if leaf.ndim > 1 else (), jnp.float32),
      params,
    )

  def add(
    self, mean: Params, state: Params, params: Params
  ) -> tuple[Params, Params]:
    """Adds the decay's momentum to the mean."""
    if not self.weight:
      return mean, state
    if params is None:
      raise ValueError(
        f'params=None: weight_decay={self.weight} needs the parameters'
      )

    def step(w: jax.Array, d: jax.Array) -> jax.Array:
      if w.ndim < 2:
        return d
      pull = self.weight * w.astype(jnp.float32)
      if self.nesterov:
        return rounded(self.momentum * (d + rounded(pull)))
      return self.momentum * d + rounded(pull)

    def added(m: jax.Array, d: jax.Array, w: jax.Array) -> jax.Array:
      if w.ndim < 2:
        return m
      if self.nesterov:
        d = d + rounded(self.weight * w.astype(jnp.float32))
      return (m.astype(jnp.float32) + d).astype(m.dtype)

    state = jax.tree.map(step, params, state)
    return jax.tree.map(added, mean, state, params), state
