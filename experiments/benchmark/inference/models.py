"""Whole networks at batch 1 from their .bwz files, beside dense ones.

Part of `experiments.benchmark inference`; see there. A network is given by its
dense weights and a file; what runs from the file is compared with the dense
network on inputs of its own data, by mode of arithmetic.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import coding, inference, tree
from experiments.inference import onnx_networks
from experiments.measuring.device_time import apart

Outputs = Sequence[np.ndarray]

DENSE = 'dense float32'
"""Forms whose names begin so are what others are compared with: the fastest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A network to time."""

  name: str
  model: nn.Module  # that runs
  variables: Any  # dense, float32
  file: pathlib.Path  # .bwz, of the same names
  # of batch 1, by what is said of them: a length, a size
  inputs: Mapping[str, tuple[Any, ...]]
  # batches of inputs on which forms are compared
  examples: Sequence[tuple[Any, ...]]
  # (outputs on the examples, those of the dense network) -> columns
  score: Callable[[Outputs, Outputs], dict[str, float]]
  # (variables, inputs) -> operations for onnxruntime; None: there is no such
  # graph
  graph: onnx_networks.Graph | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """A way to run a network."""

  name: str
  run: Callable[[], Any]  # with one input, ready
  nbytes: int  # of parameters that it holds
  columns: Mapping[str, float]  # how true it is


def network_rows(
  network: Network,
  *,
  backend: str,
  repeats: int,
  modes: Sequence[str] = inference.MODES,
) -> list[dict[str, Any]]:
  """Times a network in all forms, on each of its inputs.

  Args:
    network: of which.
    backend: of `inference.BACKENDS`.
    repeats: of which medians count; programs take turns.
    modes: of `inference.MODES`.
  """
  with coding.open_file(network.file) as reader:
    forms = inference.flax_forms(reader.names)
  loaded = inference.load_compressed(network.file, forms=forms)
  loaded = jax.tree.map(jnp.asarray, loaded)
  wanted = _outputs(network, network.model.apply, network.variables)
  columns = {
    mode: network.score(
      _outputs(network, _compressed(network, backend, mode).apply, loaded),
      wanted,
    )
    for mode in modes
  }
  rows = []
  for size, inputs in network.inputs.items():
    forms = _dense_forms(network, inputs, wanted)
    for mode in modes:
      forms += _compressed_forms(
        network, loaded, inputs, backend=backend, mode=mode,
        columns=columns[mode],
      )  # fmt: skip
    ours = len(forms)
    forms += _onnx_forms(network, inputs)
    runs = [form.run for form in forms]
    seconds = apart(runs, ours, repeats, least_seconds=2e-2)
    timed = list(zip(forms, seconds, strict=True))
    fastest = min(own for form, own in timed if form.name.startswith(DENSE))
    rows += [
      {
        'model': network.name,
        'input': size,
        'form': form.name,
        'bytes': form.nbytes,
        'ms': round(1e3 * own, 3),
        'speedup': round(fastest / own, 2),
        **form.columns,
      }
      for form, own in timed
    ]
  return rows


def _compressed(
  network: Network, backend: str, mode: str
) -> inference.CompressedNetwork:
  return inference.CompressedNetwork(network.model, backend=backend, mode=mode)


def _outputs(
  network: Network, apply: Callable[..., Any], variables: Any
) -> list[np.ndarray]:
  run = jax.jit(apply)
  return [np.asarray(run(variables, *inputs)) for inputs in network.examples]


def _program(
  apply: Callable[..., Any], variables: Any, inputs: tuple[Any, ...]
) -> Callable[[], Any]:
  compiled = jax.jit(apply).lower(variables, *inputs).compile()
  return lambda: compiled(variables, *inputs)


def _dense_forms(
  network: Network, inputs: tuple[Any, ...], wanted: Outputs
) -> list[Form]:
  apply, variables = network.model.apply, network.variables
  constant = jax.jit(lambda *x: apply(variables, *x)).lower(*inputs).compile()
  joined = _compressed(network, 'xla', 'exact')
  beside = joined.join(variables, *inputs)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
  halved = tuple(
    x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in inputs
  )
  size = inference.nbytes(variables)
  same = network.score(wanted, wanted)
  outputs = _outputs(network, apply, half)
  form = functools.partial(Form, nbytes=size, columns=same)
  return [
    form(name=DENSE, run=_program(apply, variables, inputs)),
    form(name=f'{DENSE}, as constants', run=lambda: constant(*inputs)),
    form(name=f'{DENSE}, joined', run=_program(joined.apply, beside, inputs)),
    Form(
      name='dense bfloat16',
      run=_program(apply, half, halved),
      nbytes=inference.nbytes(half),
      columns=network.score(outputs, wanted),
    ),
  ]


def _onnx_forms(network: Network, inputs: tuple[Any, ...]) -> list[Form]:
  """What onnxruntime does; none where it is not installed."""
  if network.graph is None:
    return []
  forms = []
  for name in onnx_networks.FORMS:
    try:
      made = onnx_networks.make_session(
        name, network.graph, network.variables, inputs
      )
    except ValueError:
      continue
    forms.append(Form(name=name, run=made.run, nbytes=made.nbytes, columns={}))
  return forms


def _compressed_forms(
  network: Network,
  loaded: Any,
  inputs: tuple[Any, ...],
  *,
  backend: str,
  mode: str,
  columns: Mapping[str, float],
) -> list[Form]:
  """From the file as it is, with kernels joined, and as planned."""
  made = _compressed(network, backend, mode)
  plan = inference.plan_layers(
    inference.layer_calls(network.model, network.variables, *inputs),
    loaded,
    dict(tree.named_leaves(coding.load_tree(network.file))).__getitem__,
    backend=backend,
    mode=mode,
  )
  planned = jax.tree.map(jnp.asarray, plan.params)
  ways = {
    '': loaded,
    ', joined': made.join(loaded, *inputs),
    ', planned': made.join(planned, *inputs),
  }
  return [
    Form(
      name=f'bwz, {mode}{way}',
      run=_program(made.apply, variables, inputs),
      nbytes=inference.nbytes(variables),
      columns={
        **columns,
        'compressed': _compressed_share(variables),
        'file_bytes': network.file.stat().st_size,
      },
    )
    for way, variables in ways.items()
  ]


def _compressed_share(variables: Any) -> float:
  """What part of the bytes is in compressed matrices."""
  leaves = jax.tree.leaves(variables, is_leaf=inference.is_matrix)
  inside = sum(
    inference.nbytes(leaf) for leaf in leaves if inference.is_matrix(leaf)
  )
  return round(inside / inference.nbytes(variables), 3)


def cosine(outputs: Outputs, wanted: Outputs) -> dict[str, float]:
  """Cosines of rows: the mean and the least."""
  a, b = np.concatenate(outputs), np.concatenate(wanted)
  a, b = a.astype(np.float64), b.astype(np.float64)
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  each = (a * b).sum(axis=1) / norms
  return {
    'cosine': round(float(each.mean()), 5),
    'cosine_least': round(float(each.min()), 4),
  }


def top1(outputs: Outputs, wanted: Outputs) -> dict[str, float]:
  """The same of logits, and how often the largest stays the largest."""
  a, b = np.concatenate(outputs), np.concatenate(wanted)
  same = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
  return {**cosine(outputs, wanted), 'same_top1': round(same, 4)}
