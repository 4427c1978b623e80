"""Scores of a network on a whole split, on all devices of a run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.training.input import EvaluationInput
from experiments.training.objectives import classification_scores
from experiments.training.workers import REPLICATED, Workers


class Evaluator:
  """Evaluates parameters on a split.

  Batch norm in several workers: each worker normalizes with the statistics of
  its own examples and keeps running averages of its own; nothing is sent for
  them while training. Where one network is wanted, here and in what is
  exported, its statistics are the mean over the workers. Running averages are
  linear, so this equals averaging in every step.

  Args:
    counts: `(params, model_state, batch) -> sums`, with `examples` among them.
    batches: all examples of the split.
    workers: whose devices are used.
    scores: of the sums over the whole split.

  Attributes:
    merge: the model state of all workers -> that of one network.
  """

  def __init__(
    self,
    counts: Callable[..., dict[str, jax.Array]],
    batches: EvaluationInput,
    workers: Workers,
    scores: Callable[
      [Mapping[str, float]], dict[str, float]
    ] = classification_scores,
  ):
    everywhere = workers.sharding(REPLICATED)
    self._batches, self._scores = batches, scores
    self._counts = jax.jit(counts, out_shardings=everywhere)
    self.merge = jax.jit(mean_over_workers, out_shardings=everywhere)

  def __call__(self, params: Any, model_state: Any) -> dict[str, float]:
    """Returns the scores: `accuracy` and `loss`, means over the examples.

    Args:
      params: of the network, replicated on the devices.
      model_state: with the workers along the first axis.
    """
    model_state = self.merge(model_state)
    totals: dict[str, float] = {}
    for batch in self._batches:
      # One at a time: XLA:CPU deadlocks on many queued collective programs.
      sums = jax.device_get(self._counts(params, model_state, batch))
      for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + float(value)
    return self._scores(totals)


def mean_over_workers(model_state: Any) -> Any:
  """Returns the model state of one network from that of all workers."""
  return jax.tree.map(lambda leaf: leaf.mean(axis=0), model_state)
