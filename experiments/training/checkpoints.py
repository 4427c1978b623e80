"""Checkpoints of a run, by Orbax.

A checkpoint holds the whole `TrainState`, so a run that was killed goes on bit
for bit as if it had never stopped. State of each worker is stored with the
workers along the first axis; restored for another number of workers, it is
dealt out by `bandwidth.collectives.resplit_workers`.
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from bandwidth.collectives import resplit_workers
from experiments.training.step import STATE_KINDS, TrainState
from experiments.training.workers import PER_WORKER, REPLICATED, Workers

_STATE = 'state'


class Checkpoints:
  """The checkpoints below a directory, written in the background.

  Args:
    directory: made if it does not exist.
    keep: how many of the newest are kept.
  """

  def __init__(self, directory: str | pathlib.Path, *, keep: int = 2):
    self._manager = ocp.CheckpointManager(
      pathlib.Path(directory).absolute(),
      item_names=(_STATE, 'info'),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True
      ),
    )

  def latest(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None.

    Process 0 decides for all, so that all resume from the same step.

    Raises:
      ValueError: a process does not see the checkpoint that process 0 sees.
    """
    mine = self._manager.latest_step()
    if jax.process_count() == 1:
      return mine
    from jax.experimental import multihost_utils

    step = int(
      multihost_utils.broadcast_one_to_all(-1 if mine is None else mine)
    )
    if step >= 0 and step not in self._manager.all_steps():
      raise ValueError(
        f'workdir: process {jax.process_index()} does not see the checkpoint '
        f'of step {step}; all processes need the same, shared workdir'
      )
    return None if step < 0 else step

  def save(self, step: int, state: TrainState, info: dict[str, Any]) -> None:
    """Begins to save; returns when the state may be overwritten on the device.

    Args:
      step: number of steps done.
      state: after the step, of all workers.
      info: JSON-like facts about the run, kept beside the state.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state._asdict()),
        info=ocp.args.JsonSave(info),
      ),
    )

  def info(self, step: int) -> dict[str, Any]:
    """Returns what was saved as `info`."""
    args = ocp.args.Composite(info=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args)['info']

  def restore(
    self,
    step: int,
    state: TrainState,
    *,
    workers: Workers,
    saved_axes: Mapping[str, int],
    saved_reducer_state: Any = None,
    resplit: Callable[..., Any] | None = None,
  ) -> TrainState:
    """Restores a state onto the devices.

    Args:
      step: number of steps after which it was saved.
      state: a state, concrete or abstract, of the structure and shapes that the
        restored one shall have.
      workers: that the restored state is for.
      saved_axes: names and sizes of the axes of the workers that wrote the
        checkpoint.
      saved_reducer_state: shapes of the reducer's state as it was saved, for
        all workers; None: that of `state` for `saved_workers`.
      resplit: of the reducer, see `GradientReducer`; None: `resplit_workers`.
    """
    same = [*saved_axes.values()] == [*workers.axes.values()]
    target = _saved_shapes(
      state, workers, saved_axes, None if same else saved_reducer_state
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target._asdict()))
    restored = TrainState(**self._manager.restore(step, args=args)['state'])
    if same:
      return restored
    return _dealt_out(restored, workers, saved_axes, resplit)

  def wait(self) -> None:
    """Returns when everything that was begun is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the directory."""
    self._manager.close()


def _saved_shapes(
  state: TrainState,
  workers: Workers,
  saved_axes: Mapping[str, int],
  reducer_state: Any,
) -> TrainState:
  """Shapes of a checkpoint and where its arrays go; see `restore`."""
  same = [*saved_axes.values()] == [*workers.axes.values()]
  saved_workers = math.prod(saved_axes.values())

  def shapes(kind: str, subtree: Any) -> Any:
    per_worker = kind == PER_WORKER
    place = workers.sharding(kind if same else REPLICATED)

    def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
      shape = (saved_workers, *leaf.shape[1:]) if per_worker else leaf.shape
      return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)

    return jax.tree.map(shape_of, subtree)

  target = jax.tree.map(shapes, STATE_KINDS, state)
  if reducer_state is None:
    return target
  return target._replace(reducer_state=shapes(REPLICATED, reducer_state))


def _dealt_out(
  restored: TrainState,
  workers: Workers,
  saved_axes: Mapping[str, int],
  resplit: Callable[..., Any] | None,
) -> TrainState:
  """A state of other workers, dealt out to these."""

  def deal_out(kind: str, subtree: Any) -> Any:
    if kind == PER_WORKER:
      subtree = resplit_workers(jax.device_get(subtree), workers.count)
    return workers.place(subtree, kind)

  if resplit is None:
    return jax.tree.map(deal_out, STATE_KINDS, restored)
  found = resplit(
    jax.device_get(restored.reducer_state),
    jax.device_get(restored.params),
    workers=tuple(saved_axes.values()),
  )
  reducer_state = workers.place(jax.device_get(found), PER_WORKER)
  out = jax.tree.map(deal_out, STATE_KINDS, restored._replace(reducer_state=()))
  return out._replace(reducer_state=reducer_state)
