"""Trained ternary quantization: weights are +W_p, 0 or −W_n.

Zhu, Han, Mao, Dally, Trained Ternary Quantization, ICLR 2017, arXiv 1612.01064.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.quantization.codebook import Codebook
from bandwidth.quantization.parameterization import Parameterization

TernaryRules = Sequence[tuple[str, float | None]]
"""Pairs (regular expression over names, threshold t). None: not quantized."""


class Scales(NamedTuple):
  """The two magnitudes of a ternary tensor.

  Attributes:
    positive: float32 [], W_p, the value of positive weights.
    negative: float32 [], W_n; the value itself is −W_n.
  """

  positive: jax.Array
  negative: jax.Array


class TernaryVariables(NamedTuple):
  """What `ternary_params` trains.

  Attributes:
    latents: the full-precision weights, in the tree of the parameters.
    scales: the scales of each ternary parameter, by name.
  """

  latents: Params
  scales: dict[str, Scales]


def ternarize(
  latent: jax.Array,
  positive: jax.Array,
  negative: jax.Array,
  *,
  threshold: float = 0.05,
) -> jax.Array:
  """Quantizes latent weights to three values, with the paper's gradients.

  With Δ = t · max|w̃| (equations 6 and 9):

      w = W_p    where  w̃ >  Δ        ∂L/∂w̃ = W_p · ∂L/∂w
          0            |w̃| ≤ Δ                   1 · ∂L/∂w
         −W_n           w̃ < −Δ                W_n · ∂L/∂w

      ∂L/∂W_p = Σ_{w̃ > Δ} ∂L/∂w        ∂L/∂W_n = −Σ_{w̃ < −Δ} ∂L/∂w

  The paper's equation 7 prints the last sum without the minus sign that the
  value −W_n implies. No gradient passes through Δ.

  Args:
    latent: float array of any shape, the trained weights w̃.
    positive: float32 [], W_p, the value of positive weights.
    negative: float32 [], W_n; negative weights get −W_n.
    threshold: t, the threshold Δ as a fraction of max|w̃|, in [0, 1).

  Returns:
    The ternary weights, in the shape and dtype of `latent`.

  Raises:
    ValueError: `threshold` is outside [0, 1).

  >>> w_p, w_n = jnp.float32(0.7), jnp.float32(0.4)
  >>> ternarize(jnp.array([1.0, 0.01, -0.5]), w_p, w_n)
  Array([ 0.7,  0. , -0.4], dtype=float32)
  """
  _check_threshold(threshold)
  return _ternarize(latent, positive, negative, threshold)


def regions(latent: jax.Array, *, threshold: float) -> jax.Array:
  """Returns +1, 0 or −1 for each latent weight, int8.

  >>> regions(jnp.array([1.0, 0.05, -0.5]), threshold=0.05).tolist()
  [1, 0, -1]
  """
  weights = latent.astype(jnp.float32)
  delta = threshold * jnp.max(jnp.abs(weights), initial=0)
  above = (weights > delta).astype(jnp.int8)
  below = (weights < -delta).astype(jnp.int8)
  return above - below


def mean_scales(latent: jax.Array, *, threshold: float) -> Scales:
  """Returns the scales nearest to the latent weights: means over the regions.

  >>> scales = mean_scales(jnp.array([1.0, 0.5, 0.0, -0.5]), threshold=0.05)
  >>> scales.positive.item(), scales.negative.item()
  (0.75, 0.5)
  """
  weights = latent.astype(jnp.float32)
  signs = regions(latent, threshold=threshold)

  def mean(inside: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(inside, jnp.abs(weights), 0))
    count = jnp.sum(inside)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), 1.0)

  return Scales(mean(signs > 0), mean(signs < 0))


def unit_scales(latent: jax.Array, *, threshold: float) -> Scales:
  """Returns scales of 1, as the authors' code starts a normalized network."""
  del latent, threshold
  return Scales(jnp.ones((), jnp.float32), jnp.ones((), jnp.float32))


def ternary_params(
  rules: TernaryRules, *, scales: Callable[..., Scales] = mean_scales
) -> Parameterization:
  """Returns the parameterization of a network with ternary weights.

  Keep the first and the last layer, biases and normalization in full precision,
  as the paper does. `export` gives codes 0, 1, 2 for 0, W_p, −W_n.

  Args:
    rules: the threshold t of each parameter, the paper's being 0.05; None
      leaves a parameter alone. The first match wins.
    scales: `(latent, *, threshold) -> Scales` to start from: `mean_scales` for
      a pretrained network, or `unit_scales`.

  Returns:
    `init: params -> TernaryVariables`, `decode`, and `export` to `Codebook`s.

  Raises:
    ValueError: a threshold is outside [0, 1).

  >>> ternary = ternary_params([('bias', None), ('.*', 0.05)])
  >>> variables = ternary.init({'bias': jnp.ones(1), 'kernel': jnp.arange(3.0)})
  >>> ternary.decode(variables)['kernel'].tolist()
  [0.0, 1.5, 1.5]
  """
  for _, threshold in rules:
    if threshold is not None:
      _check_threshold(threshold)

  def init(params: Params) -> TernaryVariables:
    thresholds = tree.match_rules(rules, params)
    return TernaryVariables(
      latents=params,
      scales={
        name: scales(leaf, threshold=thresholds[name])
        for name, leaf in tree.named_leaves(params)
        if thresholds[name] is not None
      },
    )

  def decode(variables: TernaryVariables) -> Params:
    thresholds = tree.match_rules(rules, variables.latents)

    def leaf(name: str, latent: jax.Array) -> jax.Array:
      threshold = thresholds[name]
      if threshold is None:
        return latent
      pair = variables.scales[name]
      return _ternarize(latent, pair.positive, pair.negative, threshold)

    return tree.map_named(leaf, variables.latents)

  def export(variables: TernaryVariables) -> dict[str, Codebook]:
    thresholds = tree.match_rules(rules, variables.latents)
    return {
      name: _export(latent, variables.scales[name], threshold)
      for name, latent in tree.named_leaves(variables.latents)
      if (threshold := thresholds[name]) is not None
    }

  return Parameterization(init, decode, export)


def _check_threshold(threshold: float) -> None:
  if not 0 <= threshold < 1:
    raise ValueError(f'threshold={threshold} must be in [0, 1)')


@jax.custom_vjp
def _ternarize(
  latent: jax.Array, positive: jax.Array, negative: jax.Array, threshold: float
) -> jax.Array:
  signs = regions(latent, threshold=threshold)
  return _select(signs, positive, 0.0, -negative).astype(latent.dtype)


def _select(
  signs: jax.Array,
  above: jax.Array,
  inside: float,
  below: jax.Array,
) -> jax.Array:
  return jnp.where(signs > 0, above, jnp.where(signs < 0, below, inside))


def _forward(
  latent: jax.Array, positive: jax.Array, negative: jax.Array, threshold: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  signs = regions(latent, threshold=threshold)
  value = _select(signs, positive, 0.0, -negative).astype(latent.dtype)
  return value, (signs, positive, negative)


def _backward(
  saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
  signs, positive, negative = saved
  grad = gradient.astype(jnp.float32)
  to_latent = grad * _select(signs, positive, 1.0, negative)
  to_positive = jnp.sum(jnp.where(signs > 0, grad, 0))
  to_negative = -jnp.sum(jnp.where(signs < 0, grad, 0))
  return (
    to_latent.astype(gradient.dtype),
    to_positive.astype(positive.dtype),
    to_negative.astype(negative.dtype),
    None,
  )


_ternarize.defvjp(_forward, _backward)


def _export(latent: jax.Array, scales: Scales, threshold: float) -> Codebook:
  signs = np.asarray(regions(latent, threshold=threshold))
  # The values that `decode` gives, which were rounded to the latents' dtype.
  pair = jnp.stack([scales.positive, -scales.negative]).astype(latent.dtype)
  values = np.asarray(pair).astype(np.float32)
  return Codebook(
    codes=np.where(signs < 0, 2, signs).astype(np.uint8),
    centroids=np.concatenate([np.zeros(1, np.float32), values]),
  )
