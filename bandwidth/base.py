"""Types and error messages that the whole library shares."""

import difflib
import inspect
import numbers
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Params = Any
"""A pytree of arrays: the parameters of a network, or their gradients."""

Masks = Any
"""A pytree shaped as `Params`. True keeps a weight; an unpruned leaf's mask is
the scalar `True`, never `None`."""

AxisName = str | tuple[str, ...] | None
"""Mapped axis, or axes, that workers lie along. None: one worker, and so no
collective."""


class Init(Protocol):
  """Makes the state of one worker, without a worker axis."""

  def __call__(self, params: Params, /) -> Any:
    """Returns the state; `params` may be abstract under `jax.eval_shape`."""


class Reduce(Protocol):
  """Averages the gradients of the workers."""

  def __call__(
    self, grads: Params, state: Any, params: Params = None
  ) -> tuple[Params, Any]:
    """Returns `(mean_grads, state)`; `params` are those the gradients are of.

    Raises:
      ValueError: a gradient is not floating-point, or the axis is not bound, or
        bound by `jax.shard_map` with `check_vma=True`.
    """


class WireBytes(Protocol):
  """Bytes that a worker sends in one call of `reduce`, in closed form."""

  def __call__(self, params: Params, workers: int | Sequence[int]) -> int:
    """Returns the bytes.

    Args:
      params: a tree; leaves may be `jax.ShapeDtypeStruct`s.
      workers: their number, or the sizes of the axes, the slowest link first.

    Raises:
      ValueError: `workers` is no positive integer, or no such integers.
    """


class Flush(Protocol):
  """Averages densely what is still pending in the workers' residuals."""

  def __call__(self, state: Any, params: Params) -> tuple[Params, Any]:
    """Returns `(mean_grads, state)`; nothing is pending in the new state."""


class Resplit(Protocol):
  """Deals the state of other workers out to those of a reducer, on the host."""

  def __call__(
    self, state: Any, params: Params, *, workers: int | Sequence[int]
  ) -> Any:
    """Returns the state of all workers of this reducer, along the first axis.

    Args:
      state: of all old workers, along the first axis.
      params: of one worker.
      workers: the old ones' number, or the sizes of their axes.
    """


class GradientReducer(NamedTuple):
  """Pure functions that average gradients over workers.

  A reducer is no `optax.GradientTransformation`, because its state differs from
  worker to worker (residuals, local momentum) while the state of an optimizer
  is the same on all. A train state therefore holds them apart: `opt_state`
  replicated, `reducer_state` sharded along the axis of the workers, see
  `bandwidth.collectives.stack_states`.

  Each call of `reduce` sends its message. To accumulate gradients over several
  batches, sum them on the worker and reduce once; `optax.MultiSteps`, which
  comes behind the reducer, saves nothing.

  Attributes:
    init: `params -> state`. The state of one worker, without a device axis.
    reduce: `(grads, state, params=None) -> (mean_grads, state)`. Called by
      each worker with its own gradients, inside `jax.pmap`, `jax.shard_map`
      (with `check_vma=False`) or `jax.vmap`, over the axis that the factory
      was given. `mean_grads` is the same on all workers.
    wire_bytes: `(params, workers) -> int`, bytes that a worker sends in a call
      of `reduce`, in closed form.
    flush: `(state, params) -> (mean_grads, state)`, called as `reduce` is:
      averages densely what is still pending in the workers' residuals, and
      leaves none. None: nothing is ever pending.
    resplit: `(state, params, workers) -> state` on the host: deals the state of
      other workers out to the workers that this reducer was made for, so that
      the pending update is conserved. None: the state's shapes don't depend on
      the number of workers, and `bandwidth.collectives.resplit_workers` will
      do.
    momentum: of the local momentum that `reduce` applies; 0: none. Where there
      is one, the optimizer behind must have none of its own, see
      `bandwidth.collectives.check_momentum`.
  """

  init: Init
  reduce: Reduce
  wire_bytes: WireBytes
  flush: Flush | None = None
  resplit: Resplit | None = None
  momentum: float = 0.0


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
  """Returns the message for a name that is none of the known ones.

  Args:
    kind: what the name stands for, as the user wrote it ('dataset.name').
    name: the value that was given.
    known: the values that would have been right.

  >>> unknown_name('mapping', 'pmpa', ['pmap', 'vmap'])
  "mapping='pmpa' is unknown; known: pmap, vmap. Did you mean 'pmap'?"
  """
  known = sorted(known)
  message = f'{kind}={name!r} is unknown; known: {", ".join(known)}'
  close = difflib.get_close_matches(str(name), known, n=1)
  return message + (f'. Did you mean {close[0]!r}?' if close else '')


_WORDS: Mapping[Any, tuple[Any, str]] = {
  bool: (bool, 'boolean'),
  int: (numbers.Integral, 'integer'),
  float: (numbers.Real, 'number'),
  str: (str, 'string'),
  tuple: ((tuple, list), 'list'),
}


def check_type(field: str, value: object, kind: Any) -> None:
  """Checks that a value is of a plain type, as a user understands it.

  Integers are numbers, booleans are neither.

  Args:
    field: that has the value.
    value: of it.
    kind: bool, int, float, str or tuple; all else is not checked.

  Raises:
    ValueError: it is not.

  >>> check_type('steps', True, int)
  Traceback (most recent call last):
  ValueError: steps=True is no integer
  """
  types, word = _WORDS.get(kind, (object, ''))
  if not isinstance(value, types) or (
    word in ('integer', 'number') and isinstance(value, bool)
  ):
    raise ValueError(f'{field}={value!r} is no {word}')


def arguments_of(
  maker: Callable[..., Any], own: Iterable[str] = ()
) -> dict[str, inspect.Parameter]:
  """Returns the arguments of a maker that a user may give, by name.

  Args:
    maker: a function or class.
    own: arguments that the program gives it.
  """
  parameters = inspect.signature(maker).parameters
  return {
    name: parameter
    for name, parameter in parameters.items()
    if name not in own and parameter.kind is not parameter.VAR_KEYWORD
  }


def passes_on(maker: Callable[..., Any]) -> bool:
  """Whether a maker has arguments that its signature does not name."""
  parameters = inspect.signature(maker).parameters.values()
  return any(p.kind is p.VAR_KEYWORD for p in parameters)


def check_known(field: str, name: str, known: Iterable[str]) -> None:
  """Raises ValueError where a name is none of those that are known.

  >>> check_known('of', 'los', ('accuracy', 'loss'))
  Traceback (most recent call last):
  ValueError: of='los' is unknown; known: accuracy, loss. Did you mean 'loss'?
  """
  if name not in known:
    raise ValueError(unknown_name(field, name, known))


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
  """Raises ValueError where the name of a group of fields is unknown."""
  if not isinstance(name, str) or name not in known:
    raise ValueError(unknown_name(f'{kind}.name', name, known))


def check_argument(
  kind: str,
  name: str,
  maker: Callable[..., Any],
  argument: str,
  own: Iterable[str] = (),
) -> None:
  """Raises ValueError where what a name stands for has no such argument.

  >>> check_argument('cost', 'double', lambda x: 2 * x, 'y')
  Traceback (most recent call last):
  ValueError: cost.y is no argument of 'double'; known: x
  """
  known = arguments_of(maker, own)
  if argument in known or (passes_on(maker) and argument not in own):
    return
  close = difflib.get_close_matches(argument, known, n=1)
  hint = f'. Did you mean {close[0]!r}?' if close else ''
  raise ValueError(
    f'{kind}.{argument} is no argument of {name!r}; known: '
    f'{", ".join(sorted(known)) or "none"}{hint}'
  )


def make_named(
  kind: str,
  name: str,
  makers: Mapping[str, Callable[..., Any]],
  arguments: Mapping[str, Any],
  /,
  **own: Any,
) -> Any:
  """Calls a maker by name.

  Args:
    kind: group of fields that has the name and the arguments, 'reducer'.
    name: of the maker.
    makers: by name.
    arguments: that the user gave.
    **own: that the program gives, to makers that have such an argument.

  Raises:
    ValueError: the name is unknown; the maker has no such argument, or needs
      another one; an argument is of another type, or out of range.

  >>> make_named('cost', 'double', {'double': lambda x: 2 * x}, {'x': 3})
  6
  """
  check_name(kind, name, makers)
  maker = makers[name]
  known = arguments_of(maker, own)
  for argument, value in arguments.items():
    check_argument(kind, name, maker, argument, own)
    if argument in known and value is not None:
      annotation = known[argument].annotation
      plain = typing.get_origin(annotation) or annotation
      check_type(f'{kind}.{argument}', value, plain)
  for argument, parameter in known.items():
    if parameter.default is parameter.empty and argument not in arguments:
      raise ValueError(f'{kind}: {name!r} needs {argument}')
  given = {key: own[key] for key in own if key in arguments_of(maker)}
  return maker(**given, **arguments)
