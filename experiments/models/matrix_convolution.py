"""Convolution as a matrix product, for CPUs.

XLA:CPU takes twelve times as long for the gradients of LeNet-5 as a large
matrix product takes for as many operations. Here images are the last axis, so
that patches, pooling and sums are loops over contiguous memory, and a few
images at a time, so that the patches stay in the cache: three and a half times
as fast at batches of 128 and more, see `python -m experiments.benchmark
convolution`. On accelerators the ordinary convolution is the fast one.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

CHUNK = 16
"""Images at a time: their patches take a megabyte or two."""


def _patches(x: jax.Array, height: int, width: int) -> jax.Array:
  """[C, H, W, N] -> [height·width·C, H', W', N], one row an input of a sum."""
  rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
  cut = [
    x[:, i : i + rows, j : j + columns]
    for i in range(height)
    for j in range(width)
  ]
  return jnp.stack(cut).reshape(-1, rows, columns, x.shape[3])


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves without padding, stride 1.

  Args:
    x: float [C, H, W, N], images last.
    kernel: float [height, width, C, O], as Flax has it.

  Returns:
    [O, H − height + 1, W − width + 1, N].
  """
  return _forward(x, kernel)[0]


def _forward(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  height, width, _, outputs = kernel.shape
  patches = _patches(x, height, width)
  matrix = kernel.reshape(-1, outputs)
  flat = matrix.T @ patches.reshape(patches.shape[0], -1)
  return flat.reshape(outputs, *patches.shape[1:]), (x, kernel)


def _backward(
  saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  height, width, channels, outputs = kernel.shape
  patches = _patches(x, height, width)
  flat = gradient.reshape(outputs, -1)
  to_kernel = patches.reshape(patches.shape[0], -1) @ flat.T
  to_patches = kernel.reshape(-1, outputs) @ flat
  to_patches = to_patches.reshape(height, width, channels, *gradient.shape[1:])
  rows, columns = gradient.shape[1:3]
  # In place, one after another. What autodiff makes of slices, a sum of padded
  # arrays, tests for each element whether it is within each of them.
  to_x = jnp.zeros_like(x)
  for i in range(height):
    for j in range(width):
      to_x = to_x.at[:, i : i + rows, j : j + columns].add(to_patches[i, j])
  return to_x, to_kernel.reshape(kernel.shape)


convolve.defvjp(_forward, _backward)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
  """Takes the maximum of 2x2 squares: [C, H, W, N] -> [C, H/2, W/2, N].

  The gradient goes to every element that equals the maximum.
  """
  channels, height, width, images = x.shape
  squares = x.reshape(channels, height // 2, 2, width // 2, 2, images)
  return squares.max((2, 4))


def _pool_forward(
  x: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  pooled = max_pool(x)
  return pooled, (x, pooled)


def _pool_backward(
  saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
  x, pooled = saved
  channels, height, width, images = x.shape
  squares = x.reshape(channels, height // 2, 2, width // 2, 2, images)
  here = squares == pooled[:, :, None, :, None]
  spread = jnp.where(here, gradient[:, :, None, :, None], 0)
  return (spread.reshape(x.shape),)


max_pool.defvjp(_pool_forward, _pool_backward)


def in_chunks(
  fn: Callable[[jax.Array], jax.Array], images: jax.Array
) -> jax.Array:
  """Maps a function over images [N, ...], a few at a time where N divides."""
  count = images.shape[0]
  if count % CHUNK:
    return fn(images)
  parts = images.reshape(count // CHUNK, CHUNK, *images.shape[1:])
  mapped = jax.lax.map(fn, parts)
  return mapped.reshape(count, *mapped.shape[2:])


def convolve_and_pool(
  images: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]]
) -> jax.Array:
  """Applies convolutions, each followed by a bias and 2x2 max pooling.

  Args:
    images: float [N, H, W, C].
    layers: pairs of kernel [height, width, C, O] and bias [O].

  Returns:
    [N, H', W', O].
  """

  def apply(part: jax.Array) -> jax.Array:
    x = part.transpose(3, 1, 2, 0)
    for kernel, bias in layers:
      x = max_pool(convolve(x, kernel) + bias[:, None, None, None])
    return x.transpose(3, 1, 2, 0)

  return in_chunks(apply, images)
