"""Who reads a parameter of a program: layers that are known, or others too.

A layer that could run from codes is called by `layer_call`, which marks it in
the traced program. `reads_of` follows parameters through that program, into
what is jitted, rematerialized or looped over. Whatever else touches one, an
operation that makes another array of it before a layer reads that, reads it
too.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import core

_MARK = 'bandwidth_layer '
_TRACES = itertools.count()


class Reads(NamedTuple):
  """Names of parameters.

  Attributes:
    layers: names of parameters that only marked layers read.
    others: what something else reads, or a layer that a transformation changes.
  """

  layers: set[Any]
  others: set[Any]


def layer_call(
  name: str, run: Callable[..., jax.Array], kernel: jax.Array, *rest: Any
) -> jax.Array:
  """Returns `run(kernel, *rest)`, marked as a layer that reads the kernel.

  Args:
    name: name of the layer, by which it is marked.
    run: function `(kernel, *rest) -> array`; its name is set to the mark.
    kernel: array of the shape that the parameter has.
    *rest: nested arrays.
  """
  operands = 1 + len(jax.tree.leaves(rest))
  run.__name__ = _mark_of(kernel.shape, operands, 1) + name
  return jax.jit(run)(kernel, *rest)


def traced_anew() -> contextlib.AbstractContextManager[Any]:
  """Returns a context in which no jit takes what it has traced before it.

  Functions that are jitted within a program, as by `nn.jit`, would not be run
  again: layers in them would not be seen.
  """
  return set_xla_metadata(bandwidth_trace=str(next(_TRACES)))


def reads_of(
  program: Callable[..., Any], parameters: Mapping[Any, Any], *rest: Any
) -> Reads:
  """Traces a program.

  Args:
    program: (arrays by name, *rest) -> nested arrays.
    parameters: abstract shapes of the parameters by name.
    *rest: nested arrays, or their shapes.
  """
  names = list(parameters)

  def by_position(arrays: list[Any], *rest: Any) -> Any:
    return program(dict(zip(names, arrays, strict=True)), *rest)

  arrays = list(parameters.values())
  with traced_anew():
    jaxpr = jax.make_jaxpr(by_position)(arrays, *rest).jaxpr
  found = _Found({}, set(), set())
  _follow(jaxpr, dict(zip(jaxpr.invars, names, strict=False)), found)
  # What gradients make of a layer keeps its mark.
  changed = [found.layers.get(mark, set()) for mark in found.odd]
  others = found.others.union(*changed)
  return Reads(set().union(*found.layers.values()) - others, others)


class _Found(NamedTuple):
  """What is read, by name.

  Attributes:
    layers: names of the parameters that each marked layer reads, by its mark.
    odd: marks of what is no layer of a whole parameter.
    others: names of the parameters that something else reads.
  """

  layers: dict[str, set[Any]]
  odd: set[str]
  others: set[Any]


def _follow(jaxpr: Any, names: Mapping[Any, Any], found: _Found) -> None:
  """Adds the readers in a program of what its variables are, by name."""
  results = _variables(jaxpr.outvars)
  found.others.update(names[each] for each in results if each in names)
  needed = set(results)
  for step in reversed(jaxpr.eqns):
    if not step.effects and needed.isdisjoint(step.outvars):
      continue
    needed.update(_variables(step.invars))
    operands = [
      None if isinstance(each, core.Literal) else names.get(each)
      for each in step.invars
    ]
    mark = str(step.params.get('name', ''))
    if mark.startswith(_MARK):
      if operands[0] is not None and mark.startswith(_mark_of_step(step)):
        found.layers.setdefault(mark, set()).add(operands[0])
        operands[0] = None
      else:
        found.odd.add(mark)
    inside = _inside(step)
    for inner, variables, begin in inside:
      own = zip(variables, operands[begin:], strict=False)
      _follow(inner, {v: n for v, n in own if n is not None}, found)
    if inside:
      _, variables, begin = inside[0]
      del operands[begin : begin + len(variables)]
    found.others.update(name for name in operands if name is not None)


def _variables(given: Iterable[Any]) -> list[Any]:
  return [each for each in given if not isinstance(each, core.Literal)]


def _mark_of(shape: tuple[int, ...], operands: int, results: int) -> str:
  return f'{_MARK}{shape}, {operands} to {results}: '


def _mark_of_step(step: Any) -> str:
  shape = step.invars[0].aval.shape
  return _mark_of(shape, len(step.invars), len(step.outvars))


def _inside(step: Any) -> list[tuple[Any, list[Any], int]]:
  """Programs inside a step, their first variables, and the operand of these.

  Loops have their constants; what they carry or take a slice of is no parameter
  any more. Other steps are not looked into.
  """
  kind, given = step.primitive.name, step.params
  if kind == 'cond':
    inner = [_open(branch) for branch in given['branches']]
    return [(each, each.invars, 1) for each in inner]
  if kind not in ('jit', 'pjit', 'checkpoint', 'remat2', 'scan'):
    return []
  inner = _open(given['jaxpr'])
  count = _constants(given) if kind == 'scan' else len(inner.invars)
  return [(inner, inner.invars[:count], 0)]


def _open(jaxpr: Any) -> Any:
  """A program without its constants, which some steps have with it."""
  return getattr(jaxpr, 'jaxpr', jaxpr)


def _constants(scan: Mapping[str, Any]) -> int:
  """How many operands are the same in each round; none where that is unknown.

  JAX says how many, or since 0.12 gives all operands as a tree.
  """
  if 'ft_in' in scan:
    return len(list(scan['ft_in'].unpack()[0]))
  return scan.get('num_consts', 0)
