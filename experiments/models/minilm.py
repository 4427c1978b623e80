"""MiniLM, a sentence encoder: BERT of six layers with mean pooling.

Wang et al., "MiniLM", arXiv 2002.10957; Reimers and Gurevych, "Sentence-BERT",
arXiv 1908.10084. The architecture is that of Devlin et al., arXiv 1810.04805.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.parameters import from_published

_EPSILON = 1e-12

# Modules of this network, and what the published files call them.
_MODULES = {
  'word': 'embeddings.word_embeddings',
  'position': 'embeddings.position_embeddings',
  'type': 'embeddings.token_type_embeddings',
  'norm': 'embeddings.LayerNorm',
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'attended': 'attention.output.dense',
  'attended_norm': 'attention.output.LayerNorm',
  'hidden': 'intermediate.dense',
  'output': 'output.dense',
  'output_norm': 'output.LayerNorm',
}


class BertLayer(nn.Module):
  """Attention and two dense layers, each added to its input and normalized."""

  heads: int  # of the attention; they divide the width
  features: int  # units of the hidden layer

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [N, T, width] of the same; mask [N, T] bool is True at words."""
    width = x.shape[-1]

    def split(name: str) -> jax.Array:
      return nn.Dense(width, name=name)(x).reshape(*x.shape[:2], self.heads, -1)

    mixed = nn.dot_product_attention(
      split('query'), split('key'), split('value'), mask=mask[:, None, None]
    )
    y = nn.Dense(width, name='attended')(mixed.reshape(x.shape))
    x = nn.LayerNorm(_EPSILON, name='attended_norm')(x + y)
    y = nn.Dense(self.features, name='hidden')(x)
    y = nn.Dense(width, name='output')(nn.gelu(y, approximate=False))
    return nn.LayerNorm(_EPSILON, name='output_norm')(x + y)


class MiniLM(nn.Module):
  """all-MiniLM-L6-v2 without its pooler, which sentence embeddings don't use.

  22,565,376 parameters, more than half of them the embeddings of word pieces.
  """

  vocabulary: int = 30_522  # number of word pieces
  positions: int = 512  # word pieces of the longest text
  width: int = 384  # of embeddings and layers
  heads: int = 12  # of each layer's attention
  features: Sequence[int] = (1536,) * 6  # hidden units of each layer, in order

  @nn.compact
  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns embeddings of unit length, [N, width].

    Args:
      tokens: int [N, T], T at most `positions`.
      mask: bool [N, T], False at padding.
    """
    x = nn.Embed(self.vocabulary, self.width, name='word')(tokens)
    positions = nn.Embed(self.positions, self.width, name='position')
    x += positions(jnp.arange(tokens.shape[1]))[None]
    # Two types, for pairs of texts; a single text is of type 0.
    x += nn.Embed(2, self.width, name='type')(jnp.zeros_like(tokens))
    x = nn.LayerNorm(_EPSILON, name='norm')(x)
    for i, features in enumerate(self.features):
      x = BertLayer(self.heads, features, name=f'layer_{i}')(x, mask)
    # A mean over words is a sum, up to the length that the norm takes out.
    total = jnp.where(mask[..., None], x, 0).sum(axis=1)
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


def source_of(name: str) -> tuple[str, bool]:
  """Returns what published files call a parameter, and whether transposed.

  >>> source_of('layer_0/hidden/kernel')
  ('encoder.layer.0.intermediate.dense.weight', True)
  >>> source_of('norm/scale')
  ('embeddings.LayerNorm.weight', False)
  """
  *layer, module, leaf = name.split('/')
  prefix = f'encoder.layer.{layer[0].split("_")[1]}.' if layer else ''
  kind = 'bias' if leaf == 'bias' else 'weight'
  return f'{prefix}{_MODULES[module]}.{kind}', leaf == 'kernel'


def minilm_variables(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the variables of `MiniLM()` from the arrays of a published file.

  Args:
    arrays: by their names in the file (`encoder.layer.0.attention.self...`),
      kernels [out, in]. Others than the network's are passed over: the pooler
      and the position ids.

  Raises:
    ValueError: an array is missing or has another shape.
  """
  layers = [re.match(r'encoder\.layer\.(\d+)\.', name) for name in arrays]
  count = 1 + max((int(match[1]) for match in layers if match), default=-1)
  if count != len(MiniLM().features):
    raise ValueError(f'arrays: {count} layers are not those of MiniLM-L6')
  tokens = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(MiniLM().init, jax.random.key(0), tokens, tokens > 0)

  def source(name: str) -> tuple[str, tuple[int, ...] | None]:
    published, transposed = source_of(name)
    return published, (1, 0) if transposed else None

  return {'params': from_published(arrays, shapes['params'], source)}
