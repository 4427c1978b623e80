"""Distributions: one target sparsity becomes a sparsity per parameter.

A distribution returns a dictionary from parameter name to sparsity. What is not
in it is not pruned. By default that is every array of fewer than two axes
(biases, normalization) and every array of integers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.pruning import structures

Rules = Sequence[tuple[str, bool]]
"""Ordered pairs (expression, whether to prune), see `tree.match_rules`."""

Distribution = Callable[..., dict[str, Any]]
"""`(params, sparsity, *, scores=None, rules=None) -> {name: sparsity}`."""


def prunable(params: Params, rules: Rules | None = None) -> dict[str, Any]:
  """Returns the parameters that may be pruned, by name.

  Args:
    params: tree of arrays or abstract shapes.
    rules: ordered pairs (expression, whether to prune) that cover every
      parameter. None: floating arrays of two axes or more.

  Raises:
    ValueError: a rule's value is no bool, or the rules do not fit the tree.

  >>> net = {'Dense_0': {'bias': jnp.zeros(3), 'kernel': jnp.zeros((2, 3))}}
  >>> list(prunable(net)), list(prunable(net, [('.*', True)]))
  (['Dense_0/kernel'], ['Dense_0/bias', 'Dense_0/kernel'])
  """
  leaves = tree.named_leaves(params)
  if rules is None:
    return {
      name: leaf
      for name, leaf in leaves
      if jnp.ndim(leaf) >= 2
      and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
  for pattern, value in rules:
    if not isinstance(value, bool):
      raise ValueError(f'rules: {pattern!r} has {value!r}, which is no bool')
  chosen = tree.match_rules(rules, params)
  return {name: leaf for name, leaf in leaves if chosen[name]}


def uniform(
  params: Params,
  sparsity: Any,
  *,
  scores: Params | None = None,
  rules: Rules | None = None,
) -> dict[str, Any]:
  """Gives every prunable parameter the same sparsity.

  Args:
    params: tree of arrays or abstract shapes.
    sparsity: sparsity of each parameter, in [0, 1], a number or a traced
      scalar.
    scores: ignored; other distributions need them.
    rules: what is prunable, see `prunable`.

  Raises:
    ValueError: `sparsity` is no number in [0, 1].

  >>> uniform({'a': jnp.zeros((2, 2)), 'b': jnp.zeros(2)}, 0.5)
  {'a': 0.5}
  """
  del scores
  structures.check_sparsity(sparsity)
  return dict.fromkeys(prunable(params, rules), sparsity)


def erdos_renyi(
  params: Params,
  sparsity: Any,
  *,
  scores: Params | None = None,
  rules: Rules | None = None,
) -> dict[str, Any]:
  r"""Gives wide layers a higher sparsity than narrow ones.

  .. math:: 1 - s^l = \varepsilon\,\frac{n^{l-1} + n^l}{n^{l-1} n^l}

  with the numbers of inputs and outputs, the last two axes. See
  `erdos_renyi_kernel` for the arguments, the scale and the cap.

  Raises:
    ValueError: `sparsity` is no number in [0, 1], or a prunable parameter has
      fewer than two axes.

  References:
    Mocanu et al., 2018, https://arxiv.org/abs/1707.04780

  >>> net = {'a': jnp.zeros((10, 10)), 'b': jnp.zeros((10, 40))}
  >>> {k: round(s, 4) for k, s in erdos_renyi(net, 0.8).items()}
  {'a': 0.7143, 'b': 0.8214}
  """
  del scores
  leaves = prunable(params, rules)
  for name, leaf in leaves.items():
    if jnp.ndim(leaf) < 2:
      raise ValueError(f'{name}: erdos_renyi needs two axes, not {leaf.shape}')
  return _erdos_renyi(leaves, sparsity, lambda shape: shape[-2:])


def erdos_renyi_kernel(
  params: Params,
  sparsity: Any,
  *,
  scores: Params | None = None,
  rules: Rules | None = None,
) -> dict[str, Any]:
  r"""Gives large kernels a higher sparsity than small ones (ERK).

  .. math::
    1 - s^l = \min\Bigl(1, \varepsilon\,\frac{n^{l-1} + n^l + w^l + h^l}
    {n^{l-1} n^l w^l h^l}\Bigr)

  ε is such that the whole has the target sparsity: a layer that would exceed
  density 1 becomes dense and the others share the rest. Where the target is a
  number, the sparsities are moved, by less than one weight in the fewest and
  largest layers, so that their kept counts add up to `kept_count` of the whole.

  Args:
    params: tree of arrays or abstract shapes.
    sparsity: sparsity of all prunable parameters together, in [0, 1], a number
      or a traced scalar.
    scores: ignored; other distributions need them.
    rules: what is prunable, see `prunable`.

  Raises:
    ValueError: `sparsity` is no number in [0, 1].

  References:
    Evci et al., Rigging the Lottery, 2020, section 3,
    https://arxiv.org/abs/1911.11134

  >>> net = {'a': jnp.zeros((3, 3, 1, 4)), 'b': jnp.zeros((3, 3, 20, 40))}
  >>> {k: round(s, 4) for k, s in erdos_renyi_kernel(net, 0.9).items()}
  {'a': 0.0, 'b': 0.9045}
  """
  del scores
  return _erdos_renyi(prunable(params, rules), sparsity, lambda shape: shape)


def _erdos_renyi(
  leaves: dict[str, Any], sparsity: Any, axes: Callable[..., Any]
) -> dict[str, Any]:
  structures.check_sparsity(sparsity)
  if not leaves:
    return {}
  shapes = [np.shape(leaf) or (1,) for leaf in leaves.values()]
  sizes = np.array([np.prod(shape) for shape in shapes], np.float64)
  # An empty parameter takes no part, whatever its probability.
  raw = np.array(
    [sum(axes(x)) / max(np.prod(axes(x)), 1) for x in shapes], np.float64
  )
  if structures.is_static(sparsity):
    density = _cap(raw, sizes, sizes.sum() * (1 - float(sparsity)), np)
    values = _exact_total(1 - density, sizes, float(sparsity))
  else:
    keep = sizes.sum() * (1 - jnp.asarray(sparsity, jnp.float32))
    values = 1 - _cap(raw, sizes, keep, jnp)
  return dict(zip(leaves, values, strict=True))


def _cap(raw: np.ndarray, sizes: np.ndarray, keep: Any, xp: Any) -> Any:
  """Returns densities min(1, ε raw) of which `keep` weights stay.

  RigL makes the layer of highest probability dense until no density exceeds 1.
  ε grows with each, so the loop ends at the first count of dense layers, in
  order of probability, at which the next fits. All counts are tried at once,
  which a traced target allows as well.
  """
  order = np.argsort(-raw, kind='stable')
  raw_, sizes_ = raw[order], sizes[order]
  dense = np.cumsum(sizes_) - sizes_
  divisor = np.cumsum((raw_ * sizes_)[::-1])[::-1]
  scale = (keep - dense) / np.maximum(divisor, np.finfo(np.float32).tiny)
  fits = scale * raw_ <= 1
  scale = xp.where(xp.any(fits), scale[xp.argmax(fits)], xp.inf)
  # Leaves of no weight may have raw 0; 0 times infinity is no density.
  return xp.minimum(1, scale * np.maximum(raw, np.finfo(np.float32).tiny))


def _exact_total(
  sparsity: np.ndarray, sizes: np.ndarray, target: float
) -> list[float]:
  """Moves sparsities least so that the kept counts add up to the target's."""
  values = [float(s) for s in sparsity]
  counts = np.array(
    [
      structures.kept_count(int(n), s)
      for n, s in zip(sizes, values, strict=True)
    ]
  )
  missing = structures.kept_count(int(sizes.sum()), target) - int(counts.sum())
  step = 1 if missing > 0 else -1
  for _ in range(abs(missing)):
    moved = counts + step
    open_ = (moved >= 0) & (moved <= sizes) & (np.array(values) > 0)
    # Three quarters of the way to the next count, beyond any rounding.
    goal = 1 - (counts + 0.75 * step) / np.maximum(sizes, 1)
    best = int(np.argmin(np.where(open_, np.abs(goal - values), np.inf)))
    values[best] = float(goal[best])
    counts[best] += step
  return values


def per_rule(rules: Sequence[tuple[str, float]]) -> Distribution:
  """Gives every prunable parameter the sparsity of the first rule it matches.

  Args:
    rules: ordered pairs (expression, sparsity) over the names of the prunable
      parameters.

  Returns:
    A distribution. Its target is the fraction of the way to these sparsities:
    None or 1 gives them as they are, a schedule that ends at 1 leads there.

  Raises:
    ValueError: a sparsity is not in [0, 1]; from the distribution: the rules do
      not fit the parameters.

  >>> net = {'conv': jnp.zeros((2, 2)), 'fc': jnp.zeros((4, 2))}
  >>> per_rule([('conv', 0.34), ('.*', 0.9)])(net, None)
  {'conv': 0.34, 'fc': 0.9}
  """
  for pattern, value in rules:
    structures.check_sparsity(value, argument=f'rules: {pattern!r}')

  sparsities = tuple(rules)

  def at(leaves: dict[str, Any], part: Any) -> dict[str, Any]:
    matched = tree.match_rules(sparsities, leaves)
    return {name: value * part for name, value in matched.items()}

  return _partial_way(at)


def std_threshold(quality: float | Sequence[tuple[str, float]]) -> Distribution:
  r"""Removes what lies below a multiple of the layer's standard deviation.

  .. math:: |w| < s \cdot \mathrm{std}(w)

  Meant for the score `magnitude`, with which the mask keeps exactly the weights
  at or above the threshold.

  Args:
    quality: Han's s, one for all prunable parameters or ordered pairs
      (expression, s) over their names.

  Returns:
    A distribution. Its target is the fraction of the way to s: None or 1 takes
    s as it is.

  Raises:
    ValueError: s is negative or no finite number; from the distribution: the
      rules do not fit the parameters.

  References:
    Han et al., 2015, https://arxiv.org/abs/1506.02626

  >>> std_threshold(1.0)({'a': jnp.array([[-3.0, 1.0, 0.0, 2.0]])}, None)
  {'a': 0.5}
  """
  if isinstance(quality, int | float):
    qualities = [('.*', quality)]
  else:
    qualities = list(quality)
  for pattern, value in qualities:
    if not (np.isfinite(value) and value >= 0):
      raise ValueError(f'quality: {pattern!r} has {value!r}, not a number >= 0')

  def at(leaves: dict[str, Any], part: Any) -> dict[str, Any]:
    matched = tree.match_rules(qualities, leaves, argument='quality')
    return {
      name: _below_std(leaf, matched[name] * part)
      for name, leaf in leaves.items()
    }

  return _partial_way(at)


def _partial_way(
  at: Callable[[dict[str, Any], Any], dict[str, Any]],
) -> Distribution:
  """Returns a distribution whose target is a fraction of the way to its end.

  Args:
    at: `(prunable parameters by name, fraction) -> {name: sparsity}`.
  """

  def distribution(
    params: Params,
    sparsity: Any = None,
    *,
    scores: Params | None = None,
    rules: Rules | None = None,
  ) -> dict[str, Any]:
    del scores
    part = 1.0 if sparsity is None else structures.check_sparsity(sparsity)
    return at(prunable(params, rules), part)

  return distribution


def _below_std(leaf: jax.Array, quality: Any) -> Any:
  size = jnp.size(leaf)
  if not size:
    return 0.0
  wide = jnp.asarray(
    leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32)
  )
  kept = jnp.sum(jnp.abs(wide) >= quality * jnp.std(wide), dtype=jnp.int32)
  return _removed(kept, size)


def global_threshold(
  params: Params,
  sparsity: Any,
  *,
  scores: Params | None = None,
  rules: Rules | None = None,
) -> dict[str, Any]:
  """Compares all prunable weights with one threshold.

  Ties go to the earlier parameter, in it to the lower index, so the total kept
  is exactly `kept_count`.

  Args:
    params: tree of arrays, the weights.
    sparsity: sparsity of all prunable parameters together, in [0, 1], a number
      or a traced scalar.
    scores: tree of scores of the same shapes. None: magnitudes.
    rules: what is prunable, see `prunable`.

  Raises:
    ValueError: `sparsity` is no number in [0, 1].

  >>> net = {'a': jnp.array([[4.0, 3.0]]), 'b': jnp.array([[2.0, 1.0]])}
  >>> global_threshold(net, 0.5)
  {'a': 0.0, 'b': 1.0}
  """
  structures.check_sparsity(sparsity)
  chosen = prunable(params, rules)
  if scores is None:
    leaves = {name: jnp.abs(leaf) for name, leaf in chosen.items()}
  else:
    leaves = {n: x for n, x in tree.named_leaves(scores) if n in chosen}
  if not leaves:
    return {}
  dtype = jnp.result_type(jnp.float32, *leaves.values())
  keys = [structures.sort_keys(jnp.asarray(x, dtype)) for x in leaves.values()]
  count = structures.kept_count(sum(key.size for key in keys), sparsity)
  kept = _kept_per_leaf(keys, count)
  return {
    name: _removed(number, key.size)
    for name, number, key in zip(leaves, kept, keys, strict=True)
  }


@jax.jit
def _kept_per_leaf(keys: list[jax.Array], count: Any) -> list[jax.Array]:
  """Counts, leaf by leaf, the keys among the `count` largest of all."""
  cut = structures.kth_largest_key(keys, count)
  above = [jnp.sum(key > cut, dtype=jnp.int32) for key in keys]
  rest = count - sum(above)
  kept = []
  for key, sure in zip(keys, above, strict=True):
    ties = jnp.minimum(jnp.sum(key == cut, dtype=jnp.int32), rest)
    rest = rest - ties
    kept.append(sure + ties)
  return kept


def _removed(kept: jax.Array, size: int) -> Any:
  """Returns the sparsity of a kept count: exact as a float unless traced."""
  if not size:
    return 0.0
  if isinstance(kept, jax.core.Tracer):
    return 1 - kept.astype(jnp.float32) / size
  return 1 - int(kept) / size
