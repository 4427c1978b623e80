"""The LSTM language model of Zaremba et al., arXiv 1409.2329, section 3.1."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.parameters import KernelAndBias


class LSTM(nn.Module):
  """Embedding, layers of LSTM, a softmax over the vocabulary.

  Every window starts from a zero state: windows are examples of their own, in
  any order, and the first tokens of each are predicted from little. Perplexity
  is a bit higher for it than where the state goes on from window to window.

  Vocabulary 10,000, two layers of 1,500 and a tied softmax make the 51,034,000
  parameters of the Penn Treebank model of Lin et al., arXiv 1712.01887.
  """

  vocabulary: int = 10_000  # number of different tokens
  hidden: int = 200  # units of each layer, and of the embedding
  layers: int = 2  # number of LSTM layers
  # whether the softmax has the embedding's matrix (Press & Wolf, arXiv
  # 1608.05859) or one of its own
  tied: bool = True
  # probability that an input or output of a layer is zeroed in training;
  # connections in time are left alone (Zaremba et al., equation 4)
  dropout: float = 0.0

  def __post_init__(self) -> None:
    for name in ('hidden', 'layers'):
      if getattr(self, name) < 1:
        raise ValueError(f'model.{name}={getattr(self, name)} is less than 1')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'model.dropout={self.dropout} is not in [0, 1)')
    super().__post_init__()

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, T, vocabulary] of the tokens that follow.

    Args:
      tokens: ids of the tokens read, int32 [N, T].
      train: whether to drop out, with the random key `dropout`.
    """
    initializer = symmetric_uniform(self.hidden**-0.5)
    embedding = nn.Embed(
      self.vocabulary, self.hidden, embedding_init=initializer, name='embedding'
    )
    drop = nn.Dropout(self.dropout, deterministic=not train)
    # Time comes first inside, so that the recurrence reads whole rows.
    x = drop(embedding(tokens.T))
    for layer in range(self.layers):
      x = drop(LSTMLayer(self.hidden, name=f'lstm_{layer}')(x))
    x = x.swapaxes(0, 1)
    if not self.tied:
      return nn.Dense(self.vocabulary, kernel_init=initializer, name='softmax')(
        x
      )
    bias = self.param('softmax_bias', nn.initializers.zeros, (self.vocabulary,))
    return embedding.attend(x) + bias[None, None]


class LSTMLayer(nn.Module):
  """A layer of LSTM, from a zero state.

  Equations 3 of Zaremba et al., with the gates in the order i, f, g, o of the
  columns. As in their code, and in cuDNN's, both products have a bias.
  """

  hidden: int  # number of units, H

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the outputs [T, N, H] of inputs [T, N, I]."""
    initializer = symmetric_uniform(self.hidden**-0.5)
    # Of all steps at once: only what depends on the step before is in the loop.
    projected = nn.Dense(
      4 * self.hidden, kernel_init=initializer, name='input'
    )(x)
    kernel, bias = KernelAndBias(
      (self.hidden, 4 * self.hidden), initializer, name='recurrent'
    )()
    return recur(projected + bias[None, None], kernel)


def recur(projected: jax.Array, kernel: jax.Array) -> jax.Array:
  """Runs the recurrence of an LSTM layer.

  Args:
    projected: [T, N, 4H], what each step adds to the gates.
    kernel: weights from the output of the step before, [H, 4H].

  Returns:
    [T, N, H].
  """

  def step(
    state: tuple[jax.Array, jax.Array], inputs: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    cell, output = state
    i, f, g, o = jnp.split(inputs + output @ kernel, 4, axis=-1)
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    output = nn.sigmoid(o) * jnp.tanh(cell)
    return (cell, output), output

  zero = jnp.zeros((projected.shape[1], kernel.shape[0]), projected.dtype)
  _, outputs = jax.lax.scan(step, (zero, zero), projected)
  return outputs


def symmetric_uniform(limit: float) -> Callable[..., jax.Array]:
  """Returns an initializer, uniform from -`limit` to `limit`."""

  def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init
