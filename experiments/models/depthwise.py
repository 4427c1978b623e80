"""Convolution of each channel alone, fast on CPUs too.

XLA:CPU takes ten to twenty-five times as long for a grouped convolution as for
the same products written as shifts, and three to ten times for the gradients:
`python -m experiments.benchmark convolution --depthwise`, in results/README.md.
Elsewhere XLA's own is the fast one; which it is is settled when a program is
compiled for a platform.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]


def convolve_depthwise(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Padding,
  **options: Any,
) -> jax.Array:
  """Stands in for `lax.conv_general_dilated` in an `nn.Conv`.

  Args:
    lhs: [N, H, W, C].
    rhs: [height, width, 1, C], a kernel a channel.
    window_strides: of rows and columns.
    padding: 'SAME', 'VALID', or pixels before and after.
    **options: the others that `nn.Conv` gives. Of a dilated convolution, or one
      of several outputs a channel, XLA's own is taken.

  Returns:
    [N, H', W', C].
  """

  def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      x, kernel, window_strides, padding, **options
    )

  dilations = [
    *(options.get('lhs_dilation') or ()), *(options.get('rhs_dilation') or ()),
  ]  # fmt: skip
  plain = lhs.ndim == 4 and lhs.shape[-1] == rhs.shape[-1] and rhs.shape[2] == 1
  if not plain or any(each != 1 for each in dilations):
    return grouped(lhs, rhs)
  pads = padding
  if isinstance(padding, str):
    pads = lax.padtype_to_pads(
      lhs.shape[1:3], rhs.shape[:2], window_strides, padding
    )
  pads = tuple((int(low), int(high)) for low, high in pads)
  strides = (int(window_strides[0]), int(window_strides[1]))

  def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolve_by_shifts(x, kernel, strides, pads)

  return lax.platform_dependent(lhs, rhs, cpu=shifted, default=grouped)


def _by_shifts(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, int],
  pads: tuple[tuple[int, int], ...],
) -> jax.Array:
  """Sums an image's shifts, each times the kernel's weight there.

  Args:
    x: [N, H, W, C].
    kernel: [height, width, 1, C].
    strides: of rows and columns.
    pads: pixels before and after, of rows and of columns.
  """
  total = None
  for (i, j), part in _shifts(x, kernel, strides, pads):
    term = part * kernel[i, j, 0][None, None, None]
    total = term if total is None else total + term
  return jnp.asarray(total)


convolve_by_shifts = jax.custom_vjp(_by_shifts, nondiff_argnums=(2, 3))


def _shifts(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, int],
  pads: tuple[tuple[int, int], ...],
) -> list[tuple[tuple[int, int], jax.Array]]:
  """Places of the kernel, and what they are multiplied with, [N, H', W', C]."""
  size, padded = kernel.shape[:2], jnp.pad(x, ((0, 0), *pads, (0, 0)))
  spans = [
    (padded.shape[1 + d] - size[d]) // strides[d] * strides[d] + 1
    for d in range(2)
  ]
  return [
    (
      (i, j),
      padded[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]],
    )
    for i in range(size[0])
    for j in range(size[1])
  ]


def _forward(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, int],
  pads: tuple[tuple[int, int], ...],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _by_shifts(x, kernel, strides, pads), (x, kernel)


def _backward(
  strides: tuple[int, int],
  pads: tuple[tuple[int, int], ...],
  saved: tuple[jax.Array, jax.Array],
  gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  height, width = kernel.shape[:2]
  to_kernel = jnp.stack(
    [
      (part * gradient).sum((0, 1, 2))
      for _, part in _shifts(x, kernel, strides, pads)
    ]
  ).reshape(kernel.shape)
  # The same with the kernel turned around, of the gradient spread out.
  spread = lax.pad(
    gradient,
    jnp.zeros((), gradient.dtype),
    [(0, 0, 0)]
    + [
      (size - 1 - low, extent + low - (count - 1) * stride - 1, stride - 1)
      for size, (low, _), extent, count, stride in zip(
        (height, width),
        pads,
        x.shape[1:3],
        gradient.shape[1:3],
        strides,
        strict=True,
      )
    ]
    + [(0, 0, 0)],
  )
  turned = kernel[::-1, ::-1]
  to_x = _by_shifts(spread, turned, (1, 1), ((0, 0), (0, 0)))
  return to_x, to_kernel


convolve_by_shifts.defvjp(_forward, _backward)
