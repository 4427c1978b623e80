"""What a search runs on: options of a trained network, and examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.search.problem.interface import Data, Problem, make_data
from experiments import datasets
from experiments.policy.candidates.scores import (
  Examples,
  make_examples,
  make_measure,
  make_objective,
  score_data,
)
from experiments.policy.kinds.kind import PricedSpace, SearchSubject
from experiments.policy.plan import SearchPlan, budget_of
from experiments.training.objectives import make_preprocess


class SearchSetup(NamedTuple):
  """What a search runs on."""

  plan: SearchPlan
  subject: SearchSubject  # the network with its options
  budget: int  # in units of the costs
  problem: Problem  # decisions and objective
  data: Data  # arrays that the objective reads
  check: dict[str, Any]  # the same of examples that the search does not see
  # Compiled `(data.objective or check, candidate) -> {'accuracy', 'loss'}`.
  measure: Callable[[Any, jax.Array], dict[str, jax.Array]]

  @property
  def priced(self) -> PricedSpace:
    """The decisions and what they cost."""
    return self.subject.priced


def prepare(plan: SearchPlan, variables: Any) -> SearchSetup:
  """Makes options and scores of a network.

  Args:
    plan: what the config asks for.
    variables: of the trained network, collections by name.

  Raises:
    ValueError: a layer can't be refitted; the budget cannot be reached.
  """
  given = plan.config['search']
  rng = np.random.default_rng(plan.config['seed'])
  batches, statistics = _training_images(plan, rng)
  subject = plan.kind.make(
    plan.config,
    plan.task,
    variables,
    batches,
    jax.random.key(plan.config['seed']),
  )
  seen, check = (
    score_data(subject.candidates, examples)
    for examples in _held_out(plan, statistics, rng)
  )
  space, costs = subject.priced.space, subject.priced.costs
  return SearchSetup(
    plan=plan,
    subject=subject,
    budget=budget_of(given, subject.priced),
    problem=Problem(space, make_objective(subject.candidates, given['score'])),
    data=make_data(space, costs, errors=subject.errors, objective=seen),
    check=check,
    measure=jax.jit(make_measure(subject.candidates)),
  )


def _training_images(
  plan: SearchPlan, rng: np.random.Generator
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
  plan: SearchPlan, statistics: jax.Array | None, rng: np.random.Generator
) -> tuple[Examples, Examples]:
  """The examples that a search sees, and those that it does not."""
  count, held = plan.config['search']['images'], plan.task.evaluated
  images, labels = _read(plan, held, rng.permutation(len(held)))
  return (
    make_examples(images[:count], labels[:count], statistics),
    make_examples(images[count:], labels[count:], statistics),
  )


def _read(
  plan: SearchPlan,
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
