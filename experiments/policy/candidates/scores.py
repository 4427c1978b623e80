"""What a candidate scores: accuracy or loss of the network that is left."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bandwidth.base import check_known
from experiments.models import matrix_convolution
from experiments.policy.candidates.channels import with_statistics

SCORES = ('accuracy', 'loss')

_BATCH = 256


class Scorable(Protocol):
  """A network with options: `Candidates`, `QuantizedCandidates`."""

  @property
  def model(self) -> Any:
    """The network, a `flax.linen.Module`."""
    ...

  def arrays(self) -> dict[str, Any]:
    """Returns the arrays that the other methods read, by name."""
    ...

  def chosen(self, data: Mapping[str, Any], candidate: jax.Array) -> Any:
    """Returns the variables with the options of a candidate, int32 [G]."""
    ...

  def rounding(
    self, data: Mapping[str, Any], candidate: jax.Array
  ) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which layers read what a candidate lets them."""
    ...


class Examples(NamedTuple):
  """Labeled images on which candidates are scored."""

  images: jax.Array  # preprocessed, float32 [B, N, H, W, C]
  labels: jax.Array  # int32 [B, N]; -1 where an image only fills a batch
  # Images [N, H, W, C] from which batch normalization takes its statistics in
  # every candidate; None: it keeps those of the whole network.
  statistics: jax.Array | None = None


def make_examples(
  images: jax.Array, labels: jax.Array, statistics: jax.Array | None = None
) -> Examples:
  """Divides examples into batches of equal size, filled up with zeros.

  Args:
    images: preprocessed, float32 [N, H, W, C].
    labels: class of each image, int32 [N].
    statistics: images for batch normalization, see `Examples`.
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


def score_data(candidates: Scorable, examples: Examples) -> dict[str, Any]:
  """Returns the arrays that the functions below read."""
  return {**candidates.arrays(), 'examples': examples}


def check_score(score: str) -> None:
  """Raises ValueError where a score is none of `SCORES`."""
  check_known('search.score', score, SCORES)


def make_objective(
  candidates: Scorable, score: str
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(data, candidate) -> score`, the more the better.

  Args:
    candidates: the network and its options.
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
  candidates: Scorable,
) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
  """Returns `(data, candidate) -> {'accuracy', 'loss'}`, float32 [].

  The data are those of `score_data`, the candidate levels, int32 [G].
  """
  model = candidates.model

  def measure(data: Mapping[str, Any], candidate: jax.Array) -> Any:
    variables = candidates.chosen(data, candidate)
    with candidates.rounding(data, candidate):
      return of_variables(data['examples'], variables)

  def of_variables(examples: Examples, variables: Any) -> Any:
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
    score: 'accuracy' or 'loss'.
    measured: accuracies and losses, [N] each; what is no number comes last.

  Returns:
    int [N]; of equals the earlier one first.

  >>> better_first('loss', {'loss': np.array([np.nan, 0.5, 0.1, 0.5])})
  array([2, 1, 3, 0])
  """
  check_score(score)
  sign = -1 if score == 'accuracy' else 1
  return np.argsort(sign * measured[score], kind='stable')
