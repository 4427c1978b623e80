"""PTX by the instruction: what a thread does to its registers.

Operands and results are MLIR values of 32 bits, addresses of global memory of
64. In a text, $0 is the result and the others are the operands in their order.
"""

from collections.abc import Sequence
from typing import Any

from jax.experimental.mosaic import gpu as mgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

from bandwidth.inference.gpu.decoding import THREADS, WARP

# A byte in the low bits of 2^23 is a float; less 2^23 and the offset of its
# sign it is the number.
_MAGIC_BITS, _MAGIC = 0x4B000000, float(2**23 + 128)


def asm(
  result: Any, text: str, constraints: str, operands: Sequence[Any]
) -> Any:
  """Emits PTX.

  Args:
    result: type of the result; None: the text has effects instead.
    text: PTX instructions, with operands as $0, $1, …
    constraints: letters of result and operands: r, f or l.
    operands: MLIR values, in the order of the constraints.
  """
  effects = result is None
  return llvm.inline_asm(
    ir.Type.parse('!llvm.void') if effects else result,
    list(operands),
    text,
    constraints,
    has_side_effects=effects,
  )


def float_type() -> Any:
  """Of 32 bits."""
  return ir.F32Type.get()


def word_type() -> Any:
  """Of 32 bits."""
  return ir.IntegerType.get_signless(32)


def integer(value: int) -> Any:
  """A constant word."""
  return arith.constant(word_type(), ir.IntegerAttr.get(word_type(), value))


def thread() -> Any:
  """Number of the thread in its warpgroup."""
  return asm(
    word_type(),
    f'{{ .reg .b32 t; mov.u32 t, %tid.x; and.b32 $0, t, {THREADS - 1}; }}',
    '=r',
    [],
  )


def block_thread() -> Any:
  """Number of the thread in its block."""
  return asm(word_type(), 'mov.u32 $0, %tid.x;', '=r', [])


def wait_for_block() -> None:
  """Waits for all threads of the block, and for what they stored."""
  asm(None, 'bar.sync 0;', '', [])


def global_address(ref: Any) -> Any:
  """Where a reference to global memory begins."""
  kind = ir.IntegerType.get_signless(64)
  return llvm.ptrtoint(kind, mgpu.utils.memref_ptr(ref))


def shared_address(ref: Any) -> Any:
  """Where a reference to shared memory begins."""
  return llvm.ptrtoint(word_type(), mgpu.utils.memref_ptr(ref))


def load(
  base: Any, first: Any, count: int, kind: Any, options: str = ''
) -> list[Any]:
  """Loads neighboring elements of 32 bits that nobody writes.

  Args:
    base: address in global memory, of 64 bits.
    first: index of the first element, of 32 bits.
    count: number of elements: 1, 2 or 4.
    kind: MLIR type of the elements, `float_type()` or `word_type()`.
    options: modifiers appended to the load instruction.
  """
  letter = 'f' if kind == float_type() else 'r'
  results = ','.join([f'={letter}'] * count)
  names = ', '.join(f'${i}' for i in range(count))
  if count > 1:
    options, names = f'{options}.v{count}', f'{{{names}}}'
  text = (
    f'{{ .reg .b64 a; mul.wide.u32 a, ${count + 1}, 4;'
    f' add.u64 a, a, ${count}; ld.global.nc{options}.b32 {names}, [a]; }}'
  )
  constraints = f'{results},l,r'
  if count == 1:
    return [asm(kind, text, constraints, [base, first])]
  struct = llvm.StructType.get_literal([kind] * count)
  loaded = asm(struct, text, constraints, [base, first])
  return [llvm.extractvalue(kind, loaded, [i]) for i in range(count)]


def look_up(word: Any, shift: int, mask: int, base: Any, offset: int) -> Any:
  """A float of a table in shared memory.

  Args:
    word: word that holds the code.
    shift: number of bits below the code.
    mask: mask of the bits of a code.
    base: address of the table in shared memory.
    offset: bytes added to the address.
  """
  shift -= 2
  return asm(
    float_type(),
    f'{{ .reg .b32 t; {_shifted("t", "$1", shift)}'
    f' and.b32 t, t, {4 * mask}; add.u32 t, t, $2;'
    f' ld.shared.f32 $0, [t+{offset}]; }}',
    '=f,r,r',
    [word, base],
  )


def look_up_pair(word: Any, shift: int, base: Any, lane: Any) -> Any:
  """Two weights of 16 bits by a byte of codes, from the bank of a lane.

  Args:
    word: word that holds the codes.
    shift: number of bits below the byte.
    base: address of the table, which has an entry in 128 bytes.
    lane: what the lane adds, 4 times its number.
  """
  return asm(
    word_type(),
    f'{{ .reg .b32 t; {_shifted("t", "$1", shift - 7)}'
    ' lop3.b32 t, t, 0x7f80, $3, 0xea; add.u32 t, t, $2;'
    ' ld.shared.b32 $0, [t]; }',
    '=r,r,r,r',
    [word, base, lane],
  )


def lane_bytes() -> Any:
  """Four times the number of the lane."""
  return asm(
    word_type(),
    f'{{ .reg .b32 t; mov.u32 t, %tid.x; and.b32 t, t, {WARP - 1};'
    ' shl.b32 $0, t, 2; }',
    '=r',
    [],
  )


def load_shared(base: Any, offset: int) -> Any:
  """A word of shared memory."""
  return asm(word_type(), f'ld.shared.b32 $0, [$1+{offset}];', '=r,r', [base])


def pick(word: Any, shift: int, bits: int | None, table: Sequence[Any]) -> Any:
  """Four signed bytes of a table by four codes.

  Args:
    word: word that holds the codes; without bits, the four bytes.
    shift: number of bits below the first code.
    bits: bits of a code, 2 or 4; None: there are no codes.
    table: words of the table, each with four of its bytes.
  """
  if bits is None:
    return word
  if bits == 2:
    return asm(
      word_type(),
      f'{{ .reg .b32 s; shr.b32 s, $1, {shift}; and.b32 s, s, 0x3333;'
      ' prmt.b32 $0, $2, 0, s; }',
      '=r,r,r',
      [word, *table],
    )
  # Of eight entries at once; a code's highest bit tells which eight.
  return asm(
    word_type(),
    '{ .reg .b32 s, m, low, high;'
    f' shr.b32 s, $1, {shift}; and.b32 s, s, 0x7777;'
    ' prmt.b32 low, $2, $3, s; prmt.b32 high, $4, $5, s;'
    f' shr.b32 m, $1, {shift + 3}; and.b32 m, m, 0x1111;'
    ' prmt.b32 m, 0xff00, 0, m; lop3.b32 $0, low, high, m, 0xd8; }',
    '=r,r,r,r,r,r',
    [word, *table],
  )


def float_of_byte(word: Any, number: int) -> Any:
  """A signed byte of a word as a float."""
  return asm(
    float_type(),
    '{ .reg .b32 t; .reg .f32 v; xor.b32 t, $1, 0x80808080;'
    f' prmt.b32 t, t, {_MAGIC_BITS}, {0x7540 + number:#x};'
    f' mov.b32 v, t; add.rn.f32 $0, v, {-_MAGIC}; }}',
    '=f,r',
    [word],
  )


def multiply_add(instruction: str, a: Any, b: Any, c: Any) -> Any:
  """What an instruction of three operands of one type makes."""
  kind, letter = c.type, 'r' if c.type == word_type() else 'f'
  return asm(
    kind,
    f'{instruction} $0, $1, $2, $3;',
    ','.join([f'={letter}'] + [letter] * 3),
    [a, b, c],
  )


def fold(values: Sequence[Any], number: Any) -> tuple[Any, int]:
  """Adds over a warp; afterwards threads hold totals of different values.

  At each step a thread gives half of its values away, and gets those of the
  others for the half that it keeps.

  Args:
    values: values of each thread, n of them, a power of two up to 32.
    number: index of the thread in its warpgroup.

  Returns:
    What a thread holds, the total of value number (lane // w), and w = 32 / n.
  """
  values, distance = list(values), WARP // 2
  while len(values) > 1:
    half = len(values) // 2
    upper = arith.cmpi(
      arith.CmpIPredicate.ne, arith.andi(number, integer(distance)), integer(0)
    )
    kept = []
    for low, high in zip(values[:half], values[half:], strict=True):
      given = arith.select(upper, low, high)
      own = arith.select(upper, high, low)
      kept.append(_sum(own, mgpu.utils.shfl_bfly(given, distance)))
    values, distance = kept, distance // 2
  (total,) = values
  width = 2 * distance
  while distance:
    total = _sum(total, mgpu.utils.shfl_bfly(total, distance))
    distance //= 2
  return total, width


def _sum(a: Any, b: Any) -> Any:
  return arith.addi(a, b) if a.type == word_type() else arith.addf(a, b)


def _shifted(target: str, source: str, by: int) -> str:
  """An instruction that shifts right, or left where that is negative."""
  name = 'shl' if by < 0 else 'shr'
  return f'{name}.b32 {target}, {source}, {abs(by)};'
