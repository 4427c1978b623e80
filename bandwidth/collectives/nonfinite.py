"""Gradients that are not finite: the step is left out, by all workers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.base import AxisName, GradientReducer, Params
from bandwidth.collectives.traffic.closed_forms import all_reduce_bytes
from bandwidth.collectives.wire.message import check_floating
from bandwidth.collectives.workers.axes import axis_names, count_workers
from bandwidth.collectives.workers.ordered import axis_size


def skip_nonfinite(
  reducer: GradientReducer, axis_name: AxisName = 'data'
) -> GradientReducer:
  """Keeps what is not finite out of a reducer's state.

  Residuals and momentum that take up one NaN make every later mean NaN. Here
  workers first agree, by an all-reduce of one number, on whether a gradient of
  any of them is not finite. If so, the state stays as it was and the mean is
  NaN everywhere, for `optax.apply_if_finite`, or a loss scale, to leave the
  step out too; the next one goes on as if the bad one had never been.

  Args:
    reducer: the reducer to guard, on the same axis.
    axis_name: mapped axis, or axes, of the workers. None: one worker.

  Returns:
    A reducer with the state of `reducer`, which sends four bytes more for the
    all-reduce.

  >>> from bandwidth.collectives import deep_gradient_compression
  >>> reducer = skip_nonfinite(deep_gradient_compression(None, density=1), None)
  >>> state = reducer.init(jnp.zeros(2))
  >>> mean, after = reducer.reduce(jnp.array([1.0, jnp.inf]), state)
  >>> mean.tolist(), after.sparse.kept.momentum.tolist()
  ([nan, nan], [0.0, 0.0])
  """
  axes = axis_names(axis_name)

  def reduce(
    grads: Params, state: Any, params: Params = None
  ) -> tuple[Params, Any]:
    axis_size(axes)
    check_floating(grads)
    bad = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(grads):
      bad += ~jnp.all(jnp.isfinite(leaf))
    skipped = (lax.psum(bad, axes) if axes else bad) > 0
    mean, new = reducer.reduce(grads, state, params)
    mean = jax.tree.map(lambda leaf: jnp.where(skipped, jnp.nan, leaf), mean)
    kept = jax.tree.map(
      lambda old, leaf: jnp.where(skipped, old, leaf), state, new
    )
    return mean, kept

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    flag = all_reduce_bytes(4, count_workers(workers))
    return reducer.wire_bytes(params, workers) + flag

  return reducer._replace(reduce=reduce, wire_bytes=wire_bytes)
