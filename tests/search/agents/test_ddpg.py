"""DDPG and TD3 against NumPy transcriptions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.search.agents import ddpg, td3
from bandwidth.search.agents.ddpg import AgentOptions, make_ddpg
from bandwidth.search.agents.replay import Transition
from bandwidth.search.agents.td3 import make_td3

FEATURES, HIDDEN, BATCH = 3, 4, 6
OPTIONS = AgentOptions(
  hidden=HIDDEN, actor_rate=0.01, critic_rate=0.02, tau=0.1
)


def batches(count):
  rng = np.random.default_rng(0)
  return [
    Transition(
      observation=rng.uniform(size=(BATCH, FEATURES)).astype('f4'),
      action=rng.uniform(size=BATCH).astype('f4'),
      reward=rng.normal(size=BATCH).astype('f4'),
      next_observation=rng.uniform(size=(BATCH, FEATURES)).astype('f4'),
      done=np.arange(BATCH) % 3 == i % 3,
    )
    for i in range(count)
  ]


def doubles(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def affine(layer, x):
  return x @ layer['kernel'] + layer['bias']


def affine_grads(x, dy):
  return {'kernel': x.T @ dy, 'bias': dy.sum(0)}


def actor_forward(p, s):
  h1 = np.maximum(affine(p['first'], s), 0)
  h2 = np.maximum(affine(p['second'], h1), 0)
  return 1 / (1 + np.exp(-affine(p['last'], h2))), (s, h1, h2)


def critic_forward(p, s, a):
  h1 = np.maximum(affine(p['observation'], s) + affine(p['action'], a), 0)
  h2 = np.maximum(affine(p['second'], h1), 0)
  return affine(p['last'], h2), (s, a, h1, h2)


def critic_backward(p, saved, dq):
  s, a, h1, h2 = saved
  d2 = (dq @ p['last']['kernel'].T) * (h2 > 0)
  d1 = (d2 @ p['second']['kernel'].T) * (h1 > 0)
  grads = {
    'last': affine_grads(h2, dq),
    'second': affine_grads(h1, d2),
    'observation': affine_grads(s, d1),
    'action': affine_grads(a, d1),
  }
  return grads, d1 @ p['action']['kernel'].T


def actor_backward(p, a, saved, da):
  s, h1, h2 = saved
  d3 = da * a * (1 - a)
  d2 = (d3 @ p['last']['kernel'].T) * (h2 > 0)
  d1 = (d2 @ p['second']['kernel'].T) * (h1 > 0)
  return {
    'last': affine_grads(h2, d3),
    'second': affine_grads(h1, d2),
    'first': affine_grads(s, d1),
  }


class Adam:
  def __init__(self, rate):
    self.rate, self.count, self.m, self.v = rate, 0, None, None

  def step(self, params, grads):
    if self.m is None:
      self.m = jax.tree.map(np.zeros_like, grads)
      self.v = jax.tree.map(np.zeros_like, grads)
    self.count += 1
    self.m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.m, grads)
    self.v = jax.tree.map(lambda v, g: 0.999 * v + 1e-3 * g**2, self.v, grads)
    bias = 1 - 0.9**self.count, 1 - 0.999**self.count

    def moved(p, m, v):
      return p - self.rate * m / bias[0] / (np.sqrt(v / bias[1]) + 1e-8)

    return jax.tree.map(moved, params, self.m, self.v)


def mixed(target, params):
  return jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, target, params)


def critic_step(q, adam, s, a, y):
  values, saved = critic_forward(q, s, a)
  grads, _ = critic_backward(q, saved, 2 * (values - y) / BATCH)
  return adam.step(q, grads)


def actor_step(mu, q, adam, s):
  a, saved = actor_forward(mu, s)
  _, critic_saved = critic_forward(q, s, a)
  _, da = critic_backward(q, critic_saved, np.full((BATCH, 1), -1 / BATCH))
  return adam.step(mu, actor_backward(mu, a, saved, da))


def ddpg_in_numpy(mu, q, steps):
  mu_target, q_target, b = mu, q, None
  mu_adam, q_adam = Adam(0.01), Adam(0.02)
  for step in doubles(steps):
    s, a, r, s2, done = step
    a, r, done = a[:, None], r[:, None], done[:, None]
    b = r.mean() if b is None else b + 0.5 * (r.mean() - b)
    a2, _ = actor_forward(mu_target, s2)
    y = r - b + (1 - done) * critic_forward(q_target, s2, a2)[0]
    q = critic_step(q, q_adam, s, a, y)
    mu = actor_step(mu, q, mu_adam, s)
    mu_target, q_target = mixed(mu_target, mu), mixed(q_target, q)
  return {
    'actor': mu,
    'critic': q,
    'target_actor': mu_target,
    'target_critic': q_target,
    'baseline': b,
  }


def test_updates_are_those_of_numpy():
  agent = make_ddpg(FEATURES, OPTIONS)
  state = agent.init(jax.random.key(0))
  steps = batches(4)
  expected = ddpg_in_numpy(doubles(state.actor), doubles(state.critic), steps)
  update = jax.jit(agent.update)
  for step in steps:
    state = update(state, step, jax.random.key(0))
  assert int(state.updates) == 4
  for name, tree in expected.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
      doubles(getattr(state, name)),
      tree,
    )


def test_the_policy_is_the_actor():
  agent = make_ddpg(FEATURES, OPTIONS)
  state = agent.init(jax.random.key(1))
  seen = batches(1)[0].observation
  expected, _ = actor_forward(doubles(state.actor), doubles(seen))
  actions = jax.vmap(agent.act, (None, 0))(state, seen)
  np.testing.assert_allclose(actions, expected[:, 0], rtol=1e-5)


def test_layers_start_as_those_of_pytorch():
  layer = ddpg.init_dense(jax.random.key(0), 100, 300)
  for x in jax.tree.leaves(layer):
    assert np.abs(x).max() <= 0.1
    # A uniform distribution on [-0.1, 0.1].
    np.testing.assert_allclose(np.std(x), 0.1 / np.sqrt(3), rtol=0.1)
  # The action has a fan-in of one.
  action = ddpg.init_critic(jax.random.key(0), 10, 300)['action']
  np.testing.assert_allclose(np.abs(action['kernel']).max(), 1, rtol=0.05)


def test_the_baseline_of_the_reference():
  rewards = [np.array([1.0, 3.0]), np.array([5.0, 7.0]), np.array([0.0, 0.0])]
  b, seen = jnp.float32(0), []
  for n, r in enumerate(rewards):
    b = ddpg.moved_baseline(b, jnp.int32(n), jnp.float32(r), 0.5)
    seen.append(float(b))
  assert seen == [2.0, 4.0, 2.0]


def test_noise_decays_to_its_floor():
  episodes = np.array([0, 100, 101, 102, 200, 221, 222, 500, 799])
  sigma = ddpg.sigma_at(jnp.array(episodes), warmup=100)
  expected = np.maximum(0.5 * 0.95 ** np.maximum(episodes - 100.0, 0), 1e-3)
  np.testing.assert_allclose(sigma, expected, rtol=1e-5)
  np.testing.assert_allclose(sigma[2], 0.475, rtol=1e-6)
  assert sigma[5] > 1e-3
  np.testing.assert_array_equal(sigma[6:], np.float32(1e-3))


@pytest.mark.parametrize('sigma', [1e-3, 0.1, 0.5])
@pytest.mark.parametrize('mean', [0.0, 0.3, 1.0])
def test_noise_is_truncated_normal(mean, sigma):
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.vmap(ddpg.explore, (0, None, None))(
    keys, jnp.float32(mean), jnp.float32(sigma)
  )
  assert np.all((drawn >= 0) & (drawn <= 1))
  # Against draws from the normal distribution that are rejected outside.
  normal = np.random.default_rng(0).normal(mean, sigma, 40000)
  kept = normal[(normal >= 0) & (normal <= 1)]
  assert abs(np.mean(drawn) - kept.mean()) < 5 * kept.std() / np.sqrt(4000)
  np.testing.assert_allclose(np.std(drawn), kept.std(), rtol=0.1)


def td3_in_numpy(mu, pair, steps):
  """Without smoothing, and with an actor's update in every second."""
  target_mu, target_pair, b = mu, pair, None
  mu_adam, adams = Adam(0.01), [Adam(0.02), Adam(0.02)]
  for n, (s, a, r, s2, done) in enumerate(doubles(steps), 1):
    a, r, done = a[:, None], r[:, None], done[:, None]
    b = r.mean() if b is None else b + 0.5 * (r.mean() - b)
    a2, _ = actor_forward(target_mu, s2)
    later = [critic_forward(q, s2, a2)[0] for q in target_pair]
    y = r - b + (1 - done) * np.minimum(*later)
    pair = [
      critic_step(q, adam, s, a, y) for q, adam in zip(pair, adams, strict=True)
    ]
    if n % 2 == 0:
      mu = actor_step(mu, pair[0], mu_adam, s)
      target_mu = mixed(target_mu, mu)
      target_pair = [
        mixed(t, q) for t, q in zip(target_pair, pair, strict=True)
      ]
  stack = jax.tree.map(lambda *x: np.stack(x), *pair)
  return {
    'actor': mu,
    'critic': stack,
    'target_actor': target_mu,
    'target_critic': jax.tree.map(lambda *x: np.stack(x), *target_pair),
    'baseline': b,
  }


def test_td3_updates_are_those_of_numpy():
  options = AgentOptions(
    hidden=HIDDEN, actor_rate=0.01, critic_rate=0.02, tau=0.1, smoothing=0.0
  )
  agent = make_td3(FEATURES, options)
  state = start = agent.init(jax.random.key(0))
  halves = [jax.tree.map(lambda x, i=i: x[i], state.critic) for i in (0, 1)]
  assert not np.array_equal(*[x['last']['kernel'] for x in halves])
  steps = batches(5)
  expected = td3_in_numpy(
    doubles(state.actor), [doubles(x) for x in halves], steps
  )
  update = jax.jit(agent.update)
  for n, step in enumerate(steps):
    state = update(state, step, jax.random.key(0))
    if n == 0:
      same = jax.tree.map(np.array_equal, state, start)
      # Only the critics learn in the first update.
      for name in ('actor', 'target_actor', 'target_critic'):
        assert all(jax.tree.leaves(getattr(same, name)))
      assert not all(jax.tree.leaves(same.critic))
  for name, tree in expected.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
      doubles(getattr(state, name)),
      tree,
    )


def test_smoothing_is_clipped():
  actions = jnp.linspace(0.0, 1.0, 1000)
  noisy = td3.smoothed(jax.random.key(0), actions, sigma=0.2, clip=0.1)
  assert np.all((noisy >= 0) & (noisy <= 1))
  moved = np.abs(noisy - actions)
  np.testing.assert_allclose(moved.max(), 0.1, rtol=1e-4)
  # Two of three standard normal numbers are beyond half of one, 0.617.
  inside = moved[200:800]
  assert 0.55 < np.mean(inside > 0.0999) < 0.68


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'hidden': 0}, 'hidden=0 is not positive'),
    ({'delay': 0}, 'delay=0 is not positive'),
    ({'actor_rate': 0.0}, 'actor_rate=0.0 is not positive'),
    ({'critic_rate': float('nan')}, 'critic_rate=nan is not positive'),
    ({'smoothing': -1.0}, 'smoothing=-1.0 is negative'),
    ({'tau': 1.5}, r'tau=1.5 is not in \[0, 1\]'),
  ],
)
def test_options_are_checked(arguments, message):
  with pytest.raises(ValueError, match=message):
    AgentOptions(**arguments)
