"""What a network is trained for, and how well it does it.

Also how a batch of stored images becomes the input of a network. All of it runs
on the device, inside the step, but for the scores that are made of sums.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


def make_preprocess(
  config: Mapping[str, Any],
) -> Callable[[jax.Array], jax.Array]:
  """Returns `uint8 [N, H, W, C] -> float32`, `(x / 255 - mean) / std`.

  Args:
    config: `mean` and `std`, in the range of 0 to 1, one number for each
      channel or one for all.
  """
  mean = jnp.asarray(config.get('mean', 0.0), jnp.float32).reshape(1, 1, 1, -1)
  std = jnp.asarray(config.get('std', 1.0), jnp.float32).reshape(1, 1, 1, -1)

  def preprocess(images: jax.Array) -> jax.Array:
    return (images.astype(jnp.float32) / 255 - mean) / std

  return preprocess


def make_augment(
  config: Mapping[str, Any],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns `(images, key) -> images`: random shifts, then random mirroring.

  Args:
    config: `pad`: an image is padded by so many zero pixels and a random window
      of its size is cut out; `flip`: mirrored left to right with probability
      one half.

  Raises:
    ValueError: `pad` is negative.
  """
  pad = int(config.get('pad', 0))
  flip = bool(config.get('flip', False))
  if pad < 0:
    raise ValueError(f'augment.pad={pad} is negative')

  def shift(image: jax.Array, offset: jax.Array) -> jax.Array:
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    start = (offset[0], offset[1], jnp.zeros((), offset.dtype))
    return jax.lax.dynamic_slice(padded, start, image.shape)

  def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    shift_key, flip_key = jax.random.split(key)
    count = images.shape[0]
    if pad:
      offsets = jax.random.randint(shift_key, (count, 2), 0, 2 * pad + 1)
      images = jax.vmap(shift)(images, offsets)
    if flip:
      mirrored = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
      images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images

  return augment


def make_classification_loss(
  model: nn.Module,
  preprocess: Callable[[jax.Array], jax.Array],
  augment: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[..., Any]:
  """Returns the mean cross-entropy of a batch, written for `value_and_grad`.

  Returns:
    `(params, model_state, batch, key) -> (loss, (model_state, metrics))`, with
    a batch of `image` uint8 [N, H, W, C] and `label` int32 [N].
  """

  def loss(
    params: Any, model_state: Any, batch: Any, key: jax.Array
  ) -> tuple[jax.Array, Any]:
    images = preprocess(augment(batch['image'], key))
    logits, model_state = model.apply(
      {'params': params, **model_state},
      images,
      train=True,
      mutable=list(model_state),
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    hits = (logits.argmax(-1) == batch['label']).astype(jnp.float32)
    return losses.mean(), (model_state, {'accuracy': hits.mean()})

  return loss


def make_classification_counts(
  model: Any, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable[..., dict[str, jax.Array]]:
  """Returns sums over a batch, from which accuracy and mean loss are made.

  Args:
    model: what has the `apply` of an `nn.Module`.
    preprocess: `images uint8 -> images float32`.

  Returns:
    `(params, model_state, batch) -> {'correct', 'loss', 'examples'}`, float32
    scalars. The batch's `weight` [N] is 1 for examples and 0 for padding.
  """

  def counts(params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
    variables = {'params': params, **model_state}
    logits: Any = model.apply(variables, preprocess(batch['image']))
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    hits = logits.argmax(-1) == batch['label']
    return {
      'correct': (hits * batch['weight']).sum(),
      'loss': (losses * batch['weight']).sum(),
      'examples': batch['weight'].sum(),
    }

  return counts


def make_language_loss(model: nn.Module) -> Callable[..., Any]:
  """Returns the mean cross-entropy of a token, written for `value_and_grad`.

  Returns:
    `(params, model_state, batch, key) -> (loss, (model_state, metrics))`, with
    a batch of `image` and `label`, int32 [N, T]: tokens, and those that follow
    them. Nats.
  """

  def loss(
    params: Any, model_state: Any, batch: Any, key: jax.Array
  ) -> tuple[jax.Array, Any]:
    logits, model_state = model.apply(
      {'params': params, **model_state},
      batch['image'],
      train=True,
      mutable=list(model_state),
      rngs={'dropout': key},
    )
    losses, hits = _token_scores(logits, batch['label'])
    return losses.mean(), (model_state, {'accuracy': hits.mean()})

  return loss


def make_language_counts(model: nn.Module) -> Callable[..., Any]:
  """Returns sums over the tokens of a batch, as for classification.

  Returns:
    `(params, model_state, batch) -> {'correct', 'loss', 'examples'}`, float32
    scalars, where an example is a token. The batch's `weight` [N] is 1 for
    windows and 0 for padding.
  """

  def counts(params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
    variables = {'params': params, **model_state}
    logits: Any = model.apply(variables, batch['image'])
    losses, hits = _token_scores(logits, batch['label'])
    weight = batch['weight'][:, None]
    return {
      'correct': (hits * weight).sum(),
      'loss': (losses * weight).sum(),
      'examples': weight.sum() * losses.shape[1],
    }

  return counts


def _token_scores(
  logits: jax.Array, label: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropies, and 1 where no token is likelier, of [N, T, V], [N, T]."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  found = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
  # A third of a training step on a CPU would go to the argmax of 10,000 logits.
  return losses, (found >= logits.max(-1)).astype(jnp.float32)


def classification_scores(totals: Mapping[str, float]) -> dict[str, float]:
  """Returns `accuracy`, a fraction, and `loss`, in nats, of sums."""
  return {
    'accuracy': totals['correct'] / totals['examples'],
    'loss': totals['loss'] / totals['examples'],
  }


def language_scores(totals: Mapping[str, float]) -> dict[str, float]:
  """Returns also `perplexity`, `exp(loss)`; infinite where that overflows."""
  scores = classification_scores(totals)
  try:
    perplexity = math.exp(scores['loss'])
  except OverflowError:
    perplexity = math.inf
  return {**scores, 'perplexity': perplexity}
