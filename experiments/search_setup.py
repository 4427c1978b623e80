"""What a search runs on: options of a trained network, and examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.search.problem import Data, Problem, make_data
from experiments import datasets
from experiments.candidate_scores import (
  Examples,
  make_examples,
  make_measure,
  make_objective,
  score_data,
)
from experiments.candidates import Candidates, Refit, make_candidates
from experiments.objectives import make_preprocess
from experiments.search_plan import LEVELS, Plan


class Prepared(NamedTuple):
  """What a search runs on.

  Attributes:
    plan: of the search.
    candidates: of the network.
    problem: what is searched.
    data: arrays of it.
    check: arrays of other examples, that the search does not see.
    measure: compiled `(data, candidate) -> {'accuracy', 'loss'}`, of
      `data.objective` or `check`.
  """

  plan: Plan
  candidates: Candidates
  problem: Problem
  data: Data
  check: dict[str, Any]
  measure: Callable[[Any, jax.Array], dict[str, jax.Array]]


def prepare(plan: Plan, variables: Any) -> Prepared:
  """Makes options and scores of a network.

  Args:
    plan: of the search.
    variables: of the network.

  Raises:
    ValueError: a layer can't be refitted.
  """
  given = plan.config['search']
  rng = np.random.default_rng(plan.config['seed'])
  batches, statistics = _training_images(plan, rng)
  candidates = make_candidates(
    plan.task.model,
    variables,
    batches,
    refit=Refit(**{name: given['refit'][name] for name in Refit._fields}),
    key=jax.random.key(plan.config['seed']),
    **{name: given[name] for name in LEVELS},
  )
  seen, check = (
    score_data(candidates, examples)
    for examples in _held_out(plan, statistics, rng)
  )
  return Prepared(
    plan=plan,
    candidates=candidates,
    problem=Problem(plan.space, make_objective(candidates, given['score'])),
    data=make_data(
      plan.space, plan.costs, errors=candidates.errors, objective=seen
    ),
    check=check,
    measure=jax.jit(make_measure(candidates)),
  )


def _training_images(
  plan: Plan, rng: np.random.Generator
) -> tuple[jax.Array, jax.Array | None]:
  """Batches that layers are refitted on, and images for statistics."""
  given, train = plan.config['search'], plan.task.train
  refit, statistics = given['refit'], given['statistics']
  fitted = refit['batches'] * refit['batch_size']
  chosen = rng.choice(len(train), fitted + statistics, replace=False)
  images, _ = _read(plan, train, chosen)
  batches = images[:fitted].reshape(refit['batches'], -1, *images.shape[1:])
  return batches, images[fitted:] if statistics else None


def _held_out(
  plan: Plan, statistics: jax.Array | None, rng: np.random.Generator
) -> tuple[Examples, Examples]:
  """The examples that a search sees, and those that it does not."""
  count, held = plan.config['search']['images'], plan.task.evaluated
  images, labels = _read(plan, held, rng.permutation(len(held)))
  return (
    make_examples(images[:count], labels[:count], statistics),
    make_examples(images[count:], labels[count:], statistics),
  )


def _read(
  plan: Plan,
  split: datasets.Split | datasets.StreamedSplit,
  index: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
  """Returns preprocessed images [N, H, W, C] and labels int32 [N]."""
  preprocess = make_preprocess(plan.config['dataset'])
  if isinstance(split, datasets.Split):
    images, labels = split.image[index], split.label[index]
  else:
    size = len(index)
    # One batch is all there is.
    (batch,) = split.take(index).ordered(batch_size=size, rows=slice(size))
    images, labels = batch['image'], batch['label']
  return preprocess(jnp.asarray(images)), jnp.asarray(labels)
