"""The innermost steps of a kernel in PTX; `portable` has the same in JAX."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

from bandwidth.inference.gpu import ptx
from bandwidth.inference.gpu.decoding import THREADS, WARP, Decoding
from bandwidth.inference.matrices import LANES

_WARPS = THREADS // WARP


class Registers:
  """Steps over arrays that lie on a warpgroup, neighbors on a thread."""

  def __init__(self, decoding: Decoding, length: int, *, threads: int) -> None:
    """Takes the decoding, words of a step, and threads of a block."""
    self._decoding, self._length, self._threads = decoding, length, threads
    self._vector = length // THREADS
    strided = plgpu.Layout.WG_STRIDED
    self._many = strided((length,), vec_size=self._vector)
    self._one = strided((THREADS,), vec_size=1)
    self._scalar = plgpu.Layout.WG_SPLAT(())

  def fill(self, table_ref: Any, shared_ref: Any) -> Any:
    """Copies tables to shared memory; all threads of the block take part."""
    count = shared_ref.shape[0] * shared_ref.shape[1]

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType()))
    def fill(ctx: Any, source: Any, target: Any) -> None:
      del ctx
      addresses = ptx.global_address(source), ptx.shared_address(target)
      if self._decoding.pairs:
        self._copy_to_banks(*addresses)
      else:
        self._copy(*addresses, count)
      ptx.wait_for_block()

    fill(table_ref, shared_ref)
    return shared_ref

  def _copy(self, source: Any, target: Any, count: int) -> None:
    """Copies elements, one a thread at once."""
    for begin in range(0, count, self._threads):
      ptx.asm(
        None,
        '{ .reg .pred p; .reg .b32 t, a; .reg .b64 s; .reg .f32 v;'
        f' add.u32 t, $2, {begin}; setp.lt.u32 p, t, {count};'
        ' mul.wide.u32 s, t, 4; add.u64 s, s, $0;'
        ' shl.b32 a, t, 2; add.u32 a, a, $1;'
        ' @p ld.global.f32 v, [s]; @p st.shared.f32 [a], v; }',
        'l,r,r',
        [source, target, ptx.block_thread()],
      )

  def _copy_to_banks(self, source: Any, target: Any) -> None:
    """Writes each entry 32 times: no two lanes shall want one bank."""
    at_once = 4 * self._threads // WARP
    for begin in range(0, self._decoding.table[0], at_once):
      ptx.asm(
        None,
        '{ .reg .b32 e, a, v; .reg .b64 s;'
        ' shr.u32 e, $2, 3; mul.wide.u32 s, e, 4; add.u64 s, s, $0;'
        f' ld.global.nc.b32 v, [s+{4 * begin}];'
        ' shl.b32 a, $2, 4; add.u32 a, a, $1;'
        f' st.shared.v4.b32 [a+{4 * WARP * begin}], {{v, v, v, v}}; }}',
        'l,r,r',
        [source, target, ptx.block_thread()],
      )

  def words(self, row_ref: Any, first: Any) -> jax.Array:
    """Loads words past the first cache, which is to keep activations."""
    last = row_ref.shape[0] - self._vector
    words = plgpu.ShapeDtypeStruct(
      (self._length,), jnp.uint32, layout=self._many
    )

    @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(), self._scalar), return_type=words
    )
    def load(ctx: Any, row: Any, first: Any) -> Any:
      del ctx
      begin = arith.minui(self._word(first), ptx.integer(last))
      loaded = ptx.load(
        ptx.global_address(row), begin, self._vector, ptx.word_type(),
        '.L1::no_allocate',
      )  # fmt: skip
      return _array(loaded, self._many, signed=False)

    return load(row_ref, first)

  def activations(self, ref: Any, first: Any) -> list[jax.Array]:
    """Loads what multiplies words from the first on."""
    decoding = self._decoding
    count = len(decoding.packed)
    if decoding.integers:
      at = pl.ds(first, self._length)
      return [
        plgpu.layout_cast(ref[group, at], self._many) for group in range(count)
      ]
    if decoding.bits is None:
      return self._by_byte(ref, first)
    return [self._by_field(ref, first, field) for field in range(count)]

  def _by_field(self, ref: Any, first: Any, field: int) -> jax.Array:
    """What multiplies a field of each word: neighbors, as words are."""
    span = LANES * len(self._decoding.groups)

    @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(), self._scalar), return_type=self._floats()
    )
    def load(ctx: Any, x: Any, first: Any) -> Any:
      del ctx
      word = self._word(first)
      block = arith.shrui(word, ptx.integer(LANES.bit_length() - 1))
      lane = arith.andi(word, ptx.integer(LANES - 1))
      at = arith.addi(arith.muli(block, ptx.integer(span)), lane)
      at = arith.addi(at, ptx.integer(LANES * field))
      loaded = ptx.load(
        ptx.global_address(x), at, self._vector, ptx.float_type()
      )
      return _array(loaded, self._many)

    return load(ref, first)

  def _by_byte(self, ref: Any, first: Any) -> list[jax.Array]:
    """What multiplies the four bytes of each word."""

    @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(), self._scalar),
      return_type=[self._floats()] * 4,
    )
    def load(ctx: Any, x: Any, first: Any) -> Any:
      del ctx
      base = ptx.global_address(x)
      at = arith.shli(self._word(first), ptx.integer(2))
      by_word = [
        ptx.load(
          base, arith.addi(at, ptx.integer(4 * word)), 4, ptx.float_type()
        )
        for word in range(self._vector)
      ]
      return [
        _array(list(own), self._many) for own in zip(*by_word, strict=True)
      ]

    return load(ref, first)

  def zero(self) -> jax.Array:
    """A sum of nothing."""
    zeros = jnp.zeros(THREADS, self._decoding.sums)
    return plgpu.layout_cast(zeros, self._one)

  def accumulate(
    self,
    sums: Sequence[Sequence[jax.Array]],
    words: Sequence[jax.Array],
    group: int,
    xs: Sequence[jax.Array],
    tables: Any,
  ) -> list[list[jax.Array]]:
    """Adds products of a group of fields, [rows of activations][outputs]."""
    one = plgpu.ShapeDtypeStruct(
      (THREADS,), self._decoding.sums, layout=self._one
    )
    types = (
      [[self._one] * len(words)] * len(xs),
      [self._many] * len(words),
      [self._many] * len(xs),
      plgpu.RefType(),
    )

    @plgpu.inline_mgpu(
      arg_types=types, return_type=[[one] * len(words)] * len(xs)
    )
    def add(ctx: Any, sums: Any, words: Any, xs: Any, table: Any) -> Any:
      del ctx
      tables = self._tables(ptx.shared_address(table), len(words))
      totals = [[_element(own, 0) for own in of_x] for of_x in sums]
      for output, own in enumerate(words):
        for lane in range(self._vector):
          weight = self._weight(
            _element(own, lane), group, output, tables[output]
          )
          for number, x in enumerate(xs):
            totals[number][output] = ptx.multiply_add(
              self._instruction(group, number),
              weight,
              _element(x, lane),
              totals[number][output],
            )
      signed = True if self._decoding.integers else None
      return [
        [_array([own], self._one, signed=signed) for own in of_x]
        for of_x in totals
      ]

    return add(list(sums), list(words), list(xs), tables)

  def _instruction(self, group: int, number: int) -> str:
    """What multiplies a group by a row of activations and adds it."""
    decoding = self._decoding
    if decoding.pairs:
      half = 'hi' if group % 2 else 'lo'
      low = decoding.halves and number % 2
      return f'dp2a.{half}.s32.{"u32" if low else "s32"}'
    return 'dp4a.s32.s32' if decoding.integers else 'fma.rn.f32'

  def _tables(self, base: Any, outputs: int) -> list[list[Any]]:
    """For each output what `_weight` looks up in."""
    decoding = self._decoding
    if decoding.pairs:
      return [[base, ptx.lane_bytes()]] * outputs
    if not decoding.integers or decoding.bits is None:
      return [[base]] * outputs
    size = decoding.table[0]
    tables = [
      [ptx.load_shared(base, 4 * (size * output + i)) for i in range(size)]
      for output in range(1 if decoding.shared else outputs)
    ]
    return tables * outputs if decoding.shared else tables

  def _weight(
    self, word: Any, group: int, output: int, table: Sequence[Any]
  ) -> Any:
    """What a group of fields of a word means."""
    decoding = self._decoding
    field, *_ = decoding.groups[group]
    shift = field * decoding.width
    if decoding.pairs:
      return ptx.look_up_pair(word, shift, *table)
    if decoding.integers:
      return ptx.pick(word, shift, decoding.bits, table)
    if decoding.bits is None:
      return ptx.float_of_byte(word, field)
    (base,) = table
    size = decoding.table[0]
    offset = 0 if decoding.shared else 4 * size * output
    return ptx.look_up(word, shift, size - 1, base, offset)

  def finish(
    self, sums: Sequence[jax.Array], scratch_ref: Any, y_ref: Any
  ) -> None:
    """Writes the totals of some outputs: over warps, then over the rest."""
    outputs = len(sums)

    @plgpu.inline_mgpu(
      arg_types=([self._one] * outputs, plgpu.RefType(), plgpu.RefType())
    )
    def write(ctx: Any, sums: Any, scratch: Any, y: Any) -> None:
      del ctx
      values = [_element(own, 0) for own in sums]
      if self._decoding.halves:
        values = [arith.sitofp(ptx.float_type(), own) for own in values]
      shared = ptx.shared_address(scratch)
      _add_up(values, shared, ptx.global_address(y))

    write(list(sums), scratch_ref, y_ref)

  def _floats(self) -> Any:
    return plgpu.ShapeDtypeStruct(
      (self._length,), jnp.float32, layout=self._many
    )

  def _word(self, first: Any) -> Any:
    """Number of the first word of a thread."""
    own = arith.muli(ptx.thread(), ptx.integer(self._vector))
    return arith.addi(first.registers.item(), own)


def _add_up(values: Sequence[Any], shared: Any, target: Any) -> None:
  """Adds values over a warpgroup, and writes the totals."""
  count = len(values)
  total, width = ptx.fold(values, ptx.thread())
  number, kind = ptx.thread(), 's32'
  letter = 'r'
  if total.type == ptx.float_type():
    kind, letter = 'f32', 'f'
  ptx.asm(
    None,
    '{ .reg .pred p; .reg .b32 w, r, a;'
    f' and.b32 r, $1, {width - 1}; setp.eq.u32 p, r, 0;'
    f' shr.u32 w, $1, 5; and.b32 r, $1, {WARP - 1};'
    f' shr.u32 r, r, {width.bit_length() - 1}; mad.lo.u32 a, w, {count}, r;'
    ' shl.b32 a, a, 2; add.u32 a, a, $2; @p st.shared.b32 [a], $0; }',
    f'{letter},r,r',
    [total, number, shared],
  )
  mgpu.utils.warpgroup_barrier()
  others = ''.join(
    f' @p ld.shared.{kind} v, [a+{4 * count * warp}]; @p add.{kind} s, s, v;'
    for warp in range(1, _WARPS)
  )
  ptx.asm(
    None,
    f'{{ .reg .pred p; .reg .b32 a; .reg .b64 g; .reg .{kind} s, v;'
    f' setp.lt.u32 p, $1, {count}; shl.b32 a, $1, 2;'
    ' mul.wide.u32 g, $1, 4; add.u64 g, g, $0; add.u32 a, a, $2;'
    f' @p ld.shared.{kind} s, [a];{others} @p st.global.{kind} [g], s; }}',
    'l,r,r',
    [target, number, shared],
  )


def _array(
  registers: Sequence[Any], layout: Any, *, signed: bool | None = None
) -> Any:
  """An array of what a thread holds of it, one vector."""
  vector = ir.VectorType.get((len(registers),), registers[0].type)
  made = llvm.mlir_undef(vector)
  for i, register in enumerate(registers):
    made = llvm.insertelement(made, register, ptx.integer(i))
  return mgpu.FragmentedArray(
    _registers=np.array([made], object),
    _layout=layout.to_mgpu(),
    _is_signed=signed,
  )


def _element(array: Any, lane: int) -> Any:
  """A register of an array."""
  (vector,) = array.registers.reshape(-1)
  return llvm.extractelement(vector, ptx.integer(lane))
