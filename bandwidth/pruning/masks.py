"""Masks of a whole tree: make them, apply them, report them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import Masks, Params
from bandwidth.pruning import distributions, scores, structures


class PrunedParams(NamedTuple):
  """Parameters with exact zeros, and where.

  Attributes:
    params: tree of arrays, the structure and dtypes that were given.
    masks: tree of bool arrays, True where kept; scalar True where unpruned.
  """

  params: Params
  masks: Masks


class SparsityRow(NamedTuple):
  """One parameter's line of a sparsity report.

  Attributes:
    name: name of the parameter; 'total' in the last row.
    shape: shape of the parameter; () in the last row.
    size: number of weights, zeros included.
    kept: number of weights that the mask keeps.
    sparsity: 1 - kept / size; 0 if there are no weights.
  """

  name: str
  shape: tuple[int, ...]
  size: int
  kept: int
  sparsity: float


def masks_from_scores(
  params: Params,
  weight_scores: Params,
  sparsity: Any,
  *,
  distribution: distributions.Distribution = distributions.uniform,
  structure: structures.Structure = structures.unstructured,
  rules: distributions.Rules | None = None,
) -> Masks:
  """Masks a tree whose scores are known. Runs under jit.

  Args:
    params: tree of arrays, the weights to mask.
    weight_scores: tree of scores, the same shapes. The highest are kept.
    sparsity: target in [0, 1], a number or a traced scalar; None where the
      distribution has its own.
    distribution: function that shares the target among parameters, as in
      `distributions`.
    structure: function that makes one parameter's mask, as in `structures`.
    rules: what is prunable, see `distributions.prunable`.

  Returns:
    A tree of masks: bool of the parameter's shape, or scalar True.

  Raises:
    ValueError: the target, the rules or a parameter's shape do not fit; the
      message names the parameter.
  """
  targets = distribution(params, sparsity, scores=weight_scores, rules=rules)

  def mask(name: str, score: jax.Array) -> jax.Array:
    if name not in targets:
      return jnp.ones((), bool)
    try:
      return structure(jnp.asarray(score), targets[name])
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from None

  return tree.map_named(mask, weight_scores)


def make_masks(
  params: Params,
  sparsity: Any,
  *,
  score: scores.Score = scores.magnitude,
  distribution: distributions.Distribution = distributions.uniform,
  structure: structures.Structure = structures.unstructured,
  rules: distributions.Rules | None = None,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> Masks:
  """Masks a tree: score × distribution × structure. Runs under jit.

  Args:
    params: tree of arrays, the weights to mask.
    sparsity: target in [0, 1], a number or a traced scalar; None where the
      distribution has its own.
    score: function that ranks the weights, as in `scores`.
    distribution: function that shares the target among parameters, as in
      `distributions`.
    structure: function that makes one parameter's mask, as in `structures`.
    rules: what is prunable, see `distributions.prunable`.
    grads: gradients, for scores that need them.
    key: typed key, for scores that need one.

  Returns:
    A tree of masks: bool of the parameter's shape, or scalar True.

  Raises:
    ValueError: a prunable weight is NaN or infinite; the target, the rules or
      a parameter's shape do not fit. The message names the parameter.

  >>> net = {'bias': jnp.ones(2), 'kernel': jnp.array([[1.0, -4.0, 2.0, 3.0]])}
  >>> masks = make_masks(net, 0.5)
  >>> masks['kernel'].tolist(), masks['bias'].tolist()
  ([[False, True, False, True]], True)
  """
  _check_finite(params, rules)
  return masks_from_scores(
    params,
    score(params, grads=grads, key=key),
    sparsity,
    distribution=distribution,
    structure=structure,
    rules=rules,
  )


def magnitude_masks(
  params: Params,
  sparsity: Any,
  *,
  distribution: distributions.Distribution = distributions.uniform,
  structure: structures.Structure = structures.unstructured,
  rules: distributions.Rules | None = None,
) -> Masks:
  """Masks the weights of least magnitude; see `make_masks`.

  >>> magnitude_masks(jnp.array([[1.0, -4.0], [2.0, 3.0]]), 0.5).tolist()
  [[False, True], [False, True]]
  """
  return make_masks(
    params,
    sparsity,
    distribution=distribution,
    structure=structure,
    rules=rules,
  )


def prune_params(
  params: Params,
  sparsity: Any,
  *,
  score: scores.Score = scores.magnitude,
  distribution: distributions.Distribution = distributions.uniform,
  structure: structures.Structure = structures.unstructured,
  rules: distributions.Rules | None = None,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> PrunedParams:
  """Prunes once. For the arguments see `make_masks`.

  To keep the zeros while training goes on, place `keep_masks(masks)` last in
  `optax.chain`.

  Returns:
    The pruned parameters and their masks.

  Raises:
    ValueError: as `make_masks` does.

  >>> net = {'bias': jnp.ones(2), 'kernel': jnp.array([[1.0, -4.0, 2.0, 3.0]])}
  >>> prune_params(net, 0.5).params['kernel'].tolist()
  [[0.0, -4.0, 0.0, 3.0]]
  """
  masks = make_masks(
    params,
    sparsity,
    score=score,
    distribution=distribution,
    structure=structure,
    rules=rules,
    grads=grads,
    key=key,
  )
  return PrunedParams(apply_masks(params, masks), masks)


def apply_masks(params: Params, masks: Masks) -> Params:
  """Puts exact zeros where the masks say so.

  By selection and never by a product, which would let NaN and infinity pass.

  Args:
    params: tree of arrays, or anything of its structure, like gradients.
    masks: tree of masks, of the shapes of `params` or scalar.

  Raises:
    ValueError: the trees differ, or a mask has another shape; the message names
      the parameter.

  >>> apply_masks(jnp.array([jnp.nan, 2.0]), jnp.array([False, True])).tolist()
  [0.0, 2.0]
  """
  check_masks(params, masks)
  return jax.tree.map(
    lambda p, m: jnp.where(m, p, jnp.zeros((), jnp.result_type(p))),
    params,
    masks,
  )


def check_masks(params: Params, masks: Masks) -> None:
  """Raises ValueError unless the masks fit the parameters.

  Args:
    params: tree of arrays or abstract shapes.
    masks: tree of the same structure; each mask bool, scalar or of its
      parameter's shape.
  """
  want = dict(tree.named_leaves(params))
  have = dict(tree.named_leaves(masks))
  if jax.tree.structure(params) != jax.tree.structure(masks):
    differing = sorted(want.keys() ^ have.keys())
    raise ValueError(
      'masks: the tree is not that of the parameters; only in one of them: '
      + (', '.join(differing) or 'containers of another type')
    )
  for name, mask in have.items():
    if jnp.result_type(mask) != jnp.bool_:
      raise ValueError(f'{name}: the mask is {jnp.result_type(mask)}, not bool')
    if jnp.ndim(mask) and jnp.shape(mask) != jnp.shape(want[name]):
      raise ValueError(
        f'{name}: the mask has shape {jnp.shape(mask)}, '
        f'the parameter {jnp.shape(want[name])}'
      )


def sparsity_report(params: Params, masks: Masks) -> tuple[SparsityRow, ...]:
  """Counts what the masks keep, parameter by parameter and in total.

  Args:
    params: tree of arrays or abstract shapes.
    masks: tree of bool arrays of the parameters' shapes, or scalars, concrete.

  Returns:
    A row per parameter, in the order of `jax.tree.leaves`, and a last one for
    the total. A row that keeps 0 of a kernel is a network cut in two.

  Raises:
    ValueError: the masks do not fit.

  >>> net = {'bias': jnp.ones(2), 'kernel': jnp.ones((2, 2))}
  >>> for row in sparsity_report(net, magnitude_masks(net, 0.75)):
  ...   print(*row)
  bias (2,) 2 2 0.0
  kernel (2, 2) 4 1 0.75
  total () 6 3 0.5
  """
  check_masks(params, masks)
  rows = []
  for (name, leaf), mask in zip(
    tree.named_leaves(params), jax.tree.leaves(masks), strict=True
  ):
    size = int(np.prod(np.shape(leaf)))
    filled = np.broadcast_to(np.asarray(mask), np.shape(leaf))
    rows.append(_row(name, np.shape(leaf), size, int(np.count_nonzero(filled))))
  size, kept = sum(row.size for row in rows), sum(row.kept for row in rows)
  return (*rows, _row('total', (), size, kept))


def _row(name: str, shape: Sequence[int], size: int, kept: int) -> SparsityRow:
  removed = 1 - kept / size if size else 0.0
  return SparsityRow(name, tuple(shape), size, kept, removed)


def _check_finite(params: Params, rules: distributions.Rules | None) -> None:
  """Raises ValueError for a concrete prunable weight without a rank."""
  for name, leaf in distributions.prunable(params, rules).items():
    if isinstance(leaf, jax.core.Tracer):
      continue
    bad = leaf.size - int(jnp.sum(jnp.isfinite(leaf), dtype=jnp.int32))
    if bad:
      raise ValueError(f'{name}: {bad} of {leaf.size} weights are not finite')
