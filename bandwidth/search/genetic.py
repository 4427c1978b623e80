"""Evolutionary search: candidates change by mutation and crossover."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.search.baselines import fractions_of
from bandwidth.search.problem.budget import fit
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  evaluate,
  join,
)


class Generation(NamedTuple):
  """Parents, and the children to be evaluated next.

  Attributes:
    parents: levels of the best so far, best first, int32 [S, G].
    scores: scores of the parents, float32 [S].
    children: levels before repair, int32 [P, G].
  """

  parents: jax.Array
  scores: jax.Array
  children: jax.Array


def make_genetic(
  problem: Problem,
  *,
  evaluations: int,
  population: int = 50,
  parents: float = 0.25,
  mutation: float = 0.1,
  mutated: float = 0.5,
) -> Searcher:
  """Evolves candidates as Once-for-All does.

  The first generation has random levels. Afterwards, the best candidates so far
  are the parents. Mutated children copy one parent with some levels drawn anew;
  the others take each level from one of two parents. The published search draws
  again until a child is within the budget; here `repair` makes it fit.

  Args:
    problem: space to search and objective to maximize.
    evaluations: number of candidates; the last generation is cut to fit.
    population: children in a generation, at least 2.
    parents: number of parents as a fraction of the population, in (0, 1].
    mutation: probability that a level of a mutated child is drawn anew.
    mutated: fraction of the children that are mutated; the others are crossed.

  Raises:
    ValueError: an argument is out of range.

  References:
    Cai et al., Once-for-All, ICLR 2020, section 3.4; Real et al., Regularized
    Evolution, AAAI 2019.
  """
  _check(evaluations, population, parents, mutation, mutated)
  survivors = max(round(parents * population), 1)
  mutants = round(mutated * population)

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    def generation(state: Generation, key: jax.Array) -> tuple:
      repairing, breeding = jax.random.split(key)
      keys = jax.random.split(repairing, population)
      children = jax.vmap(repair, (0, None, 0, None))(
        keys, data, state.children, budget
      )
      history = evaluate(problem, data, children)
      candidates = jnp.concatenate([state.parents, children])
      scores = jnp.concatenate([state.scores, history.scores])
      best = jnp.argsort(-scores)[:survivors]
      children = _breed(
        breeding, candidates[best], data.counts, population, mutants, mutation
      )
      return Generation(candidates[best], scores[best], children), history

    first, key = jax.random.split(key)
    state = _first(first, data.counts, survivors, population)
    keys = jax.random.split(key, -(-evaluations // population))
    history = join(jax.lax.scan(generation, state, keys)[1])
    return jax.tree.map(lambda rows: rows[:evaluations], history)

  return search


def repair(
  key: jax.Array, data: Data, candidate: jax.Array, budget: jax.Array
) -> jax.Array:
  """Makes a candidate just fit a budget, with few changes.

  The kept fractions are shifted by `budget.fit`. Levels are often equally far
  apart in all decisions, so that all would drop to their next level at once.
  Therefore each fraction first moves to a random place between its level and
  the next, and decisions drop one by one, in random order.

  Args:
    key: typed PRNG key, of `jax.random.key`.
    data: costs and levels of the problem, see `make_data`.
    candidate: level of each decision, int32 [G].
    budget: in units of `data.costs`, int32 [].

  Returns:
    int32 [G]; within the budget if the smallest candidate is.
  """
  below = jnp.clip(jnp.minimum(candidate, data.counts - 2), 0)
  above = jnp.minimum(below + 1, data.counts - 1)
  fractions = fractions_of(data.widths, candidate)
  gaps = fractions_of(data.widths, above) - fractions_of(data.widths, below)
  places = fractions + gaps * jax.random.uniform(key, candidate.shape)
  return fit(data.costs, data.widths, data.counts, places, budget)


def _check(
  evaluations: int,
  population: int,
  parents: float,
  mutation: float,
  mutated: float,
) -> None:
  if evaluations < 1:
    raise ValueError(f'evaluations={evaluations} is not positive')
  if population < 2:
    raise ValueError(f'population={population} is less than 2')
  if not 0 < parents <= 1:
    raise ValueError(f'parents={parents} is not in (0, 1]')
  for name, value in (('mutation', mutation), ('mutated', mutated)):
    if not 0 <= value <= 1:
      raise ValueError(f'{name}={value} is not in [0, 1]')


def _first(
  key: jax.Array, counts: jax.Array, survivors: int, population: int
) -> Generation:
  """Random children, and parents that are worse than any."""
  shape = (population, counts.shape[0])
  return Generation(
    parents=jnp.zeros((survivors, counts.shape[0]), jnp.int32),
    scores=jnp.full(survivors, -jnp.inf, jnp.float32),
    children=jax.random.randint(key, shape, 0, counts[None]),
  )


def _breed(
  key: jax.Array,
  parents: jax.Array,
  counts: jax.Array,
  population: int,
  mutants: int,
  mutation: float,
) -> jax.Array:
  """Children before repair, mutants first: int32 [P, G]."""
  picking, drawing, mutating, crossing = jax.random.split(key, 4)
  shape = (population, parents.shape[1])
  picked = jax.random.randint(picking, (2, population), 0, parents.shape[0])
  mother, father = parents[picked[0]], parents[picked[1]]
  drawn = jax.random.randint(drawing, shape, 0, counts[None])
  changed = jax.random.bernoulli(mutating, mutation, shape)
  crossed = jax.random.bernoulli(crossing, 0.5, shape)
  return jnp.where(
    jnp.arange(population)[:, None] < mutants,
    jnp.where(changed, drawn, mother),
    jnp.where(crossed, mother, father),
  )
