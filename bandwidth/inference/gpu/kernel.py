"""The loops of a kernel.

A warpgroup makes a few outputs. It goes through their rows, a step of words
for each thread at a time, and loads the words of steps to come before it
multiplies those of this one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from bandwidth.inference.gpu.decoding import THREADS, WARP, Decoding
from bandwidth.inference.gpu.portable import Portable
from bandwidth.inference.gpu.registers import Registers

MOST_ROWS = 4
"""Rows of activations that are multiplied by a weight while it is there."""

_VECTORS = (4, 2, 1)


_OLDEST = 9.0


def is_known(device: Any = None) -> bool:
  """Whether a GPU is of the kind that kernels were measured on, or newer.

  Args:
    device: a JAX device. None: the default one.
  """
  device = device or jax.devices()[0]
  # Of NVIDIA's it is a number; others have names there, or none.
  capability = str(getattr(device, 'compute_capability', ''))
  number = capability.replace('.', '', 1)
  return (
    device.platform == 'gpu'
    and number.isdigit()
    and float(capability) >= _OLDEST
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
  """How work is dealt out.

  Attributes:
    outputs: outputs that a warpgroup makes, a power of two up to 32.
    warpgroups: number of warpgroups of a block.
    vector: words that a thread loads at once, 1, 2 or 4.
    ahead: steps that words are loaded before they are used.
  """

  outputs: int = 8
  warpgroups: int = 1
  vector: int = 2
  ahead: int = 1


LAUNCHES = {
  'floats': Launch(),
  'bytes': Launch(vector=4, ahead=0),
  'pairs8': Launch(),
  'pairs16': Launch(vector=4, ahead=0),
}
"""Of the ways that `benchmark gpu_launches` tries, the fastest on an H200."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
  """What is static in a kernel.

  Attributes:
    decoding: how words become weights.
    launch: how work is dealt out, fitted to the shape.
    rows: rows of activations that are multiplied at once.
    steps: number of steps that cover a row of words.
  """

  decoding: Decoding
  launch: Launch
  rows: int
  steps: int

  @property
  def length(self) -> int:
    """Words of a step."""
    return self.launch.vector * THREADS


def multiply(
  words: jax.Array,
  x: jax.Array,
  tables: jax.Array,
  decoding: Decoding,
  *,
  launch: Launch | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Multiplies rows of activations by packed rows.

  Args:
    words: uint32 [N, words of a row], packed rows of the matrix.
    x: float32 [B, inputs]; of integers uint32 [B, packed groups, words].
    tables: [1 or N, elements], in the form of `decoding.table`.
    decoding: how words become weights, and with what arithmetic.
    launch: how work is dealt out. None: the fastest of `LAUNCHES`.
    interpret: whether XLA runs the kernel, on any device.

  Returns:
    [B, N], of `decoding.totals`.
  """
  outputs, width = words.shape
  launch = _fitted(launch or LAUNCHES[decoding.arithmetic], width)
  length = launch.vector * THREADS
  plan = _Plan(
    decoding=decoding,
    launch=launch,
    rows=min(len(x), MOST_ROWS),
    steps=-(-width // length),
  )
  inputs = plan.steps * length
  if not decoding.integers:
    inputs *= len(decoding.groups)
  batch = len(x)
  x = _filled(x, {0: plan.rows}, {x.ndim - 1: inputs})
  of_block = launch.outputs * launch.warpgroups
  tables = _filled(tables, {0: 1 if decoding.shared else of_block}, {})
  blocks = -(-outputs // of_block)
  run = _interpreted if interpret else _compiled
  made = jax.ShapeDtypeStruct((len(x), blocks * of_block), decoding.totals)
  y = run(plan, (blocks, len(x) // plan.rows), made)(words, x, tables)
  return y[:batch, :outputs]


def _fitted(launch: Launch, width: int) -> Launch:
  """Threads of narrow rows load fewer words at once."""
  vector = next(
    v
    for v in _VECTORS
    if v == 1 or (v <= launch.vector and width >= v * THREADS)
  )
  return dataclasses.replace(launch, vector=vector)


def _filled(
  array: jax.Array, multiples: dict[int, int], sizes: dict[int, int]
) -> jax.Array:
  """Fills axes up with zeros, to multiples or to sizes."""
  missing = [
    (0, sizes[axis] - n if axis in sizes else -n % multiples.get(axis, 1))
    for axis, n in enumerate(array.shape)
  ]
  return jnp.pad(array, missing) if any(m for _, m in missing) else array


def _interpreted(plan: _Plan, grid: tuple[int, int], made: Any) -> Any:
  def kernel(*refs: Any) -> None:
    for warpgroup in range(plan.launch.warpgroups):
      steps = Portable(plan.decoding, plan.length)
      place = pl.program_id(0), pl.program_id(1), warpgroup
      _kernel(steps, plan, place, *refs)

  return pl.pallas_call(kernel, grid=grid, out_shape=made, interpret=True)


def _compiled(plan: _Plan, grid: tuple[int, int], made: Any) -> Any:
  launch, decoding = plan.launch, plan.decoding
  outputs = launch.outputs * launch.warpgroups
  steps = Registers(decoding, plan.length, threads=THREADS * launch.warpgroups)

  def kernel(*refs: Any) -> None:
    at = lax.axis_index
    place = at('outputs'), at('rows'), at('warpgroup')
    _kernel(steps, plan, place, *refs)

  return plgpu.kernel(
    kernel,
    out_type=made,
    grid=grid,
    grid_names=('outputs', 'rows'),
    num_threads=launch.warpgroups,
    thread_name='warpgroup',
    scratch_types=(
      plgpu.SMEM(
        (1 if decoding.shared else outputs, decoding.kept), decoding.table[1]
      ),
      plgpu.SMEM(
        (launch.warpgroups, plan.rows, THREADS // WARP, launch.outputs),
        decoding.totals,
      ),
    ),
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )


def _kernel(
  steps: Portable | Registers,
  plan: _Plan,
  place: tuple[Any, Any, Any],
  words_ref: Any,
  x_ref: Any,
  table_ref: Any,
  y_ref: Any,
  shared_ref: Any = None,
  scratch_ref: Any = None,
) -> None:
  """Makes the products of some outputs and rows of activations.

  Args:
    steps: what loads, decodes and adds, here or interpreted.
    plan: what is static in the kernel.
    place: number of its outputs' block, of its rows, and of the warpgroup.
    words_ref: uint32 [N, words], packed rows of the matrix.
    x_ref: [B, …], rows of activations, as `multiply` takes them.
    table_ref: [1 or N, elements], tables of the codes.
    y_ref: [B, N], where the products go.
    shared_ref: tables of a block, in shared memory; None: interpreted.
    scratch_ref: [warpgroups, rows, warps, outputs], shared memory for partial
      sums; None: interpreted.
  """
  block, part, warpgroup = place
  decoding, launch = plan.decoding, plan.launch
  of_block = launch.outputs * launch.warpgroups
  begin = block * of_block + warpgroup * launch.outputs
  last = words_ref.shape[0] - 1
  numbers = [jnp.minimum(begin + i, last) for i in range(launch.outputs)]
  rows = [part * plan.rows + row for row in range(plan.rows)]

  def load(i: Any) -> list[jax.Array]:
    return [steps.words(words_ref.at[n], i * plan.length) for n in numbers]

  ready = [load(i) for i in range(launch.ahead)]
  if decoding.shared:
    tables = steps.fill(table_ref.at[pl.ds(0, 1)], shared_ref)
  else:
    own = table_ref.at[pl.ds(block * of_block, of_block)]
    tables = steps.fill(own, shared_ref)
    tables = tables.at[pl.ds(warpgroup * launch.outputs, launch.outputs)]

  def step(i: Any, carried: Any) -> Any:
    ready, sums = carried
    ready = [*ready, load(i + launch.ahead)]
    xs = [steps.activations(x_ref.at[row], i * plan.length) for row in rows]
    for group in range(len(decoding.groups)):
      packed = group // 2 if decoding.pairs else group
      of_group = [own[packed] for own in xs]
      sums = steps.accumulate(sums, ready[0], group, of_group, tables)
    return ready[1:], sums

  zeros = [[steps.zero() for _ in numbers] for _ in rows]
  _, sums = lax.fori_loop(0, plan.steps, step, (ready, zeros))
  for i, (row, own) in enumerate(zip(rows, sums, strict=True)):
    steps.finish(
      own,
      None if scratch_ref is None else scratch_ref.at[warpgroup, i],
      y_ref.at[row, pl.ds(begin, launch.outputs)],
    )
