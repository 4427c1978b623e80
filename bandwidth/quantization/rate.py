"""Rate-aware training: the loss counts the bits of the file.

Oktay, Ballé, Singh, Shrivastava, Scalable Model Compression by Entropy
Penalized Reparameterization, ICLR 2020, arXiv 1906.06624. Weights are decoded
from latents, w = Δ · round(φ), and the loss is

    L = task(decode(φ)) + λ · Σ −log2 p(round(φ)) / parameters

so that training trades accuracy for bits, and most latents become zero.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.quantization.priors import Prior, empirical_prior
from bandwidth.quantization.uniform import UniformLevels, narrow

# One object, so that groups that leave it to the default compare equal.
_EMPIRICAL = empirical_prior()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateGroup:
  """How parameters are rate-coded: those of one name share step and prior.

  Attributes:
    name: name of the group; None: the parameter is a group of its own. At
      extreme rates a step and a table cost as much as a small tensor: put all
      biases into one group.
    step: Δ at the start, relative to the root mean square of the group.
    prior: family of distributions of the group's integers.
  """

  name: str | None = None
  step: float = 0.5
  prior: Prior = _EMPIRICAL

  def __post_init__(self):
    if not (math.isfinite(self.step) and self.step > 0):
      raise ValueError(f'step={self.step} must be finite and positive')


RateRules = Sequence[tuple[str, RateGroup | None]]
"""Pairs (regular expression over names, group). None: stored as it is."""


class RateVariables(NamedTuple):
  """What a rate model trains.

  Attributes:
    latents: φ, in units of the step, in the tree, shapes and dtypes of the
      parameters; parameters that are stored as they are, unchanged.
    log_steps: log Δ, float32 [] for each group.
    priors: the parameters of the prior, for each group.
  """

  latents: Params
  log_steps: dict[str, jax.Array]
  priors: dict[str, Any]


class RateModel(NamedTuple):
  """Pure functions of a rate-aware parameterization.

  Attributes:
    init: `params -> RateVariables`, from pretrained parameters. Traceable.
    decode: `variables -> params`, w = Δ · round(φ), in the parameters' dtypes.
      The gradient passes straight through the rounding.
    bits: `variables -> float32 []`: bits of all integers under their priors,
      those that `export` gives. Add `weight * bits / parameters` to the loss.
    bits_by_name: `variables -> {name: float32 []}`: the same, by parameter.
    side_bits: `variables -> int`: what the file holds besides, at 32 bits a
      step and a prior's parameter, and stored parameters in their dtypes.
      Constant in training.
    export: `variables -> {name: UniformLevels}`, integers and step, on the
      host.
  """

  init: Callable[[Params], RateVariables]
  decode: Callable[[RateVariables], Params]
  bits: Callable[[RateVariables], jax.Array]
  bits_by_name: Callable[[RateVariables], dict[str, jax.Array]]
  side_bits: Callable[[RateVariables], int]
  export: Callable[[RateVariables], dict[str, UniformLevels]]


def rate_model(rules: RateRules) -> RateModel:
  """Returns the rate-aware parameterization of a network.

  The value of `bits` is exact: the code length of the rounded latents. Its
  gradient in φ is b(φ + ½) − b(φ − ½), which is the mean of the paper's noisy
  gradient, b'(φ + u) with u uniform over ±½, without the noise; and it pulls
  latents to zero from within ±½ too. Priors get the gradient of their cross
  entropy with the integers.

  Latents are of order 1, whatever the weights are, so one learning rate fits
  all layers. Train in float32: bfloat16 cannot add a small step to a latent.

  Args:
    rules: the group of each parameter; None stores it as it is. The first match
      wins.

  Returns:
    The functions.

  Raises:
    ValueError: a rule's value is no group; at `init`, rules do not fit the
      parameters, or two groups of one name differ.

  >>> model = rate_model([('.*', RateGroup(step=1.0))])
  >>> variables = model.init({'w': jnp.array([2.0, -2.0, 0.1, 0.0])})
  >>> [f'{w:.3f}' for w in model.decode(variables)['w']]
  ['1.415', '-1.415', '0.000', '0.000']
  """
  for pattern, group in rules:
    if not (group is None or isinstance(group, RateGroup)):
      raise ValueError(f'rules: {pattern!r} has {group!r}, no RateGroup')
  return RateModel(
    init=lambda params: _init(rules, params),
    decode=lambda variables: _decode(rules, variables),
    bits=lambda variables: _total(_bits(rules, variables)),
    bits_by_name=lambda variables: _bits(rules, variables),
    side_bits=lambda variables: _side_bits(rules, variables),
    export=lambda variables: _export(rules, variables),
  )


def round_through(values: jax.Array) -> jax.Array:
  """Rounds; the gradient is that of the identity.

  >>> jax.value_and_grad(round_through)(1.7)[1].item()
  1.0
  """
  through = values - jax.lax.stop_gradient(values)
  return jnp.round(jax.lax.stop_gradient(values)) + through


def rate_bits(prior: Prior, parameters: Any, latents: jax.Array) -> jax.Array:
  """Returns the bits of each rounded latent, with the gradients of training.

  Args:
    prior: the family of distributions of the latents.
    parameters: parameters of the prior, as `prior.init` makes them.
    latents: float array [n] of any float dtype.

  Returns:
    float32 [n]: b(round(φ)). The gradient in φ is b(φ + ½) − b(φ − ½).
  """
  points = latents.astype(jnp.float32)
  fixed = jax.lax.stop_gradient(points)
  fitted = prior.fit(parameters, jnp.round(fixed))
  held = jax.lax.stop_gradient(fitted)
  slope = prior.bits(held, fixed + 0.5) - prior.bits(held, fixed - 0.5)
  slope = jax.lax.stop_gradient(slope)
  return prior.bits(fitted, jnp.round(fixed)) + slope * (points - fixed)


class _Member(NamedTuple):
  """One parameter of a group."""

  name: str
  array: jax.Array


def _gather(
  rules: RateRules, params: Params
) -> dict[str, tuple[RateGroup, list[_Member]]]:
  """Groups by key: the group's name, or that of its one parameter."""
  matched = tree.match_rules(rules, params)
  groups: dict[str, tuple[RateGroup, list[_Member]]] = {}
  for name, leaf in tree.named_leaves(params):
    group = matched[name]
    if group is not None:
      key = name if group.name is None else group.name
      first, members = groups.setdefault(key, (group, []))
      if first != group:
        raise ValueError(f'{name}: group {key!r} is defined in two ways')
      members.append(_Member(name, leaf))
  return groups


def _flat(members: list[_Member]) -> jax.Array:
  return jnp.concatenate(
    [member.array.astype(jnp.float32).ravel() for member in members]
  )


def _keys(rules: RateRules, params: Params) -> dict[str, str]:
  """The key of the group of each rate-coded parameter, by name."""
  return {
    member.name: key
    for key, (_, members) in _gather(rules, params).items()
    for member in members
  }


def _init(rules: RateRules, params: Params) -> RateVariables:
  log_steps, priors = {}, {}
  for key, (group, members) in _gather(rules, params).items():
    weights = _flat(members)
    power = jnp.sum(weights**2) / max(weights.size, 1)
    # A group that is all zero, as new biases are, has no scale of its own.
    spread = jnp.where(power > 0, jnp.sqrt(power), 1.0)
    log_steps[key] = jnp.log(group.step * spread)
    priors[key] = group.prior.init(weights / jnp.exp(log_steps[key]))
  keys = _keys(rules, params)

  def latent(name: str, leaf: jax.Array) -> jax.Array:
    if name not in keys:
      return leaf
    step = jnp.exp(log_steps[keys[name]])
    return (leaf.astype(jnp.float32) / step).astype(leaf.dtype)

  return RateVariables(tree.map_named(latent, params), log_steps, priors)


def _decode(rules: RateRules, variables: RateVariables) -> Params:
  keys = _keys(rules, variables.latents)

  def leaf(name: str, latent: jax.Array) -> jax.Array:
    if name not in keys:
      return latent
    step = jnp.exp(variables.log_steps[keys[name]])
    levels = round_through(latent.astype(jnp.float32))
    return (levels * step).astype(latent.dtype)

  return tree.map_named(leaf, variables.latents)


def _bits(rules: RateRules, variables: RateVariables) -> dict[str, jax.Array]:
  bits = {}
  for key, (group, members) in _gather(rules, variables.latents).items():
    each = rate_bits(group.prior, variables.priors[key], _flat(members))
    start = 0
    for member in members:
      end = start + member.array.size
      bits[member.name] = jnp.sum(each[start:end])
      start = end
  return bits


def _total(bits: dict[str, jax.Array]) -> jax.Array:
  return sum(bits.values(), start=jnp.zeros((), jnp.float32))


def _side_bits(rules: RateRules, variables: RateVariables) -> int:
  keys = _keys(rules, variables.latents)
  stored = [
    leaf
    for name, leaf in tree.named_leaves(variables.latents)
    if name not in keys
  ]
  model = (variables.log_steps, variables.priors)
  return 8 * tree.nbytes(stored) + 32 * tree.size(model)


def _export(
  rules: RateRules, variables: RateVariables
) -> dict[str, UniformLevels]:
  exported = {}
  keys = _keys(rules, variables.latents)
  for name, latent in tree.named_leaves(variables.latents):
    if name in keys:
      step = np.asarray(jnp.exp(variables.log_steps[keys[name]]))
      values = np.asarray(jnp.round(latent.astype(jnp.float32)))
      if not np.isfinite(values).all():
        raise ValueError(f'{name}: latents must be finite')
      exported[name] = UniformLevels(levels=narrow(values), step=step)
  return exported
