"""Networks as one has them today on a CPU: graphs for onnxruntime.

`float32` are plain products; `int8` rounds activations on the fly; `4-bit` are
blocks of 32 weights with a scale each, with activations in float32 or rounded
to 8 bits (`onnx_products`). What is small stays float32 in all of them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.inference import onnx_products

FORMS = ('onnxruntime float32', *onnx_products.FORMS)

_FLOAT, _INT64 = 1, 7
_OPSET = 20


class Session(NamedTuple):
  """A network that is ready to run.

  Attributes:
    run: with the inputs that it was made for; [outputs].
    nbytes: of its constants.
  """

  run: Callable[[], np.ndarray]
  nbytes: int


Graph = Callable[['Builder', Any, tuple[Any, ...]], str]
"""(builder, variables, inputs) -> name of the output. Inputs are named `x0`,
`x1`, … in their order."""


class Builder:
  """Collects the nodes and constants of a graph."""

  def __init__(self, onnx: Any, form: str):
    """Starts with nothing.

    Args:
      onnx: the package.
      form: of `FORMS`: of all dense layers.
    """
    self._onnx, self._form = onnx, form
    self.nodes: list[Any] = []
    self.constants: dict[str, np.ndarray] = {}

  def constant(self, value: Any) -> str:
    """Adds an array; returns its name."""
    name = f'c{len(self.constants)}'
    self.constants[name] = np.asarray(value)
    return name

  def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
    """Adds a node; returns the name of what it puts out."""
    name = f'n{len(self.nodes)}'
    self.nodes.append(
      self._onnx.helper.make_node(kind, inputs, [name], **attributes)
    )
    return name

  def dense(self, x: str, layer: Any) -> str:
    """Adds x W + b, W in the form of the graph.

    Raises:
      ValueError: it has no such form.
    """
    kernel = np.asarray(layer['kernel'], np.float32)
    bias = self.constant(np.asarray(layer['bias'], np.float32))
    if self._form == FORMS[0]:
      y = self.add('MatMul', [x, self.constant(kernel)])
    else:
      kind, constants, attributes = onnx_products.parts(self._form, kernel)
      names = [self.constant(array) for array in constants.values()]
      y = self.add(kind, [x, *names], domain='com.microsoft', **attributes)
    return self.add('Add', [y, bias])


def make_session(
  form: str, graph: Graph, variables: Any, inputs: tuple[Any, ...]
) -> Session:
  """Makes a network ready to run.

  Args:
    form: of `FORMS`.
    graph: of the network.
    variables: dense, float32.
    inputs: that it runs on: floats, or integers and masks.

  Raises:
    ValueError: onnx or onnxruntime is not installed, or a layer does not fit.
  """
  onnx, onnxruntime = onnx_products.packages(form)
  builder = Builder(onnx, form)
  last = graph(builder, variables, inputs)
  read = {name for node in builder.nodes for name in node.input}
  given = {
    f'x{i}': np.asarray(
      x, np.float32 if np.asarray(x).dtype.kind == 'f' else np.int64
    )
    for i, x in enumerate(inputs)
    if f'x{i}' in read
  }
  make = onnx.helper.make_tensor_value_info
  made = onnx.helper.make_graph(
    builder.nodes,
    'network',
    [
      make(name, _FLOAT if x.dtype == np.float32 else _INT64, list(x.shape))
      for name, x in given.items()
    ],
    [make(last, _FLOAT, None)],
    [
      onnx.numpy_helper.from_array(array, name)
      for name, array in builder.constants.items()
    ],
  )
  session = onnx_products.session(onnx, onnxruntime, made, opset=_OPSET)
  size = sum(array.nbytes for array in builder.constants.values())
  return Session(lambda: session.run(None, given)[0], size)


def lenet300_graph(
  builder: Builder, variables: Any, inputs: tuple[Any, ...]
) -> str:
  """LeNet-300-100 on one image."""
  del inputs
  params = variables['params']
  x = builder.add(
    'Reshape', ['x0', builder.constant(np.array([1, -1], np.int64))]
  )
  for i in range(len(params) - 1):
    x = builder.add('Relu', [builder.dense(x, params[f'Dense_{i}'])])
  return builder.dense(x, params[f'Dense_{len(params) - 1}'])


def minilm_graph(
  builder: Builder, variables: Any, inputs: tuple[Any, ...], *, heads: int = 12
) -> str:
  """MiniLM on one text without padding."""
  params = variables['params']
  length = np.shape(inputs[0])[1]
  words = builder.constant(np.asarray(params['word']['embedding']))
  x = builder.add('Gather', [words, 'x0'])
  # What does not hang on the words is one constant.
  places = np.asarray(params['position']['embedding'])[:length]
  places = places + np.asarray(params['type']['embedding'])[0]
  x = builder.add('Add', [x, builder.constant(places[None])])
  x = _norm(builder, x, params['norm'])
  for i in range(sum(name.startswith('layer_') for name in params)):
    x = _bert_layer(builder, x, params[f'layer_{i}'], heads)
  axis = builder.constant(np.array([1], np.int64))
  x = builder.add('ReduceMean', [x, axis], keepdims=0)
  return builder.add('LpNormalization', [x], axis=1, p=2)


def _bert_layer(builder: Builder, x: str, layer: Any, heads: int) -> str:
  width = np.shape(layer['query']['kernel'])[0]
  apart = builder.constant(np.array([0, 0, heads, width // heads], np.int64))
  together = builder.constant(np.array([0, 0, width], np.int64))

  def split(name: str, order: list[int]) -> str:
    y = builder.add('Reshape', [builder.dense(x, layer[name]), apart])
    return builder.add('Transpose', [y], perm=order)

  query, value = split('query', [0, 2, 1, 3]), split('value', [0, 2, 1, 3])
  scores = builder.add('MatMul', [query, split('key', [0, 2, 3, 1])])
  scale = builder.constant(np.float32(1 / math.sqrt(width // heads)))
  scores = builder.add('Softmax', [builder.add('Mul', [scores, scale])])
  mixed = builder.add('MatMul', [scores, value])
  mixed = builder.add('Transpose', [mixed], perm=[0, 2, 1, 3])
  mixed = builder.add('Reshape', [mixed, together])
  y = builder.add('Add', [x, builder.dense(mixed, layer['attended'])])
  x = _norm(builder, y, layer['attended_norm'])
  y = builder.add('Gelu', [builder.dense(x, layer['hidden'])])
  y = builder.add('Add', [x, builder.dense(y, layer['output'])])
  return _norm(builder, y, layer['output_norm'])


def _norm(builder: Builder, x: str, layer: Any) -> str:
  scale = builder.constant(np.asarray(layer['scale']))
  bias = builder.constant(np.asarray(layer['bias']))
  return builder.add(
    'LayerNormalization', [x, scale, bias], axis=-1, epsilon=1e-12
  )
