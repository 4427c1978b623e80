"""What the device can do at best, measured in the same run."""

import jax
import jax.numpy as jnp

from experiments.measuring.turns import in_place, take_turns, timed


def matmul_rate(size: int = 2048, *, repeats: int = 5) -> float:
  """Returns operations a second of a large float32 matrix product.

  Args:
    size: of the square matrices.
    repeats: the fastest of so many counts.
  """
  x = jnp.ones((size, size))
  product = jax.jit(lambda x: x @ x)
  turns = take_turns({'product': timed(lambda: product(x))}, repeats)
  return 2 * size**3 / turns.fastest('product')


def stream_rate(elements: int = 2**25, *, repeats: int = 5) -> float:
  """Returns bytes a second, read and written, of scaling a vector in place.

  Args:
    elements: float32.
    repeats: the fastest of so many counts.
  """
  scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0)
  turns = take_turns({'scale': in_place(scale, jnp.ones(elements))}, repeats)
  return 8 * elements / turns.fastest('scale')
