"""Parameters without a product, and parameters of published files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree


class KernelAndBias(nn.Module):
  """The parameters of an `nn.Dense` or `nn.Conv`, without its product."""

  shape: Sequence[int]  # of the kernel, its outputs last
  # of the kernel; the bias begins at 0
  initializer: Callable[..., jax.Array] = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias."""
    kernel = self.param('kernel', self.initializer, self.shape)
    bias = self.param('bias', nn.initializers.zeros, (self.shape[-1],))
    return kernel, bias


def from_published(
  arrays: Mapping[str, np.ndarray],
  shapes: Any,
  source_of: Callable[[str], tuple[str, tuple[int, ...] | None]],
) -> Any:
  """Returns float32 variables of a network from the arrays of a published file.

  Args:
    arrays: by their names in the file.
    shapes: variables of the network, arrays or abstract shapes.
    source_of: from a name of the network to that in the file, and the axes that
      a transposition takes, None: as they are.

  Raises:
    ValueError: an array is missing or has another shape.
  """

  def load(name: str, like: Any) -> jax.Array:
    source, axes = source_of(name)
    if source not in arrays:
      raise ValueError(f'arrays: {source} is missing')
    array = np.asarray(arrays[source], np.float32)
    if axes is not None and array.ndim == len(axes):
      array = array.transpose(axes)
    if array.shape != like.shape:
      raise ValueError(
        f'arrays: {source}.shape={arrays[source].shape} is wrong'
      )
    return jnp.asarray(array)

  return tree.map_named(load, shapes)
