"""What the device can do at best, measured in the same run."""

import time

import jax
import jax.numpy as jnp


def matmul_rate(size: int = 2048, *, repeats: int = 5) -> float:
  """Returns operations a second of a large float32 matrix product.

  Args:
    size: of the square matrices.
    repeats: the fastest of so many counts.
  """
  x = jnp.ones((size, size))
  product = jax.jit(lambda x: x @ x)
  jax.block_until_ready(product(x))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(product(x))
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def stream_rate(elements: int = 2**25, *, repeats: int = 5) -> float:
  """Returns bytes a second, read and written, of scaling a vector in place.

  Args:
    elements: float32.
    repeats: the fastest of so many counts.
  """
  scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0)
  x = jax.block_until_ready(scale(jnp.ones(elements)))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    x = jax.block_until_ready(scale(x))
    seconds.append(time.perf_counter() - start)
  return 8 * elements / min(seconds)
