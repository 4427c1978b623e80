"""Sensitivity: what pruning one parameter alone does to the network."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.pruning import distributions, masks, scores, structures


class SensitivityRow(NamedTuple):
  """One measurement of a sensitivity scan.

  Attributes:
    name: name of the only parameter that was pruned.
    sparsity: the sparsity that was asked for, in [0, 1].
    size: number of weights of the parameter.
    kept: number of weights that its mask keeps.
    value: the number that `evaluate` returned, as a float.
    change: value minus that of the parameters as given.
  """

  name: str
  sparsity: float
  size: int
  kept: int
  value: float
  change: float


def sensitivity_scan(
  evaluate: Callable[[Params], Any],
  params: Params,
  sparsities: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
  *,
  score: scores.Score = scores.magnitude,
  structure: structures.Structure = structures.unstructured,
  rules: distributions.Rules | None = None,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> list[SensitivityRow]:
  """Prunes one parameter at a time, without retraining, and measures.

  Effects of several parameters do not add: use it for relative budgets only.

  Args:
    evaluate: `params -> number`, an accuracy or a loss; jit it.
    params: tree of arrays, the network's weights.
    sparsities: each tried on each prunable parameter, in [0, 1].
    score: function that ranks the weights, as in `scores`.
    structure: function that makes one parameter's mask, as in `structures`.
    rules: what is prunable, see `distributions.prunable`.
    grads: gradients, for scores that need them.
    key: typed key, for scores that need one.

  Returns:
    Rows in the order of the parameters, then of the sparsities.

  Raises:
    ValueError: a sparsity is not in [0, 1] or does not suit the structure,
      nothing is prunable, or the network's own value is not finite.

  References:
    Han et al., 2015, figure 6, https://arxiv.org/abs/1506.02626

  >>> import jax.numpy as jnp
  >>> net = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0, 4.0]])}
  >>> total = lambda p: p['a'].sum() + p['b'].sum()
  >>> for row in sensitivity_scan(total, net, [0.5]):
  ...   print(row.name, row.kept, row.value, row.change)
  a 1 9.0 -1.0
  b 1 7.0 -3.0
  """
  for sparsity in sparsities:
    structures.check_sparsity(sparsity, argument='sparsities')
  chosen = distributions.prunable(params, rules)
  if not chosen:
    raise ValueError('rules: no parameter is prunable')
  base = float(evaluate(params))
  if not math.isfinite(base):
    raise ValueError(f'evaluate(params)={base!r} is not finite')
  rows = []
  for name in chosen:
    only = [(leaf, leaf == name) for leaf in tree.names(params)]
    for sparsity in sparsities:
      pruned = masks.prune_params(
        params,
        sparsity,
        score=score,
        structure=structure,
        rules=_literal(only),
        grads=grads,
        key=key,
      )
      report = masks.sparsity_report(params, pruned.masks)
      kept = next(row.kept for row in report if row.name == name)
      value = float(evaluate(pruned.params))
      size = chosen[name].size
      rows.append(
        SensitivityRow(name, float(sparsity), size, kept, value, value - base)
      )
  return rows


def _literal(pairs: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
  """Escapes names, which may hold characters of regular expressions."""
  return [(re.escape(name), value) for name, value in pairs]
