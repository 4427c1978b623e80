"""What a candidate scores: accuracy or loss of the network that is left."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bandwidth.base import unknown_name
from bandwidth.search.decisions import options
from experiments.models import matrix_convolution
from experiments.policy.candidates.channels import Candidates, with_statistics

SCORES = ('accuracy', 'loss')

_BATCH = 256


class Examples(NamedTuple):
  """What candidates are scored on.

  Attributes:
    images: preprocessed, float32 [B, N, H, W, C].
    labels: int32 [B, N]; -1 of what only fills the batches.
    statistics: images [N, H, W, C] whose statistics batch normalization takes
      in every candidate; None: it keeps those of the whole network.
  """

  images: jax.Array
  labels: jax.Array
  statistics: jax.Array | None = None


def make_examples(
  images: jax.Array, labels: jax.Array, statistics: jax.Array | None = None
) -> Examples:
  """Divides examples into batches of equal size, filled up with zeros.

  Args:
    images: preprocessed, float32 [N, H, W, C].
    labels: int32 [N].
    statistics: see `Examples`.
  """
  count = len(labels)
  batches = -(-count // _BATCH)
  # Whole chunks are what convolution by matrix products is fast at.
  chunk = matrix_convolution.CHUNK
  size = -(-count // (batches * chunk)) * chunk
  missing = batches * size - count
  widths = ((0, missing), *((0, 0),) * (images.ndim - 1))
  labels = jnp.pad(jnp.asarray(labels), (0, missing), constant_values=-1)
  return Examples(
    jnp.pad(images, widths).reshape(batches, size, *images.shape[1:]),
    labels.reshape(batches, size),
    statistics,
  )


def score_data(candidates: Candidates, examples: Examples) -> dict[str, Any]:
  """Returns the arrays that the functions below read."""
  return {
    'variables': candidates.variables,
    'tables': candidates.tables,
    'examples': examples,
  }


def check_score(score: str) -> None:
  """Raises ValueError where a score is none of `SCORES`."""
  if score not in SCORES:
    raise ValueError(unknown_name('search.score', score, SCORES))


def make_objective(
  candidates: Candidates, score: str
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(data, candidate) -> score`, the more the better.

  Args:
    candidates: of the network.
    score: 'accuracy', a fraction, or 'loss', cross-entropy in nats, negative.

  Raises:
    ValueError: the score is unknown.
  """
  check_score(score)
  measure = make_measure(candidates)

  def objective(data: Mapping[str, Any], candidate: jax.Array) -> jax.Array:
    measured = measure(data, candidate)
    return measured['accuracy'] if score == 'accuracy' else -measured['loss']

  return objective


def make_measure(
  candidates: Candidates,
) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
  """Returns `(data, candidate) -> {'accuracy', 'loss'}`, float32 [].

  The data are those of `score_data`, the candidate levels, int32 [G].
  """
  model, readers = candidates.model, candidates.readers

  def measure(data: Mapping[str, Any], candidate: jax.Array) -> Any:
    examples = data['examples']
    variables = options.with_options(
      data['variables'], readers, data['tables'], candidate
    )
    if examples.statistics is not None:
      variables = with_statistics(model, variables, examples.statistics)

    def of_batch(batch: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
      images, labels = batch
      logits = model.apply(variables, images)
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels, 0)
      )
      hits = jnp.sum(logits.argmax(-1) == labels, dtype=jnp.float32)
      losses = jnp.where(labels >= 0, losses, 0.0)
      return {'accuracy': hits, 'loss': losses.sum()}

    sums = lax.map(of_batch, (examples.images, examples.labels))
    count = jnp.sum(examples.labels >= 0)
    return jax.tree.map(lambda each: each.sum() / count, sums)

  return measure


def better_first(score: str, measured: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the order of candidates, the best first.

  Args:
    score: of `SCORES`.
    measured: accuracies and losses, [N] each; what is no number comes last.

  Returns:
    int [N]; of equals the earlier one first.

  >>> better_first('loss', {'loss': np.array([np.nan, 0.5, 0.1, 0.5])})
  array([2, 1, 3, 0])
  """
  check_score(score)
  sign = -1 if score == 'accuracy' else 1
  return np.argsort(sign * measured[score], kind='stable')
