"""Distributions over integers: what a weight will cost in the file.

A prior gives the bits −log2 p(q) of an integer q, from few parameters. The same
formula at points between integers is the smooth rate that training follows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_LN2 = 0.6931471805599453


class Prior(NamedTuple):
  """A family of distributions over integers, as pure functions.

  Attributes:
    init: `latents float32 [n] -> parameters`, a good start for these latents.
      Traceable; any tree of float32 arrays, which training may optimize.
    fit: `(parameters, levels float32 [n]) -> parameters` to rate the levels
      with. The identity for learned priors; `empirical_prior` counts here.
    bits: `(parameters, points float32 [n]) -> float32 [n]`. At whole numbers
      −log2 p, with Σ p = 1; between them a continuous extension.
  """

  init: Callable[[jax.Array], Any]
  fit: Callable[[Any, jax.Array], Any]
  bits: Callable[[Any, jax.Array], jax.Array]


def _keep(parameters: Any, levels: jax.Array) -> Any:
  del levels
  return parameters


def _log_spread(latents: jax.Array) -> jax.Array:
  """Log of the mean magnitude, with a floor where nearly all is zero."""
  count = max(latents.size, 1)
  return jnp.log(jnp.sum(jnp.abs(latents)) / count + 0.1)


def logistic_prior() -> Prior:
  """Returns the discretized logistic distribution around 0.

  p(q) = σ((q + ½) / s) − σ((q − ½) / s), with a learned log s: the density of a
  logistic variable plus uniform noise, at q. One parameter, which goes into the
  file. Source: Oktay et al. 2020, arXiv 1906.06624; Ballé et al. 2018.

  >>> prior = logistic_prior()
  >>> points = jnp.arange(-50.0, 51.0)
  >>> probability = 2 ** -prior.bits(jnp.float32(0.0), points)
  >>> f'{probability.sum():.4f} {probability[50]:.4f}'
  '1.0000 0.2449'
  """
  return Prior(
    init=_log_spread,
    fit=_keep,
    bits=lambda log_scale, points: (
      -_log_logistic(points, jnp.exp(log_scale)) / _LN2
    ),
  )


def _log_logistic(points: jax.Array, scale: jax.Array) -> jax.Array:
  # Both ends on the left side, where the difference of sigmoids is precise.
  far = -jnp.abs(points)
  upper = jax.nn.log_sigmoid((far + 0.5) / scale)
  lower = jax.nn.log_sigmoid((far - 0.5) / scale)
  return upper + jnp.log(-jnp.expm1(jnp.minimum(lower - upper, -1e-7)))


def laplace_prior() -> Prior:
  """Returns the discretized Laplace distribution around 0.

  p(q) = F(q + ½) − F(q − ½), where F is the distribution function of density
  exp(−|x| / b) / 2b, with a learned log b. One parameter.

  >>> prior = laplace_prior()
  >>> probability = 2 ** -prior.bits(jnp.float32(0.0), jnp.arange(-30.0, 31.0))
  >>> f'{probability.sum():.4f} {probability[30]:.4f}'
  '1.0000 0.3935'
  """

  def bits(log_scale: jax.Array, points: jax.Array) -> jax.Array:
    scale = jnp.exp(log_scale)
    half = 0.5 / scale
    distance = jnp.abs(points) / scale
    tail = jnp.log1p(-jnp.exp(-2 * half)) + half - jnp.log(2.0)
    # cosh(distance) e^-half as two exponentials, neither of which overflows.
    near = jnp.minimum(distance, half)
    middle = (jnp.exp(near - half) + jnp.exp(-near - half)) / 2
    inside = jnp.log1p(-jnp.minimum(middle, 1 - 1e-7))
    return -jnp.where(distance < half, inside, tail - distance) / _LN2

  return Prior(init=_log_spread, fit=_keep, bits=bits)


class Mixture(NamedTuple):
  """Parameters of `mixture_prior`.

  Attributes:
    logits: float32 [components], weights before the softmax.
    log_scales: float32 [components], logarithms of the scales.
  """

  logits: jax.Array
  log_scales: jax.Array


def mixture_prior(components: int = 2) -> Prior:
  """Returns a mixture of discretized logistic distributions around 0.

  A narrow component holds the zeros of a sparse tensor, a wide one the rest.

  Args:
    components: how many; each has a weight and a log scale.

  Returns:
    A prior whose parameters are a `Mixture`.

  Raises:
    ValueError: `components` is not positive.

  >>> prior = mixture_prior()
  >>> mixture = Mixture(jnp.zeros(2), jnp.array([-2.0, 2.0]))
  >>> probability = 2 ** -prior.bits(mixture, jnp.arange(-99.0, 100.0))
  >>> f'{probability.sum():.4f} {probability[99]:.4f}'
  '1.0000 0.4927'
  """
  if components < 1:
    raise ValueError(f'components={components} must be positive')

  def init(latents: jax.Array) -> Mixture:
    spread = jnp.arange(components, dtype=jnp.float32) - (components - 1) / 2
    return Mixture(
      jnp.zeros(components, jnp.float32), _log_spread(latents) + spread
    )

  def bits(mixture: Mixture, points: jax.Array) -> jax.Array:
    weights = jax.nn.log_softmax(mixture.logits)
    logs = jnp.stack(
      [
        weights[i] + _log_logistic(points, jnp.exp(mixture.log_scales[i]))
        for i in range(components)
      ]
    )
    return -jax.nn.logsumexp(logs, axis=0) / _LN2

  return Prior(init=init, fit=_keep, bits=bits)


def table_prior(radius: int = 15) -> Prior:
  """Returns the free distribution: one learned logit for each integer.

  Integers −R to R; the two ends share their mass with what lies beyond,
  p(±(R + k)) = p_±R · 2^−(k+1), so that all integers can be coded. Between
  integers, bits are interpolated.

  Args:
    radius: R, the largest integer with a logit of its own, positive.

  Raises:
    ValueError: `radius` is not positive.

  >>> prior = table_prior(radius=1)
  >>> bits = prior.bits(jnp.zeros(3), jnp.array([0.0, 1.0, 2.0]))
  >>> [f'{b:.3f}' for b in bits]
  ['1.585', '2.585', '3.585']
  """
  _check_radius(radius)
  return Prior(
    init=lambda latents: _count_logits(latents, radius, 0.5),
    fit=_keep,
    bits=lambda logits, points: _table_bits(logits, points, radius),
  )


def empirical_prior(radius: int = 15, *, pseudo_count: float = 0.5) -> Prior:
  """Returns the distribution of the levels themselves, counted at each step.

  Nothing is learned: bits add up to the empirical entropy, which is what an
  adaptive coder reaches, or a static one with its table in the file. Outside
  the radius as `table_prior`.

  Args:
    radius: integers −radius to radius are counted; positive.
    pseudo_count: added to each count, as adaptive coders do (Krichevsky,
      Trofimov 1981), so that no level is impossible.

  Returns:
    A prior without parameters.

  Raises:
    ValueError: an argument is not positive.

  >>> prior = empirical_prior(radius=1, pseudo_count=1e-6)
  >>> counted = prior.fit((), jnp.array([0.0, 0.0, 0.0, 1.0]))
  >>> f'{prior.bits(counted, jnp.zeros(1)).item():.3f}'
  '0.415'
  """
  _check_radius(radius)
  if not pseudo_count > 0:
    raise ValueError(f'pseudo_count={pseudo_count} must be positive')
  return Prior(
    init=lambda latents: (),
    fit=lambda _, levels: jax.lax.stop_gradient(
      _count_logits(levels, radius, pseudo_count)
    ),
    bits=lambda logits, points: _table_bits(logits, points, radius),
  )


class Geometric(NamedTuple):
  """What `geometric_prior` reads off the levels, in bits.

  Attributes:
    zero: float32 [], of a zero.
    one: float32 [], of +1 or −1, its sign included.
    more: float32 [], of each further step away from zero.
  """

  zero: jax.Array
  one: jax.Array
  more: jax.Array


def geometric_prior(*, pseudo_count: float = 0.5) -> Prior:
  r"""Returns the zero-inflated geometric distribution, fitted at each step.

  .. math:: p(0) = p_0 \qquad p(\pm k) = \tfrac{1 - p_0}{2} (1 - r) r^{k-1}

  Both numbers are the most likely ones for the levels of now, so nothing is
  learned. Bits rise with the magnitude whatever the levels are, so that every
  weight is pulled to zero. Under `empirical_prior` one that stands beyond a
  level that has become rare is held there. Between integers, bits are linear.

  Args:
    pseudo_count: added to the zeros, and to the non-zeros.

  Returns:
    A prior without parameters.

  Raises:
    ValueError: `pseudo_count` is not positive.

  >>> prior = geometric_prior(pseudo_count=1e-6)
  >>> fitted = prior.fit((), jnp.array([0.0, 0.0, 1.0, -2.0]))
  >>> [f'{b:.3f}' for b in prior.bits(fitted, jnp.array([0.0, 1.0, -2.0]))]
  ['1.000', '2.585', '4.170']
  """
  if not pseudo_count > 0:
    raise ValueError(f'pseudo_count={pseudo_count} must be positive')
  return Prior(
    init=lambda latents: (),
    fit=lambda _, levels: jax.lax.stop_gradient(
      _fit_geometric(jnp.abs(jnp.round(levels)), pseudo_count)
    ),
    bits=_geometric_bits,
  )


def _fit_geometric(sizes: jax.Array, pseudo_count: float) -> Geometric:
  nonzero = jnp.sum(sizes > 0) + pseudo_count
  zeros = sizes.size - nonzero + 2 * pseudo_count
  total = nonzero + zeros
  mean = (jnp.sum(sizes) + pseudo_count) / nonzero
  # A ratio of 0 would make large levels impossible, and their bits infinite.
  ratio = jnp.clip(1 - 1 / mean, 1e-3, 1 - 1e-6)
  zero = -jnp.log2(zeros / total)
  one = 1 - jnp.log2(nonzero / total) - jnp.log2(1 - ratio)
  # Where non-zeros are the rule a zero is dear; it still attracts.
  return Geometric(jnp.minimum(zero, one), one, -jnp.log2(ratio))


def _geometric_bits(fitted: Geometric, points: jax.Array) -> jax.Array:
  size = jnp.abs(points)
  near = fitted.zero + (fitted.one - fitted.zero) * size
  return jnp.where(size < 1, near, fitted.one + (size - 1) * fitted.more)


def _check_radius(radius: int) -> None:
  if radius < 1:
    raise ValueError(f'radius={radius} must be positive')


def _count_logits(
  latents: jax.Array, radius: int, pseudo_count: float
) -> jax.Array:
  size = 2 * radius + 1
  places = jnp.clip(jnp.round(latents), -radius, radius) + radius
  ones = jnp.ones(places.shape, jnp.float32)
  counts = jax.ops.segment_sum(ones, places.astype(jnp.int32), size)
  return jnp.log(counts + pseudo_count)


def _table_bits(logits: jax.Array, points: jax.Array, radius: int) -> jax.Array:
  table = -jax.nn.log_softmax(logits) / _LN2
  # The ends give half of their mass to what lies beyond them.
  table = table.at[0].add(1).at[-1].add(1)
  inside = jnp.clip(points, -radius, radius)
  below = jnp.clip(jnp.floor(inside), -radius, radius - 1)
  index = below.astype(jnp.int32) + radius
  part = inside - below
  within = table[index] * (1 - part) + table[index + 1] * part
  return within + jnp.abs(points - inside)
