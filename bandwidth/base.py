"""Types and error messages that the whole library shares."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Params = Any
"""A pytree of arrays: the parameters of a network, or their gradients."""

Masks = Any
"""A pytree shaped as `Params`. True keeps a weight; an unpruned leaf's mask is
the scalar `True`, never `None`."""

AxisName = str | tuple[str, ...] | None
"""Mapped axis, or axes, that workers lie along. None: one worker, and so no
collective."""


class GradientReducer(NamedTuple):
  """Pure functions that average gradients over workers.

  A reducer is no `optax.GradientTransformation`, because its state differs from
  worker to worker (residuals, local momentum) while the state of an optimizer
  is the same on all. A train state therefore holds them apart: `opt_state`
  replicated, `reducer_state` sharded along the axis of the workers.

  Attributes:
    init: `params -> state`. The state of one worker, without a device axis.
    reduce: `(grads, state, params=None) -> (mean_grads, state)`. Called by
      each worker with its own gradients, inside `jax.pmap`, `jax.shard_map`
      (with `check_vma=False`) or `jax.vmap`, over the axis that the factory
      was given. `mean_grads` is the same on all workers.
    wire_bytes: `(params, workers) -> int`, bytes that a worker sends in a call
      of `reduce`, in closed form. `workers` are the sizes of the axes.
    flush: `(state, params) -> (mean_grads, state)`, called as `reduce` is:
      averages densely what is still pending in the workers' residuals, and
      leaves none. None: nothing is ever pending.
    resplit: `(state, params, workers) -> state` on the host: deals the state of
      other workers, which lie along the first axis, out to the workers that
      this reducer was made for, so that the pending update is conserved;
      `workers` are the sizes of the axes that the state comes from. None:
      the state's shapes don't depend on the number of workers, and
      `bandwidth.collectives.resplit_workers` will do.
  """

  init: Callable[[Params], Any]
  reduce: Callable[..., tuple[Params, Any]]
  wire_bytes: Callable[..., int] | None = None
  flush: Callable[..., tuple[Params, Any]] | None = None
  resplit: Callable[..., Any] | None = None


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


def make_named(
  kind: str,
  name: str,
  makers: Mapping[str, Callable[..., Any]],
  *args: Any,
  **arguments: Any,
) -> Any:
  """Calls a maker by name.

  Args:
    kind: see `unknown_name`.
    name: of the maker.
    makers: by name.
    *args: that all makers take.
    **arguments: that the user gave.

  Raises:
    ValueError: the name is unknown, or the maker has no such argument, or an
      argument is out of range.

  >>> make_named('cost', 'double', {'double': lambda x: 2 * x}, x=3)
  6
  """
  if name not in makers:
    raise ValueError(unknown_name(kind, name, makers))
  try:
    inspect.signature(makers[name]).bind(*args, **arguments)
  except TypeError as error:
    raise ValueError(f'{kind} {name}: {error}') from None
  return makers[name](*args, **arguments)
