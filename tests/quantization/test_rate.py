import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandwidth.quantization import priors
from bandwidth.quantization.rate import RateGroup, rate_bits, rate_model
from bandwidth.quantization.rdoq import static_bits

EXACT = priors.empirical_prior(40, pseudo_count=1e-6)
RULES = [
  ('norm/.*', None),
  ('.*/bias', RateGroup(name='biases', step=0.2, prior=EXACT)),
  ('.*', RateGroup(step=0.3, prior=EXACT)),
]


def make_params(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  arrays = {
    'a': {
      'bias': rng.standard_normal(5),
      'kernel': rng.standard_normal((7, 5)),
    },
    'b': {
      'bias': rng.standard_normal(3),
      'kernel': rng.standard_normal((5, 3)),
    },
    'norm': {'scale': rng.standard_normal(3)},
  }
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays)


def test_decoding_is_rounding_to_the_step():
  params = make_params()
  model = rate_model(RULES)
  variables = jax.jit(model.init)(params)
  assert set(variables.log_steps) == {'biases', 'a/kernel', 'b/kernel'}
  kernel = np.asarray(params['a']['kernel'])
  step = 0.3 * np.sqrt((kernel**2).mean())
  decoded = model.decode(variables)
  np.testing.assert_allclose(
    decoded['a']['kernel'], np.rint(kernel / step) * step, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(
    decoded['norm']['scale'], params['norm']['scale']
  )


def test_bits_are_the_entropy_of_the_export():
  model = rate_model(RULES)
  variables = jax.jit(model.init)(make_params())
  levels = {n: t.levels for n, t in model.export(variables).items()}
  by_name = jax.jit(model.bits_by_name)(variables)
  for name in ('a/kernel', 'b/kernel'):
    wanted = static_bits(levels[name])
    assert float(by_name[name]) == pytest.approx(wanted, rel=1e-4)
  # One group has one table.
  both = np.concatenate([levels['a/bias'], levels['b/bias']])
  assert float(by_name['a/bias'] + by_name['b/bias']) == pytest.approx(
    static_bits(both), rel=1e-4
  )
  total = sum(float(x) for x in by_name.values())
  assert float(jax.jit(model.bits)(variables)) == pytest.approx(total, rel=1e-5)


def test_side_bits():
  model = rate_model([('a/.*', None), ('.*', RateGroup())])
  assert model.side_bits(jax.jit(model.init)(make_params())) == 32 * (40 + 3)
  logistic = RateGroup(name='all', prior=priors.logistic_prior())
  model = rate_model([('.*', logistic)])
  assert model.side_bits(jax.jit(model.init)(make_params())) == 32 * 2


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_export_decodes_to_the_network(dtype):
  model = rate_model(RULES)
  variables = jax.jit(model.init)(make_params(dtype))
  decoded = jax.jit(model.decode)(variables)
  exported = model.export(variables)
  assert set(exported) == {'a/bias', 'a/kernel', 'b/bias', 'b/kernel'}
  for name, tensor in exported.items():
    layer, kind = name.split('/')
    ours = jnp.asarray(tensor.decode()).astype(dtype)
    assert decoded[layer][kind].dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(ours, decoded[layer][kind], rtol=tolerance)


def test_gradient_of_the_decoder_passes_through_the_rounding():
  model = rate_model([('.*', RateGroup(step=0.5))])
  variables = model.init({'w': jnp.array([1.0, -0.2, 0.7])})
  weight = jnp.array([1.0, 2.0, 3.0])
  grads = jax.grad(lambda v: jnp.sum(weight * model.decode(v)['w']))(variables)
  step = jnp.exp(variables.log_steps['w'])
  np.testing.assert_allclose(grads.latents['w'], weight * step, rtol=1e-6)
  # d(Δ q) / d(log Δ) = Δ q
  wanted = jnp.sum(weight * model.decode(variables)['w'])
  np.testing.assert_allclose(grads.log_steps['w'], wanted, rtol=1e-6)


@pytest.mark.parametrize('name', ['logistic', 'laplace'])
def test_rate_gradient_is_the_mean_of_the_noisy_one(name):
  prior = getattr(priors, f'{name}_prior')()
  log_scale = jnp.float32(0.2)
  noise = (jnp.arange(20000) + 0.5) / 20000 - 0.5

  @jax.jit
  def noisy(phi):
    return jax.grad(lambda x: prior.bits(log_scale, x + noise).mean())(phi)

  ours = jax.jit(jax.grad(lambda x: rate_bits(prior, log_scale, x).sum()))
  for phi in (0.0, 0.3, -1.4, 2.5):
    found = ours(jnp.array([phi]))[0]
    np.testing.assert_allclose(found, noisy(jnp.float32(phi)), atol=2e-3)


def test_prior_gets_the_gradient_of_the_code_length():
  prior = priors.logistic_prior()
  latents = jnp.array([0.4, -1.2, 3.3])
  ours = jax.grad(lambda p: rate_bits(prior, p, latents).sum())(
    jnp.float32(0.1)
  )
  wanted = jax.grad(lambda p: prior.bits(p, jnp.round(latents)).sum())(
    jnp.float32(0.1)
  )
  np.testing.assert_allclose(ours, wanted, rtol=1e-6)


@pytest.mark.slow
def test_training_trades_error_for_bits():
  target = make_params()
  model = rate_model(RULES)
  ends = []
  for lagrangian in (0.001, 0.3):
    variables = jax.jit(model.init)(target)
    tx = optax.adam(0.03)

    def loss(v, lagrangian=lagrangian):
      errors = jax.tree.map(
        lambda x, y: jnp.sum((x - y) ** 2), model.decode(v), target
      )
      return sum(jax.tree.leaves(errors)) + lagrangian * model.bits(v)

    @jax.jit
    def step(variables, state, tx=tx, loss=loss):
      updates, state = tx.update(jax.grad(loss)(variables), state)
      return optax.apply_updates(variables, updates), state

    state = tx.init(variables)
    for _ in range(60):
      variables, state = step(variables, state)
    ends.append(
      (
        float(jax.jit(loss)(variables, 0.0)),
        float(jax.jit(model.bits)(variables)),
      )
    )
  assert ends[1][1] < 0.8 * ends[0][1]
  assert ends[1][0] > ends[0][0]


@pytest.mark.parametrize('shape', [(), (0,), (2, 0)])
def test_odd_shapes(shape):
  model = rate_model([('.*', RateGroup())])
  variables = model.init({'w': jnp.zeros(shape)})
  assert model.decode(variables)['w'].shape == shape
  assert np.isfinite(model.bits(variables))
  assert model.export(variables)['w'].decode().shape == shape


def test_bad_arguments():
  with pytest.raises(ValueError, match=r'step=0\.0'):
    RateGroup(step=0.0)
  with pytest.raises(ValueError, match="'w' has 4"):
    rate_model([('w', 4)])
  twice = [
    ('a/.*', RateGroup(name='x', step=1.0)),
    ('.*', RateGroup(name='x', step=2.0)),
  ]
  with pytest.raises(ValueError, match="group 'x' is defined in two ways"):
    rate_model(twice).init(make_params())
  model = rate_model([('w', RateGroup())])
  variables = model.init({'w': jnp.ones(2)})
  broken = variables._replace(latents={'w': jnp.array([jnp.nan, 1])})
  with pytest.raises(ValueError, match='w: latents must be finite'):
    model.export(broken)
