"""Twin delayed DDPG (TD3), for the same environments and replay memory."""

import functools

import jax
import jax.numpy as jnp

from bandwidth.base import Params
from bandwidth.search.agents.ddpg import (
  Agent,
  AgentOptions,
  AgentState,
  actor,
  critic,
  init_actor,
  init_critic,
  init_state,
  update_actor,
  update_critic,
)
from bandwidth.search.agents.replay import Transition


def smoothed(
  key: jax.Array, actions: jax.Array, *, sigma: float, clip: float
) -> jax.Array:
  """Adds clipped normal noise to actions and clips them to [0, 1].

  Args:
    key: typed PRNG key, of `jax.random.key`.
    actions: target actions, in [0, 1], float32 [B].
    sigma: standard deviation of the noise.
    clip: largest magnitude of the noise.

  Returns:
    float32 [B].
  """
  noise = sigma * jax.random.normal(key, actions.shape)
  return jnp.clip(actions + jnp.clip(noise, -clip, clip), 0.0, 1.0)


def make_td3(features: int, options: AgentOptions | None = None) -> Agent:
  r"""Builds a TD3 agent with the networks and the baseline of `make_ddpg`.

  .. math::
    y = r - b + (1 - d) \gamma \min_{i=1,2}
      Q_i'(s', \mathrm{clip}(\mu'(s') + \epsilon, 0, 1)), \quad
    \epsilon \sim \mathrm{clip}(\mathcal{N}(0, \sigma), -c, c)

  is the target of both critics. Only in every `delay`-th update does the actor
  ascend the first critic, and do the target networks follow.

  Args:
    features: F, length of an observation.
    options: hyperparameters; None: the defaults of `AgentOptions`.

  References:
    Fujimoto et al., Addressing Function Approximation Error in Actor-Critic
    Methods, 2018, algorithm 1, https://arxiv.org/abs/1802.09477
  """
  options = options or AgentOptions()
  return Agent(
    init=functools.partial(_init, features, options),
    act=lambda state, observation: actor(state.actor, observation),
    update=functools.partial(_update, options),
  )


def _init(features: int, options: AgentOptions, key: jax.Array) -> AgentState:
  actor_key, *critic_keys = jax.random.split(key, 3)
  mu = init_actor(actor_key, features, options.hidden)
  pair = jax.tree.map(
    lambda *critics: jnp.stack(critics),
    *[init_critic(key, features, options.hidden) for key in critic_keys],
  )
  return init_state(mu, pair, options)


def _update(
  options: AgentOptions, state: AgentState, batch: Transition, key: jax.Array
) -> AgentState:
  ahead = _ahead(options, state, batch, key)
  state = update_critic(options, state, batch, ahead, _critics_loss)
  return jax.lax.cond(
    state.updates % options.delay == 0,
    functools.partial(_update_actor, options),
    lambda state, _: state,
    state,
    batch.observation,
  )


def _ahead(
  options: AgentOptions, state: AgentState, batch: Transition, key: jax.Array
) -> jax.Array:
  """The discounted value of what follows: float32 [B]."""
  seen = batch.next_observation
  actions = smoothed(
    key,
    jax.vmap(actor, (None, 0))(state.target_actor, seen),
    sigma=options.smoothing,
    clip=options.smoothing_clip,
  )
  values = jnp.min(_values(state.target_critic, seen, actions), axis=0)
  return jnp.where(batch.done, 0.0, options.discount * values)


def _update_actor(
  options: AgentOptions, state: AgentState, observations: jax.Array
) -> AgentState:
  first = jax.tree.map(lambda x: x[0], state.critic)
  return update_actor(options, state, first, observations)


def _values(
  critics: Params, observations: jax.Array, actions: jax.Array
) -> jax.Array:
  """Both critics of a batch: float32 [2, B]."""
  batched = jax.vmap(critic, (None, 0, 0))
  return jax.vmap(batched, (0, None, None))(critics, observations, actions)


def _critics_loss(
  critics: Params, batch: Transition, targets: jax.Array
) -> jax.Array:
  values = _values(critics, batch.observation, batch.action)
  # A sum, so that each critic has the gradient of its own mean.
  return jnp.sum(jnp.mean((values - targets[None]) ** 2, axis=1))
