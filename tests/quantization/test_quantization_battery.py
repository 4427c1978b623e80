"""What every trainable form of quantization must survive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from traces import Counted

from bandwidth.quantization import (
  Grid,
  Parameterization,
  RateGroup,
  Sharing,
  affine,
  laplace_prior,
  learned_step_params,
  least_squares,
  logistic_prior,
  mixture_prior,
  rate_model,
  share_gradients,
  share_params,
  table_prior,
  ternary_params,
  uniform_params,
)


def rules(value):
  return [('plain', None), ('.*', value)]


def group(**kwargs):
  return rate_model(rules(RateGroup(**kwargs)))


SHARING = [('plain', None), ('.*', Sharing(entries=4))]


def identity():
  """Trained weight sharing has no variables: its work is in the chain."""
  return Parameterization(
    init=lambda params: params,
    decode=lambda variables: variables,
    export=lambda variables: {},
  )


METHODS = {
  'share': (identity(), share_gradients(SHARING)),
  'ternary': (ternary_params(rules(0.05)), optax.identity()),
  'uniform': (uniform_params(rules(4)), optax.identity()),
  'affine': (
    uniform_params(rules(Grid(bits=4, signed=False)), calibrator=affine),
    optax.identity(),
  ),
  'least_squares': (
    uniform_params(rules(2), calibrator=least_squares(candidates=5)),
    optax.identity(),
  ),
  'learned_step': (learned_step_params(rules(3)), optax.identity()),
  'rate_empirical': (group(), optax.identity()),
  'rate_one_group': (group(name='all', prior=table_prior()), optax.identity()),
  'rate_logistic': (group(prior=logistic_prior()), optax.identity()),
  'rate_laplace': (group(prior=laplace_prior()), optax.identity()),
  'rate_mixture': (group(prior=mixture_prior()), optax.identity()),
}


def make_params(dtype):
  rng = np.random.default_rng(0)
  params = {
    'kernel': jnp.asarray(rng.standard_normal((6, 5)), dtype),
    'scalar': jnp.asarray(0.7, dtype),
    'empty': jnp.zeros((0, 3), dtype),
    'plain': jnp.ones(3, dtype),
    'nested': [jnp.asarray(rng.standard_normal((6, 5)), dtype)],
  }
  return share_params(params, SHARING).params


def signature(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# The priors see float32 whatever the parameters are.
HALF = [
  name for name in METHODS if name not in ('rate_laplace', 'rate_mixture')
]
CASES = [(name, jnp.float32) for name in METHODS] + [
  (name, jnp.bfloat16) for name in HALF
]


def make_loss(method):
  bits = getattr(method, 'bits', lambda variables: 0.0)

  def loss(variables):
    decoded = jax.tree.leaves(method.decode(variables))
    power = sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in decoded)
    return power + 1e-3 * bits(variables)

  return loss


@pytest.mark.parametrize(('name', 'dtype'), CASES)
def test_battery(name, dtype):
  method, first = METHODS[name]
  params = make_params(dtype)
  tx = optax.chain(first, optax.adamw(1e-2))
  loss = make_loss(method)

  def start(params):
    variables = method.init(params)
    return variables, tx.init(variables)

  def step(variables, state):
    updates, state = tx.update(jax.grad(loss)(variables), state, variables)
    return optax.apply_updates(variables, updates), state

  shapes = jax.eval_shape(start, params)
  variables, state = jax.jit(start)(params)
  assert signature(shapes) == signature((variables, state))
  decode = jax.jit(method.decode)
  assert signature(decode(variables)) == signature(params)
  np.testing.assert_array_equal(decode(variables)['plain'], params['plain'])

  counted = Counted(step)
  jitted = jax.jit(counted)
  once = jitted(variables, state)
  assert signature(once) == signature((variables, state))
  assert jax.tree.structure(once) == jax.tree.structure((variables, state))
  twice = jitted(*once)
  assert counted.traces == 1
  assert all(np.isfinite(x.astype(float)).all() for x in jax.tree.leaves(twice))
  for leaf, tensor in method.export(variables).items():
    assert leaf != 'plain'
    assert np.isfinite(tensor.decode()).all()


# Each operation compiles alone, so only what is ours; two methods are fast.
@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('share', 'uniform')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in METHODS
  ],
)
def test_jit_equals_no_jit(name):
  method, first = METHODS[name]
  loss, params = make_loss(method), make_params(jnp.float32)
  variables = jax.jit(method.init)(params)
  state = first.init(variables)
  np.testing.assert_allclose(
    loss(variables), jax.jit(loss)(variables), rtol=1e-5
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    first.update(variables, state)[0],
    jax.jit(first.update)(variables, state)[0],
  )
