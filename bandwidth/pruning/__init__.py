"""Pruning: score × distribution × structure × schedule.

A score ranks weights (`magnitude`, `gradient`), a distribution shares the
sparsity among parameters (`uniform`, `erdos_renyi_kernel`, `global_threshold`),
a structure makes one parameter's mask (`unstructured`, `n_m`, `block`), a
schedule says when. `prune_params` prunes once; `prune`, `keep_masks` and
`sparse_training` prune while a network trains; `sensitivity_scan` measures what
each parameter bears; `channel_groups` and `remove_channels` take channels out
for good.

Any optimizer prunes with `prune` last in its chain; what it prunes is exactly
zero:

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> from bandwidth import pruning
>>> params = {'kernel': jax.random.normal(jax.random.key(0), (20, 10))}
>>> tx = optax.chain(
...   optax.adam(1e-2), pruning.prune(pruning.cubic(0.9, end=10))
... )
>>> state = tx.init(params)
>>> for _ in range(11):
...   grads = jax.tree.map(lambda w: w - 1.0, params)
...   updates, state = tx.update(grads, state, params)
...   params = optax.apply_updates(params, updates)
>>> int(jnp.sum(params['kernel'] != 0))  # of 200
20
"""

from bandwidth.pruning.connections import (
  Add,
  Concat,
  Conv,
  Dense,
  Depthwise,
  Layer,
  Norm,
  channel_groups,
)
from bandwidth.pruning.distributions import (
  erdos_renyi,
  erdos_renyi_kernel,
  global_threshold,
  per_rule,
  prunable,
  std_threshold,
  uniform,
)
from bandwidth.pruning.masks import (
  PrunedParams,
  SparsityRow,
  apply_masks,
  check_masks,
  magnitude_masks,
  make_masks,
  masks_from_scores,
  prune_params,
  sparsity_report,
)
from bandwidth.pruning.schedules import (
  cosine_fraction,
  cubic,
  every,
  iterative,
  iterative_linear,
  one_shot,
)
from bandwidth.pruning.scores import (
  gradient,
  gradient_magnitude,
  magnitude,
  random,
)
from bandwidth.pruning.sensitivity import SensitivityRow, sensitivity_scan
from bandwidth.pruning.sparse_training import (
  SparseTrainingState,
  drop_and_grow,
  sparse_training,
)
from bandwidth.pruning.structured import (
  ChannelAxis,
  ChannelGroup,
  channel_masks,
  channel_positions,
  keep_channels,
  remove_channels,
)
from bandwidth.pruning.structures import (
  block,
  channel,
  kept_count,
  n_m,
  top_k_mask,
  unstructured,
)
from bandwidth.pruning.transforms import (
  KeepMasksState,
  PruneState,
  keep_masks,
  prune,
)

__all__ = [
  'Add',
  'ChannelAxis',
  'ChannelGroup',
  'Concat',
  'Conv',
  'Dense',
  'Depthwise',
  'KeepMasksState',
  'Layer',
  'Norm',
  'PruneState',
  'PrunedParams',
  'SensitivityRow',
  'SparseTrainingState',
  'SparsityRow',
  'apply_masks',
  'block',
  'channel',
  'channel_groups',
  'channel_masks',
  'channel_positions',
  'check_masks',
  'cosine_fraction',
  'cubic',
  'drop_and_grow',
  'erdos_renyi',
  'erdos_renyi_kernel',
  'every',
  'global_threshold',
  'gradient',
  'gradient_magnitude',
  'iterative',
  'iterative_linear',
  'keep_channels',
  'keep_masks',
  'kept_count',
  'magnitude',
  'magnitude_masks',
  'make_masks',
  'masks_from_scores',
  'n_m',
  'one_shot',
  'per_rule',
  'prunable',
  'prune',
  'prune_params',
  'random',
  'remove_channels',
  'sensitivity_scan',
  'sparse_training',
  'sparsity_report',
  'std_threshold',
  'top_k_mask',
  'uniform',
  'unstructured',
]
