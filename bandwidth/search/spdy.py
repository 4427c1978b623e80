"""SPDY: searches weights of a sum of errors whose minimum is a good candidate.

The sum of the errors of single decisions does not measure a network. But with
the right weights its minimum is a good candidate, and every such minimum is
within the budget by construction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.search.dynamic import check_chain, make_chain, minimize
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  evaluate,
  join,
)


class SpdyState(NamedTuple):
  """The best weights so far, and the state of the local search.

  Attributes:
    weights: q of the best candidate so far, float32 [G].
    score: its score, float32 [].
    resampled: number of weights that a trial draws anew, int32 [].
    failures: trials since the last improvement, int32 [].
  """

  weights: jax.Array
  score: jax.Array
  resampled: jax.Array
  failures: jax.Array


def make_spdy(
  problem: Problem,
  *,
  evaluations: int,
  starts: int = 100,
  resampled: float = 0.1,
  patience: int = 100,
  buckets: int = 1_000,
) -> Searcher:
  r"""Searches weights q for the dynamic program.

  Each candidate minimizes

  .. math:: \sum_g q_g e_g(k_g)

  within the budget. The first one has q = 1, the dynamic program's own
  solution; the others of the first `starts` have weights uniform on [0, 1].
  Afterwards, each trial draws some of the best weights anew, and keeps them if
  the score improves. After `patience` failures, trials draw one weight fewer,
  but at least one; the published search stops there, this one goes on while
  evaluations are left.

  Args:
    problem: space and objective; the space must be a chain, and the data need
      `errors`.
    evaluations: number of candidates to evaluate.
    starts: candidates with random weights, before the local search.
    resampled: fraction of the weights that a trial draws anew, in (0, 1].
    patience: failures before a trial draws one weight fewer.
    buckets: resolution of the dynamic program, see `dynamic.make_chain`. The
      published 10,000 take ten times as long for a budget that is used a little
      better: rounding costs half a bucket a decision on average.

  Raises:
    ValueError: the space is not a chain, or an argument is out of range.

  References:
    Frantar and Alistarh, SPDY, ICML 2022, section 3.3.
  """
  check_chain(problem.space)
  _check(
    resampled,
    evaluations=evaluations,
    starts=starts,
    patience=patience,
    buckets=buckets,
  )
  decisions = problem.space.decisions
  most = max(round(resampled * decisions), 1)

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    chain = make_chain(problem.space, data.costs, budget, buckets=buckets)

    def trial(state: SpdyState, inputs: tuple) -> tuple[SpdyState, History]:
      key, index = inputs
      weights = _propose(key, state, index, starts)
      candidates = minimize(
        chain, data, budget[None], weights=weights, buckets=buckets
      )
      history = evaluate(problem, data, candidates)
      score = history.scores[0]
      return _keep(state, weights, score, index >= starts, patience), history

    state = SpdyState(
      weights=jnp.ones(decisions),
      score=jnp.asarray(-jnp.inf, jnp.float32),
      resampled=jnp.asarray(most, jnp.int32),
      failures=jnp.zeros((), jnp.int32),
    )
    inputs = jax.random.split(key, evaluations), jnp.arange(evaluations)
    return join(jax.lax.scan(trial, state, inputs)[1])

  return search


def _check(resampled: float, **counts: int) -> None:
  for name, value in counts.items():
    if value < 1:
      raise ValueError(f'{name}={value} is not positive')
  if not 0 < resampled <= 1:
    raise ValueError(f'resampled={resampled} is not in (0, 1]')


def _propose(
  key: jax.Array, state: SpdyState, index: jax.Array, starts: int
) -> jax.Array:
  """Weights of a trial, float32 [G]."""
  key, drawing = jax.random.split(key)
  drawn = jax.random.uniform(drawing, state.weights.shape)
  start = jnp.where(index == 0, 1.0, drawn)
  rank = jax.random.permutation(key, state.weights.size)
  near = jnp.where(rank < state.resampled, drawn, state.weights)
  return jnp.where(index < starts, start, near)


def _keep(
  state: SpdyState,
  weights: jax.Array,
  score: jax.Array,
  local: jax.Array,
  patience: int,
) -> SpdyState:
  """Keeps the weights if they are better, and counts failures if local."""
  better = score > state.score
  failures = jnp.where(better | ~local, 0, state.failures + 1)
  tired = failures >= patience
  fewer = jnp.maximum(state.resampled - 1, 1)
  return SpdyState(
    weights=jnp.where(better, weights, state.weights),
    score=jnp.where(better, score, state.score),
    resampled=jnp.where(tired, fewer, state.resampled),
    failures=jnp.where(tired, 0, failures),
  )
