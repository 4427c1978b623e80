import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec

from bandwidth.collectives import dense_all_reduce
from bandwidth.collectives.traffic import accounting, hlo

P = PartitionSpec
N = 4096


def mesh(**axes):
  devices = np.array(jax.devices()[: math.prod(axes.values())])
  return Mesh(
    devices.reshape(list(axes.values())),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(axes),
  )


def on_mesh(fn, on, size=N):
  """Compiles a worker's function of a vector, replicated results."""
  mapped = jax.shard_map(
    lambda x: fn(x[0]),
    mesh=on,
    in_specs=P(on.axis_names),
    out_specs=P(),
    check_vma=False,
  )
  x = jax.ShapeDtypeStruct((on.size, size), jnp.float32)
  return jax.jit(mapped).lower(x).compile()


def on_pmap(fn, workers=8, size=N):
  x = jax.ShapeDtypeStruct((workers, size), jnp.float32)
  mapped = jax.pmap(fn, axis_name='data', devices=jax.devices()[:workers])
  return mapped.lower(x).compile()


def both(fn):
  return [on_pmap(fn), on_mesh(fn, mesh(data=8))]


def masked_mean(x):
  """Looks sparse, and sends everything."""
  threshold = lax.top_k(jnp.abs(x), 16)[0][-1]
  return lax.pmean(jnp.where(jnp.abs(x) >= threshold, x, 0), 'data')


def gathered_mean(x):
  _, indices = lax.top_k(jnp.abs(x), 16)
  values = lax.all_gather(x[indices], 'data')
  indices = lax.all_gather(indices, 'data')
  return jnp.zeros_like(x).at[indices.ravel()].add(values.ravel()) / 8


def test_dense_sum():
  for program in both(lambda x: lax.psum(x, 'data')):
    assert accounting.wire_bytes(program) == 28_672


def test_negative_control_mask_then_sum_saves_nothing():
  for program in both(masked_mean):
    assert accounting.wire_bytes(program) == 28_672


def test_gathered_top_k_sends_values_and_indices():
  for program in both(gathered_mean):
    assert accounting.wire_bytes(program) == 7 * 16 * (4 + 4)


@pytest.mark.parametrize('fn', [masked_mean, gathered_mean])
def test_simulated_workers_send_nothing(fn):
  mapped = jax.jit(jax.vmap(fn, axis_name='data'))
  program = mapped.lower(jnp.zeros((8, N))).compile()
  assert accounting.wire_bytes(program) == 0
  assert accounting.wire_table(program) == []


@pytest.mark.parametrize('workers', [1, 2, 3, 8])
def test_every_kind(workers):
  size, nbytes = 24, 96
  ring = [(i, (i + 1) % workers) for i in range(workers)]
  share = (workers - 1) / workers
  cases = [
    (lambda x: lax.psum(x, 'data'), 2 * share * nbytes),
    (lambda x: lax.all_gather(x, 'data'), (workers - 1) * nbytes),
    (lambda x: lax.psum_scatter(x, 'data', tiled=True), share * nbytes),
    (lambda x: lax.all_to_all(x, 'data', 0, 0, tiled=True), share * nbytes),
    (lambda x: lax.ppermute(x, 'data', ring), nbytes if workers > 1 else 0),
  ]
  for fn, expected in cases:
    program = on_mesh(fn, mesh(data=workers), size)
    assert accounting.wire_bytes(program) == math.ceil(expected)


@pytest.mark.parametrize(
  ('axes', 'workers'), [('dcn', 2), ('ici', 4), (('dcn', 'ici'), 8)]
)
def test_two_axes(axes, workers):
  program = on_mesh(lambda x: lax.psum(x, axes), mesh(dcn=2, ici=4))
  expected = accounting.all_reduce_bytes(4 * N, workers)
  assert accounting.wire_bytes(program) == expected


def test_sum_over_one_axis_after_the_other():
  program = on_mesh(
    lambda x: lax.psum(lax.psum(x, 'ici') * 2, 'dcn'), mesh(dcn=2, ici=4)
  )
  assert accounting.wire_bytes(program) == 4 * N * 3 // 2 + 4 * N


def test_loop():
  def fn(x):
    return lax.scan(lambda c, _: (lax.pmean(c, 'data'), None), x, None, 5)[0]

  for program in both(fn):
    assert accounting.wire_bytes(program) == 5 * 28_672
    (row,) = accounting.wire_table(program)
    assert (row.count, row.bytes) == (5, 5 * 28_672)


def test_rounds_up_once():
  program = on_mesh(
    lambda x: (lax.psum(x, 'data'), lax.psum(x.astype(jnp.int32), 'data')),
    mesh(data=3),
    size=1,
  )
  # 2 * 2/3 * 4 bytes twice are 10.67, not 6 + 6.
  assert accounting.wire_bytes(program) == 11


def test_table_adds_up_and_names_what_is_sent():
  def fn(x):
    _, indices = lax.top_k(x, 16)
    halves = lax.all_gather(x[indices].astype(jnp.float16), 'data')
    return halves, lax.all_gather(indices, 'data'), lax.psum(x.sum(), 'data')

  program = on_mesh(fn, mesh(data=8))
  rows = accounting.wire_table(program)
  total = accounting.wire_bytes(program)
  assert math.ceil(sum(row.bytes for row in rows)) == total
  sent = {(r.kind, r.dtype): (r.group_size, r.count, r.bytes) for r in rows}
  assert sent == {
    ('all-gather', 'float16'): (8, 1, 7 * 32),
    ('all-gather', 'int32'): (8, 1, 7 * 64),
    ('all-reduce', 'float32'): (8, 1, 7),
  }
  assert {math.prod(row.shape) for row in rows} == {1, 16}


def test_bytes_of_packed_and_narrow_elements_as_cpu_sends_them():
  def sent(dtype):
    return accounting.wire_bytes(
      on_mesh(lambda x: lax.all_gather(x.astype(dtype), 'data'), mesh(data=8))
    )

  assert sent(jnp.float16) == 7 * 2 * N
  assert sent(jnp.uint8) == 7 * N
  # Booleans and 4-bit integers travel as whole bytes.
  assert sent(jnp.bool_) == 7 * N
  assert sent(jnp.int4) == 7 * N


def test_sixteen_bit_sum_is_widened_on_cpu():
  program = on_mesh(
    lambda x: lax.psum(x.astype(jnp.bfloat16), 'data'), mesh(data=8)
  )
  assert accounting.wire_bytes(program) == 28_672


TREE = {
  'a': jax.ShapeDtypeStruct((13, 7), jnp.float32),
  'b': jax.ShapeDtypeStruct((), jnp.float32),
  'c': jax.ShapeDtypeStruct((0, 3), jnp.bfloat16),
}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 3}, {'a': 2, 'b': 4}])
def test_closed_form_is_what_the_reducer_sends(dtype, axes):
  on = mesh(**axes)
  names = on.axis_names
  reducer = dense_all_reduce(names, dtype=dtype)
  mapped = jax.shard_map(
    lambda grads: reducer.reduce(grads, ())[0],
    mesh=on,
    in_specs=P(),
    out_specs=P(),
    check_vma=False,
  )
  program = jax.jit(mapped).lower(TREE).compile()
  expected = accounting.dense_wire_bytes(
    TREE, workers=tuple(axes.values()), dtype=dtype
  )
  assert accounting.wire_bytes(program) == expected
  if len(axes) == 1:
    assert expected == accounting.dense_wire_bytes(
      TREE, workers=on.size, dtype=dtype
    )


def test_closed_form_by_hand():
  # 92 elements. 4 workers: 2 * 3/4 * 368, and 2 * 3 * 23 * 2.
  assert accounting.dense_wire_bytes(TREE, workers=4) == 552
  assert accounting.dense_wire_bytes(TREE, workers=4, dtype='float16') == 276
  # 8 workers pad 92 to 96: 2 * 7 * 12 * 2.
  assert accounting.dense_wire_bytes(TREE, workers=8, dtype='bfloat16') == 336
  assert accounting.dense_wire_bytes(TREE, workers=1) == 0
  assert accounting.dense_wire_bytes(TREE, workers=1, dtype='float16') == 0
  assert accounting.dense_wire_bytes({}, workers=4) == 0


def test_resnet_50_dense_bytes():
  params = jax.ShapeDtypeStruct((25_557_032,), jnp.float32)
  sent = accounting.dense_wire_bytes(params, workers=64)
  assert sent == math.ceil(2 * 63 * 4 * 25_557_032 / 64)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'workers': 0}, 'workers=0'),
    ({'workers': (2, -1)}, 'workers='),
    ({'workers': 2, 'dtype': jnp.int8}, "dtype='int8'"),
  ],
)
def test_bad_arguments(kwargs, message):
  with pytest.raises(ValueError, match=message):
    accounting.dense_wire_bytes(TREE, **kwargs)


@pytest.mark.parametrize('read', [accounting.wire_bytes, accounting.wire_table])
@pytest.mark.parametrize('what', ['', 'module @jit_f {}', 1, None, len])
def test_no_compiled_program(read, what):
  with pytest.raises(ValueError, match='no compiled program'):
    read(what)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 4096))
def test_closed_forms_agree_with_what_is_read(payload, workers):
  def read(kind, operand):
    return math.ceil(operand * hlo.sent_fraction(kind, workers))

  assert accounting.all_reduce_bytes(payload, workers) == read(
    'all-reduce', payload
  )
  assert accounting.reduce_scatter_bytes(payload, workers) == read(
    'reduce-scatter', payload
  )
  assert accounting.all_to_all_bytes(payload, workers) == read(
    'all-to-all', payload
  )
  assert accounting.all_gather_bytes(payload, workers) == read(
    'all-gather', payload
  )
  exact = 2 * (workers - 1) * payload / workers
  assert accounting.all_reduce_bytes(payload, workers) == pytest.approx(
    exact, rel=1e-9, abs=1
  )
