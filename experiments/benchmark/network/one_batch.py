"""Input of a training job that is always the same."""

from typing import Any, NamedTuple

import jax

from experiments.training.workers import PER_WORKER


class OneBatch(NamedTuple):
  """One batch for every step."""

  batch: Any  # arrays of all workers, on their devices; or shapes, to compile
  kinds: str = PER_WORKER
  steps_per_epoch: int = 1

  def feed(self, step: int) -> Any:
    """Returns the batch."""
    del step
    return self.batch

  def select(self, feed: Any, step: jax.Array) -> Any:
    """The feed is the batch."""
    del step
    return feed
