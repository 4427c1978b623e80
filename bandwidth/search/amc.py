"""AMC: an agent prunes a network layer by layer, and learns from the result.

A whole search (environment, evaluation and learning) is one program. Each
episode evaluates one candidate.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.base import unknown_name
from bandwidth.search.agents.ddpg import (
  Agent,
  AgentOptions,
  explore,
  make_ddpg,
  sigma_at,
)
from bandwidth.search.agents.environment import (
  Environment,
  EnvironmentState,
  make_environment,
)
from bandwidth.search.agents.replay import (
  SAMPLERS,
  Replay,
  Transition,
  add,
  init_replay,
)
from bandwidth.search.agents.td3 import make_td3
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  evaluate,
  join,
)

AGENTS: Mapping[str, Callable[[int, AgentOptions | None], Agent]] = {
  'ddpg': make_ddpg,
  'td3': make_td3,
}
"""Makers of agents, by name."""

STORES = ('raw', 'walled')

_LEAST_SIGMA = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class AMCOptions:
  """Hyperparameters of exploration and of the replay memory.

  Attributes:
    warmup: last episode, counted from 0, whose actions are uniform on [0, 1];
      learning starts after the next one.
    sigma: standard deviation of the exploration noise in that episode.
    decay: factor of `sigma` from one episode to the next, in (0, 1]. The paper
      keeps it for 100 episodes and lets it decay in 300.
    floor: smallest standard deviation, at least 1e-3.
    batch: transitions in a minibatch.
    replay: capacity of the replay memory, in transitions. None: 100 for each
      layer of an episode, as in the authors' code; the paper: 2,000.
    sampling: how minibatches are drawn: 'distinct', without replacement, or
      'independent'.
    store: the action that a transition holds: 'raw', the agent's, as in the
      authors' code, or 'walled', the fraction kept within the budget.
    state: 'code' or 'paper'; see `environment.layer_features`.
    rounding: 'up' or 'down'; see `environment.make_environment`.
    num_envs: P, episodes played, and then learned from, in one round. AMC: 1.
    updates_per_step: updates for each transition stored. AMC: 1.
  """

  warmup: int = 100
  sigma: float = 0.5
  decay: float = 0.95
  floor: float = _LEAST_SIGMA
  batch: int = 64
  replay: int | None = None
  sampling: str = 'distinct'
  store: str = 'raw'
  state: str = 'code'
  rounding: str = 'up'
  num_envs: int = 1
  updates_per_step: int = 1

  def __post_init__(self) -> None:
    for name in ('batch', 'num_envs', 'updates_per_step'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)!r} is not positive')
    if self.warmup < 0:
      raise ValueError(f'warmup={self.warmup!r} is negative')
    if not self.sigma > 0:
      raise ValueError(f'sigma={self.sigma!r} is not positive')
    if not 0 < self.decay <= 1:
      raise ValueError(f'decay={self.decay!r} is not in (0, 1]')
    if not self.floor >= _LEAST_SIGMA:
      raise ValueError(f'floor={self.floor!r} is below {_LEAST_SIGMA}')
    if self.sampling not in SAMPLERS:
      raise ValueError(unknown_name('sampling', self.sampling, SAMPLERS))
    if self.store not in STORES:
      raise ValueError(unknown_name('store', self.store, STORES))


class AMCRun(NamedTuple):
  """The result of a search, and the agent that it has trained.

  Attributes:
    history: the N candidates evaluated.
    baselines: b after each round of P episodes, float32 [N / P].
    agent: final state of the agent, an `AgentState`.
    replay: final contents of the replay memory.
  """

  history: History
  baselines: jax.Array
  agent: Any
  replay: Replay


def make_amc(
  problem: Problem,
  *,
  evaluations: int = 800,
  agent: str = 'ddpg',
  **options: Any,
) -> Searcher:
  """Makes a searcher that plays episodes of `environment` and learns.

  All T transitions of an episode are stored, each with the score of its
  candidate as reward; from episode `warmup` + 1 on, T updates follow.

  This follows the authors' code, https://github.com/mit-han-lab/amc, except for
  what `environment` lists and that:

  * All transitions of an episode are stored before its first update, not one
    before each.
  * The first transition of an episode is drawn like any other. Their memory
    rebuilds transitions from a sequence, and almost never draws it.
  * The standard deviation of the noise has a floor.

  Args:
    problem: space and objective; the objective is the reward, of order 1: the
      paper's is accuracy as a fraction.
    evaluations: number of episodes, a multiple of `num_envs`.
    agent: 'ddpg', the paper's, or 'td3'.
    **options: attributes of `AMCOptions` and of `AgentOptions`.

  Returns:
    A compiled function, see `problem.Searcher`.

  Raises:
    ValueError: a name is unknown, or an option out of range; `evaluations` is
      no multiple of `num_envs`; the replay memory is too small.

  References:
    He et al., AMC: AutoML for Model Compression and Acceleration on Mobile
    Devices, 2018, https://arxiv.org/abs/1802.03494
  """
  run = make_amc_run(problem, evaluations=evaluations, agent=agent, **options)
  return jax.jit(lambda key, data, budget: run(key, data, budget).history)


def make_amc_run(
  problem: Problem,
  *,
  evaluations: int = 800,
  agent: str = 'ddpg',
  **options: Any,
) -> Callable[[jax.Array, Data, jax.Array], AMCRun]:
  """Makes a search that also returns what it learned; it is not compiled yet.

  Args:
    problem: space to search and objective, the reward; see `make_amc`.
    evaluations: number of episodes, a multiple of `num_envs`.
    agent: 'ddpg', the paper's, or 'td3'.
    **options: attributes of `AMCOptions` and of `AgentOptions`.

  Raises:
    ValueError: see `make_amc`.
  """
  if agent not in AGENTS:
    raise ValueError(unknown_name('agent', agent, AGENTS))
  search_options, agent_options = split_options(options)
  environment = make_environment(
    problem.space, state=search_options.state, rounding=search_options.rounding
  )
  learner = AGENTS[agent](environment.features, agent_options)
  return make_learning_run(
    problem, environment, learner, search_options, evaluations=evaluations
  )


def make_learning_run(
  problem: Problem,
  environment: Environment,
  agent: Agent,
  options: AMCOptions,
  *,
  evaluations: int,
) -> Callable[[jax.Array, Data, jax.Array], AMCRun]:
  """Makes a search in any environment, with any agent.

  Args:
    problem: space and objective; the objective is the reward.
    environment: the environment whose episodes are played.
    agent: the agent that acts and learns.
    options: exploration and replay; `state` and `rounding` are not used, as the
      environment is given.
    evaluations: number of episodes, a multiple of `options.num_envs`.

  Raises:
    ValueError: `evaluations` is no multiple of `num_envs`; the replay memory is
      too small.
  """
  capacity = _capacity(options, environment.layers)
  firsts = _first_episodes(evaluations, options.num_envs)
  play_round = _make_round(problem, environment, agent, options)

  def run(key: jax.Array, data: Data, budget: jax.Array) -> AMCRun:
    init_key, key = jax.random.split(key)
    replay = init_replay(capacity, environment.features)
    (state, replay), (parts, baselines) = jax.lax.scan(
      functools.partial(play_round, data, budget),
      (agent.init(init_key), replay),
      (jnp.asarray(firsts), jax.random.split(key, len(firsts))),
    )
    return AMCRun(join(parts), baselines, state, replay)

  return run


def split_options(
  options: Mapping[str, Any],
) -> tuple[AMCOptions, AgentOptions]:
  """Splits options into those of the search and those of the agent.

  Raises:
    ValueError: an option is unknown or out of range.
  """
  mine, its = (
    {field.name for field in dataclasses.fields(kind)}
    for kind in (AMCOptions, AgentOptions)
  )
  for name in options:
    if name not in mine | its:
      raise ValueError(unknown_name('option', name, mine | its))
  return (
    AMCOptions(**{k: v for k, v in options.items() if k in mine}),
    AgentOptions(**{k: v for k, v in options.items() if k in its}),
  )


def _capacity(options: AMCOptions, layers: int) -> int:
  capacity = 100 * layers if options.replay is None else options.replay
  least = max(options.num_envs * layers, options.batch)
  if capacity < least:
    raise ValueError(
      f'replay={capacity} is less than a minibatch, or the transitions of '
      f'{options.num_envs} episodes: {least}'
    )
  return capacity


def _first_episodes(evaluations: int, num_envs: int) -> range:
  if evaluations < 1 or evaluations % num_envs:
    raise ValueError(
      f'evaluations={evaluations!r} are not rounds of num_envs={num_envs}'
    )
  return range(0, evaluations, num_envs)


def _make_round(
  problem: Problem,
  environment: Environment,
  agent: Agent,
  options: AMCOptions,
) -> Callable[..., tuple]:
  """Plays P episodes, scores their candidates, stores them and learns."""
  play = _make_episode(environment, agent, options)
  learn = _make_learn(environment, agent, options)

  def play_round(
    data: Data, budget: jax.Array, carry: tuple[Any, Replay], inputs: tuple
  ) -> tuple:
    state, replay = carry
    first, key = inputs
    keys = jax.random.split(key, options.num_envs + 1)
    episodes = first + jnp.arange(options.num_envs)
    candidates, steps = jax.vmap(play, (0, 0, None, None, None))(
      keys[1:], episodes, state, data, budget
    )
    evaluated = evaluate(problem, data, candidates)
    rewards = jnp.broadcast_to(evaluated.scores[:, None], steps.reward.shape)
    steps = steps._replace(reward=rewards)
    replay = add(
      replay, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
    )
    state = jax.lax.cond(
      first > options.warmup,
      learn,
      lambda state, replay, key: state,
      state,
      replay,
      keys[0],
    )
    return (state, replay), (evaluated, state.baseline)

  return play_round


def _make_episode(
  environment: Environment, agent: Agent, options: AMCOptions
) -> Callable[..., tuple[jax.Array, Transition]]:
  """Plays an episode; its transitions have no rewards yet."""

  def act(
    key: jax.Array, episode: jax.Array, state: Any, observation: jax.Array
  ) -> jax.Array:
    sigma = sigma_at(
      episode,
      warmup=options.warmup,
      start=options.sigma,
      decay=options.decay,
      floor=options.floor,
    )
    near = explore(key, agent.act(state, observation), sigma)
    anywhere = jax.random.uniform(key)
    return jnp.where(episode <= options.warmup, anywhere, near)

  def play(
    key: jax.Array,
    episode: jax.Array,
    state: Any,
    data: Data,
    budget: jax.Array,
  ) -> tuple[jax.Array, Transition]:
    def step(
      carry: tuple[EnvironmentState, jax.Array], key: jax.Array
    ) -> tuple:
      at, seen = carry
      action = act(key, episode, state, seen)
      at, then, done = environment.step(data, budget, at, action)
      stored = action if options.store == 'raw' else at.ratio
      return (at, then), Transition(seen, stored, jnp.float32(0), then, done)

    keys = jax.random.split(key, environment.layers)
    start = environment.reset(data, budget)
    (end, _), steps = jax.lax.scan(step, start, keys)
    return end.candidate, steps

  return play


def _make_learn(
  environment: Environment, agent: Agent, options: AMCOptions
) -> Callable[[Any, Replay, jax.Array], Any]:
  episodes = options.num_envs * options.updates_per_step
  sample = SAMPLERS[options.sampling]

  def learn(state: Any, replay: Replay, key: jax.Array) -> Any:
    def update(state: Any, key: jax.Array) -> tuple[Any, None]:
      draw_key, agent_key = jax.random.split(key)
      batch = sample(draw_key, replay, options.batch)
      return agent.update(state, batch, agent_key), None

    keys = jax.random.split(key, episodes * environment.layers)
    return jax.lax.scan(update, state, keys)[0]

  return learn
