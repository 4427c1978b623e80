"""The search of AMC: what is stored, when it learns, one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_amc import layer_macs, play, toy_problem

from bandwidth.search.agents.ddpg import AgentOptions
from bandwidth.search.agents.environment import make_environment
from bandwidth.search.amc import AMCOptions, make_amc, make_amc_run
from bandwidth.search.problem.cost import cost_of, exact_cost, macs

FULL = sum(layer_macs(16, 24, 32))
AMOUNT = 0.4 * FULL
EPISODES, LAYERS = 6, 5
SMALL = {'hidden': 8, 'actor_rate': 0.01, 'critic_rate': 0.01, 'batch': 4}


@functools.cache
def compiled():
  """A search of six episodes, three of them with learning."""
  problem, data = toy_problem()
  run = make_amc_run(problem, evaluations=EPISODES, warmup=2, **SMALL)
  return problem, data, jax.jit(run)


@functools.cache
def searched():
  problem, data, run = compiled()
  budget = jnp.int32(data.costs.budget(AMOUNT))
  return problem, data, budget, run(jax.random.key(0), data, budget)


def played(problem, data, budget, run):
  """Stored actions [E, T], and all states that they lead to."""
  count = EPISODES * LAYERS
  actions = run.replay.transitions.action[:count].reshape(EPISODES, LAYERS)
  environment = make_environment(problem.space)
  through = functools.partial(play, environment, data, budget)
  return actions, jax.jit(jax.vmap(through))(actions)[0]


def test_history():
  problem, data, budget, run = searched()
  candidates, scores, costs = run.history
  assert candidates.shape == (EPISODES, 3)
  for candidate, score, cost in zip(candidates, scores, costs, strict=True):
    middle = np.array([2, 2, 3])
    expected = -np.mean((np.array(candidate) - middle) ** 2)
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    assert cost == cost_of(data.costs, candidate) <= budget
    assert exact_cost(problem.space, macs, candidate) <= AMOUNT


def test_every_transition_carries_the_final_reward():
  _, _, _, run = searched()
  count = EPISODES * LAYERS
  assert int(run.replay.added) == count
  stored = jax.tree.map(lambda x: np.array(x[:count]), run.replay.transitions)
  rewards = stored.reward.reshape(EPISODES, LAYERS)
  expected = np.broadcast_to(run.history.scores[:, None], rewards.shape)
  np.testing.assert_array_equal(rewards, expected)
  assert len(np.unique(rewards[:, 0])) > 1
  done = stored.done.reshape(EPISODES, LAYERS)
  np.testing.assert_array_equal(done, [[False] * 4 + [True]] * EPISODES)
  # What follows is the next observation, and at the end the last again.
  seen = stored.observation.reshape(EPISODES, LAYERS, -1)
  then = stored.next_observation.reshape(EPISODES, LAYERS, -1)
  np.testing.assert_array_equal(then[:, :-1], seen[:, 1:])
  np.testing.assert_array_equal(then[:, -1], seen[:, -1])


def test_stored_actions_are_those_of_the_agent():
  problem, data, budget, run = searched()
  actions, states = played(problem, data, budget, run)
  np.testing.assert_array_equal(states.candidate[:, -1], run.history.candidates)
  # They are what the agent wanted, not what the budget left of it.
  assert not np.allclose(states.ratio, actions, atol=0.1)


def test_learning_starts_after_the_warm_up():
  _, _, _, run = searched()
  assert int(run.agent.updates) == 3 * LAYERS
  np.testing.assert_array_equal(run.baselines[:3], np.zeros(3, 'f4'))
  assert np.all(run.baselines[3:] != 0)


def test_the_defaults_are_those_of_the_reference():
  options, agent = AMCOptions(), AgentOptions()
  episodes = np.arange(800)
  assert np.sum(episodes <= options.warmup) == 101
  assert (options.sigma, options.decay, options.floor) == (0.5, 0.95, 1e-3)
  assert (options.batch, options.num_envs, options.store) == (64, 1, 'raw')
  assert (agent.hidden, agent.actor_rate, agent.critic_rate) == (
    300,
    1e-4,
    1e-3,
  )
  assert (agent.discount, agent.tau, agent.baseline_rate) == (1.0, 0.01, 0.5)
  problem, data = toy_problem()
  run = jax.eval_shape(
    make_amc_run(problem), jax.random.key(0), data, jnp.int32(0)
  )
  assert run.history.scores.shape == (800,)
  assert run.replay.transitions.observation.shape == (100 * LAYERS, 10)
  assert run.agent.actor['second']['kernel'].shape == (300, 300)


@pytest.mark.slow
def test_one_program_for_all_keys_and_budgets():
  problem, data, run = compiled()
  searched()
  keys = jax.random.split(jax.random.key(0), 3)
  amounts = [AMOUNT, 0.3 * FULL, 0.8 * FULL]
  budgets = jnp.array([data.costs.budget(x) for x in amounts])
  apart = [run(k, data, b).history for k, b in zip(keys, budgets, strict=True)]
  again = run(keys[0], data, budgets[0]).history
  jax.tree.map(np.testing.assert_array_equal, again, apart[0])
  assert not np.array_equal(apart[0].candidates, apart[1].candidates)
  assert problem.objective.traces == 1

  search = make_amc(problem, evaluations=EPISODES, warmup=2, **SMALL)
  together = jax.vmap(search, (0, None, 0))(keys, data, budgets)
  assert problem.objective.traces == 2
  for i, history in enumerate(apart):
    np.testing.assert_array_equal(together.candidates[i], history.candidates)
    np.testing.assert_allclose(together.scores[i], history.scores, rtol=1e-6)
    np.testing.assert_array_equal(together.costs[i], history.costs)
    assert np.all(history.costs <= budgets[i])


@pytest.mark.slow
def test_td3_with_several_episodes_at_once():
  problem, data = toy_problem()
  run = make_amc_run(
    problem,
    evaluations=EPISODES,
    agent='td3',
    warmup=1,
    num_envs=2,
    updates_per_step=2,
    sampling='independent',
    store='walled',
    **SMALL,
  )
  budget = jnp.int32(data.costs.budget(AMOUNT))
  result = jax.jit(run)(jax.random.key(0), data, budget)
  assert result.history.candidates.shape == (EPISODES, 3)
  assert np.all(result.history.costs <= budget)
  assert result.baselines.shape == (3,)
  # Rounds 0, 1, 2 begin with episodes 0, 2, 4; two of them learn.
  assert int(result.agent.updates) == 2 * 2 * 2 * LAYERS
  count = EPISODES * LAYERS
  rewards = result.replay.transitions.reward[:count].reshape(EPISODES, LAYERS)
  expected = np.broadcast_to(result.history.scores[:, None], rewards.shape)
  np.testing.assert_array_equal(rewards, expected)
  # A fraction within the budget, stored, leads to the same candidate.
  actions, states = played(problem, data, budget, result)
  np.testing.assert_array_equal(
    states.candidate[:, -1], result.history.candidates
  )
  np.testing.assert_allclose(states.ratio, actions, rtol=1e-6)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'warmup': -1}, 'warmup=-1 is negative'),
    ({'sigma': 0.0}, 'sigma=0.0 is not positive'),
    ({'decay': 1.5}, r'decay=1.5 is not in \(0, 1\]'),
    ({'floor': 1e-9}, 'floor=1e-09 is below 0.001'),
    ({'batch': 0}, 'batch=0 is not positive'),
    ({'sampling': 'distinkt'}, "Did you mean 'distinct'"),
    ({'store': 'wall'}, "store='wall' is unknown"),
  ],
)
def test_options_are_checked(arguments, message):
  with pytest.raises(ValueError, match=message):
    AMCOptions(**arguments)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'agent': 'ddgp'}, "Did you mean 'ddpg'"),
    ({'evaluations': 0}, 'evaluations=0 are not rounds'),
    ({'num_envs': 3}, 'evaluations=800 are not rounds'),
    ({'replay': 63}, 'replay=63 is less'),
    ({'state': 'cod'}, "state='cod' is unknown"),
    ({'warmups': 3}, "option='warmups' is unknown.*'warmup'"),
    ({'hidden': 0}, 'hidden=0 is not positive'),
    ({'rounding': 'u'}, "rounding='u' is unknown"),
  ],
)
def test_searches_are_checked(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_amc(toy_problem()[0], **arguments)
