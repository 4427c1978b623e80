"""Gradient reducers, and the bytes that they send.

A factory takes the name of the workers' axis and what is static, and returns a
`GradientReducer` of pure functions. `init` makes the state of one worker, and
`stack_states` that of all; `reduce` is called by each worker with its own
gradients, inside `jax.vmap`, `jax.pmap` or `jax.shard_map(check_vma=False)`
over the axis, and returns the same mean on all; `wire_bytes` says what that
sends. `accounting` reads the same number from a compiled program.

Deep Gradient Compression of a linear model, four workers on one device. The
momentum is in the reducer, so plain SGD comes behind it:

>>> import functools
>>> import jax
>>> import jax.numpy as jnp
>>> from bandwidth import collectives
>>> reducer = collectives.deep_gradient_compression(
...   'data', density=0.1, momentum=0.9
... )
>>> params = {'w': jnp.zeros((64, 1))}
>>> state = collectives.stack_states(reducer.init(params), 4)
>>> def loss(params, x, y):
...   return jnp.mean((x @ params['w'] - y) ** 2)
>>> @jax.jit
... @functools.partial(
...   jax.vmap,
...   in_axes=(None, 0, 0, 0),
...   out_axes=(None, 0),
...   axis_name='data',
... )
... def update(params, state, x, y):
...   grads = jax.grad(loss)(params, x, y)  # of this worker alone
...   mean, state = reducer.reduce(grads, state, params)  # the same on all
...   return jax.tree.map(lambda w, g: w - 0.02 * g, params, mean), state
>>> x = jax.random.normal(jax.random.key(0), (4, 64, 64))
>>> y = x @ jnp.ones((64, 1))
>>> for _ in range(60):
...   params, state = update(params, state, x, y)
>>> bool(jnp.mean(jax.vmap(loss, (None, 0, 0))(params, x, y)) < 0.02)
True
>>> reducer.wire_bytes(params, 4)  # a worker and a step
48
>>> collectives.dense_all_reduce().wire_bytes(params, 4)
384
"""

from bandwidth.collectives.aligned import random_k, shared_mask
from bandwidth.collectives.deep_gradient_compression import (
  WARM_UP_DENSITIES,
  deep_gradient_compression,
)
from bandwidth.collectives.dense import dense_all_reduce
from bandwidth.collectives.hierarchical import hierarchical
from bandwidth.collectives.nonfinite import skip_nonfinite
from bandwidth.collectives.power_sgd import power_sgd
from bandwidth.collectives.quantized import qsgd, terngrad
from bandwidth.collectives.sparse import sparse_all_reduce
from bandwidth.collectives.sparsity.memory import (
  Memory,
  error_feedback,
  momentum_correction,
  no_memory,
)
from bandwidth.collectives.traffic import accounting
from bandwidth.collectives.two_phase import (
  sign_error_feedback,
  two_phase_quantized,
)
from bandwidth.collectives.wire.value_formats import value_format
from bandwidth.collectives.workers.resplit import (
  check_momentum,
  resplit_workers,
  stack_states,
)

__all__ = [
  'WARM_UP_DENSITIES',
  'Memory',
  'accounting',
  'check_momentum',
  'deep_gradient_compression',
  'dense_all_reduce',
  'error_feedback',
  'hierarchical',
  'momentum_correction',
  'no_memory',
  'power_sgd',
  'qsgd',
  'random_k',
  'resplit_workers',
  'shared_mask',
  'sign_error_feedback',
  'skip_nonfinite',
  'sparse_all_reduce',
  'stack_states',
  'terngrad',
  'two_phase_quantized',
  'value_format',
]
