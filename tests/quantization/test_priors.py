import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bandwidth.quantization import priors

PRIORS = {
  'logistic': priors.logistic_prior(),
  'laplace': priors.laplace_prior(),
  'mixture': priors.mixture_prior(3),
  'table': priors.table_prior(4),
  'empirical': priors.empirical_prior(4),
}


def fitted(prior, latents):
  latents = jnp.asarray(latents, jnp.float32)
  return prior.fit(prior.init(latents), jnp.round(latents))


@pytest.mark.parametrize('name', PRIORS)
@pytest.mark.parametrize('spread', [0.01, 1.0, 20.0])
def test_probabilities_add_to_one(name, spread):
  latents = spread * np.random.default_rng(0).standard_normal(500)
  prior = PRIORS[name]
  points = jnp.arange(-4000.0, 4001.0)
  bits = prior.bits(fitted(prior, latents), points)
  assert np.isfinite(bits).all()
  assert (np.asarray(bits) >= -1e-6).all()
  total = np.sum(2.0 ** -np.asarray(bits, np.float64))
  assert total == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize('scale', [0.05, 0.7, 30.0])
def test_families_equal_scipy(scale):
  points = np.arange(-6, 7) + 0.25
  log_scale = jnp.log(jnp.float32(scale))
  for prior, oracle in [
    (PRIORS['logistic'], scipy.stats.logistic(scale=scale)),
    (PRIORS['laplace'], scipy.stats.laplace(scale=scale)),
  ]:
    # The tail on the left of zero is where distribution functions are exact.
    far = -np.abs(points)
    mass = oracle.cdf(far + 0.5) - oracle.cdf(far - 0.5)
    ours = prior.bits(log_scale, jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(ours, -np.log2(mass), rtol=2e-3, atol=1e-5)


def test_mixture_is_the_weighted_sum():
  mixture = priors.Mixture(jnp.log(jnp.array([0.7, 0.3])), jnp.array([-1.0, 1]))
  points = jnp.arange(-3.0, 4.0)
  parts = [
    2 ** -PRIORS['logistic'].bits(mixture.log_scales[i], points)
    for i in range(2)
  ]
  ours = 2 ** -priors.mixture_prior(2).bits(mixture, points)
  np.testing.assert_allclose(ours, 0.7 * parts[0] + 0.3 * parts[1], rtol=1e-5)


def test_empirical_bits_are_the_entropy():
  levels = np.random.default_rng(1).integers(-2, 3, 1000)
  prior = priors.empirical_prior(8, pseudo_count=1e-6)
  each = prior.bits(fitted(prior, levels), jnp.asarray(levels, jnp.float32))
  entropy = scipy.stats.entropy(np.bincount(levels + 2), base=2)
  assert float(each.sum()) == pytest.approx(1000 * entropy, rel=1e-4)


def test_table_between_integers():
  prior = priors.table_prior(1)
  logits = jnp.log(jnp.array([0.25, 0.5, 0.25]))
  bits = prior.bits(logits, jnp.array([-1.0, -0.5, 0.0, 0.25, 1.5]))
  np.testing.assert_allclose(bits, [3, 2, 1, 1.5, 3.5], rtol=1e-6)


@pytest.mark.parametrize('name', PRIORS)
def test_gradients_are_finite(name):
  prior = PRIORS[name]
  latents = jnp.array([0.0, 0.5, -0.5, 3.0, -1000.0, 1e-9])
  parameters = fitted(prior, latents)

  def total(parameters, points):
    return prior.bits(parameters, points).sum()

  grads = jax.grad(total, (0, 1))(parameters, latents)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.slow
def test_learned_priors_reach_the_entropy():
  rng = np.random.default_rng(2)
  levels = jnp.asarray(np.rint(rng.laplace(0, 1.2, 2000)), jnp.float32)
  _, counts = np.unique(levels, return_counts=True)
  entropy = scipy.stats.entropy(counts, base=2)
  for name in ('logistic', 'laplace', 'mixture', 'table'):
    prior = PRIORS[name]

    def loss(p, prior=prior):
      return prior.bits(p, levels).mean()

    gradient = jax.jit(jax.grad(loss))
    parameters = prior.init(levels / 3)
    for _ in range(150):
      parameters = jax.tree.map(
        lambda p, g: p - 0.3 * g, parameters, gradient(parameters)
      )
    assert entropy - 1e-3 < float(loss(parameters)) < entropy + 0.06


@pytest.mark.parametrize(
  ('factory', 'match'),
  [
    (lambda: priors.table_prior(0), 'radius=0'),
    (lambda: priors.mixture_prior(0), 'components=0'),
    (lambda: priors.empirical_prior(pseudo_count=0.0), 'pseudo_count=0.0'),
  ],
)
def test_bad_arguments(factory, match):
  with pytest.raises(ValueError, match=match):
    factory()
