from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bandwidth.collectives.traffic import hlo, hlo_text
from bandwidth.collectives.traffic.replica_groups import (
  parse_groups,
  parse_pairs,
  parse_slice_groups,
)

P = PartitionSpec


def mesh(**axes):
  devices = np.array(jax.devices()[: np.prod(list(axes.values()))])
  return Mesh(
    devices.reshape(list(axes.values())),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(axes),
  )


def compiled(fn, shape, on, out=None):
  spec = P(on.axis_names)
  mapped = jax.shard_map(
    fn,
    mesh=on,
    in_specs=spec,
    out_specs=spec if out is None else out,
    check_vma=False,
  )
  return jax.jit(mapped).lower(jnp.zeros(shape)).compile()


def only(program, **kwargs):
  (collective,) = hlo.collectives(program, **kwargs)
  return collective


def recorded(name, **values):
  """Text of a program in the form that a compiler printed."""
  text = (Path(__file__).parent / 'recorded' / f'{name}.txt').read_text()
  for key, value in values.items():
    text = text.replace(f'<{key}>', str(value))
  return text


@pytest.mark.parametrize(
  ('axes', 'groups'),
  [
    ('dcn', {(0, 4), (1, 5), (2, 6), (3, 7)}),
    ('ici', {(0, 1, 2, 3), (4, 5, 6, 7)}),
    (('dcn', 'ici'), {tuple(range(8))}),
    (('ici', 'dcn'), {(0, 4, 1, 5, 2, 6, 3, 7)}),
  ],
)
@pytest.mark.parametrize('gather', [False, True])
def test_two_axes(axes, groups, gather):
  def fn(x):
    return lax.all_gather(x, axes) if gather else lax.psum(x, axes)

  found = only(compiled(fn, (8, 128), mesh(dcn=2, ici=4)))
  assert set(found.groups) == groups
  assert found.group_size == len(min(groups))
  assert found.kind == ('all-gather' if gather else 'all-reduce')
  assert found.operand_bytes == 512
  assert found.result_bytes == 512 * (found.group_size if gather else 1)


def test_three_axes_that_are_not_neighbors():
  found = only(
    compiled(lambda x: lax.psum(x, ('a', 'c')), (8, 16), mesh(a=2, b=2, c=2))
  )
  assert set(found.groups) == {(0, 1, 4, 5), (2, 3, 6, 7)}


def test_compiler_made_collectives_over_parts_of_an_axis():
  on = mesh(data=8)
  fn = jax.jit(
    lambda x: x.reshape(2, 2, 2, 64).sum(1),
    in_shardings=NamedSharding(on, P('data')),
    out_shardings=NamedSharding(on, P()),
  )
  found = hlo.collectives(fn.lower(jnp.zeros((8, 64))).compile())
  reduced = next(c for c in found if c.kind == 'all-reduce')
  assert set(reduced.groups) == {(0, 2), (1, 3), (4, 6), (5, 7)}
  for collective in found:
    assert sorted(sum(collective.groups, ())) == list(range(8))


def test_tuple_all_reduce_keeps_every_operand():
  def fn(x):
    return lax.psum((x, x[:, :3], x.astype(jnp.int32)), 'data')

  found = hlo.collectives(compiled(fn, (8, 100), mesh(data=8), out=P()))
  assert sum(c.operand_bytes for c in found) == 400 + 12 + 400
  assert sum(c.result_bytes for c in found) == 400 + 12 + 400
  assert {d for c in found for d in c.dtype.split('+')} == {'float32', 'int32'}


def test_all_to_all_and_reduce_scatter():
  on = mesh(data=8)
  exchanged = only(
    compiled(lambda x: lax.all_to_all(x, 'data', 1, 0, tiled=True), (8, 64), on)
  )
  assert (exchanged.kind, exchanged.operand_bytes) == ('all-to-all', 256)
  scattered = only(
    compiled(lambda x: lax.psum_scatter(x[0], 'data', tiled=True), (8, 64), on)
  )
  assert scattered.kind == 'reduce-scatter'
  assert (scattered.operand_bytes, scattered.result_bytes) == (256, 32)


def test_permute_pairs():
  ring = [(i, (i + 1) % 8) for i in range(8)]
  found = only(
    compiled(lambda x: lax.ppermute(x, 'data', ring), (8, 64), mesh(data=8))
  )
  assert set(found.pairs) == set(ring)
  assert found.groups == ()
  assert found.sent_bytes == 256
  assert 'ppermute' in found.op_name


def test_scan_in_scan():
  def inner(x):
    return lax.scan(lambda c, _: (lax.psum(c, 'data'), None), x, None, 5)[0]

  def outer(x):
    return lax.scan(lambda c, _: (inner(c), None), x, None, 3)[0]

  assert only(compiled(outer, (8, 64), mesh(data=8))).count == 15


def test_loop_that_depends_on_data():
  def fn(x):
    return lax.while_loop(
      lambda c: c[0, 0] < 9, lambda c: lax.psum(c, 'data') + 1, x
    )

  program = compiled(fn, (8, 64), mesh(data=8))
  with pytest.raises(ValueError, match='unknown number of times'):
    hlo.collectives(program)
  assert only(program, unknown_trips=4).count == 4


def test_heaviest_branch():
  def fn(x):
    return lax.switch(
      x[0, 0].astype(int),
      [
        lambda x: x + lax.psum(x[:, :2], 'data').sum(),
        lambda x: lax.psum(x, 'data'),
        lambda x: x,
      ],
      x,
    )

  found = hlo.collectives(compiled(fn, (8, 64), mesh(data=8)))
  assert [c.operand_bytes for c in found] == [256]


def test_axis_of_size_one_and_no_axis():
  on = mesh(a=8, b=1)
  for found in hlo.collectives(
    compiled(lambda x: lax.psum(x, 'b'), (8, 64), on)
  ):
    assert (found.group_size, found.sent_bytes) == (1, 0)
  alone = jax.jit(lambda x: x * 2).lower(jnp.zeros(8)).compile()
  assert hlo.collectives(alone) == []


@pytest.mark.parametrize(
  'what', ['text', 3, None, jax.jit(lambda x: x), 'HloModule m\n']
)
def test_no_program(what):
  with pytest.raises(ValueError, match='compiled='):
    hlo.collectives(what)


def test_lowered_is_not_compiled():
  with pytest.raises(ValueError, match='no compiled program'):
    hlo.collectives(jax.jit(lambda x: x).lower(1.0))


def test_gpu_text():
  found = {c.channel: c for c in hlo.collectives(recorded('gpu'))}
  assert sorted(found) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
  assert {n: (c.kind, c.group_size) for n, c in found.items()} == {
    1: ('all-reduce', 4),
    2: ('all-gather', 8),
    3: ('all-reduce', 8),
    4: ('collective-permute', 2),
    5: ('reduce-scatter', 8),
    6: ('reduce-scatter', 4),
    7: ('collective-broadcast', 8),
    8: ('ragged-all-to-all', 8),
    9: ('send', 2),
  }
  assert {n: c.sent_bytes for n, c in found.items()} == {
    1: 24576,  # 2 * 3/4 * 16384
    2: 114688,  # 7 * 16384
    3: pytest.approx(2 * 7 / 8 * (16384 + 12)),
    4: 16384,
    5: 14336,  # 7/8 * 16384
    6: 12288,  # 3/4 * 16384
    7: 16384,
    8: 16384,
    9: 16384,
  }
  assert {n: c.result_bytes for n, c in found.items() if n != 9} == {
    1: 16384,
    2: 131072,
    3: 16396,
    4: 16384,
    5: 2048,
    6: 2048,
    7: 16384,
    8: 16384,
  }
  assert found[3].dtype == 'float32+bfloat16'
  assert found[3].shapes == ((4096,), (3, 2))
  assert found[6].groups == ((0, 2, 4, 6), (1, 3, 5, 7))


def test_tpu_slices():
  first, permuted, exchanged, gathered, inside, ring = hlo.collectives(
    recorded('tpu_two_slices')
  )
  assert (first.kind, first.group_size) == ('all-reduce', 3)
  assert first.groups[1] == (100001, 200001, 300001)
  assert first.sent_bytes * 3 == 2 * 2 * 4 * 128 * 512
  assert permuted.pairs == ((100003, 200000), (200003, 100000))
  assert permuted.kind == 'collective-permute'
  assert (exchanged.kind, exchanged.sent_bytes) == ('all-to-all', 8192)
  assert (gathered.kind, gathered.sent_bytes) == ('all-gather', 16384)
  assert (inside.kind, inside.sent_bytes) == ('all-gather', 3 * 262144)
  assert ring.kind == 'collective-permute'
  slices = [c.between_slices for c in (first, permuted, exchanged, gathered)]
  assert slices == [True] * 4
  assert not inside.between_slices
  assert not ring.between_slices


@pytest.mark.parametrize(
  ('first', 'bound', 'step', 'direction', 'trips'),
  [
    (0, 3, 1, 'LT', 3),
    (0, 3, 1, 'LE', 4),
    (2, 9, 3, 'LT', 3),
    (9, 2, -3, 'GT', 3),
    (9, 0, -3, 'GE', 4),
    (0, 6, 2, 'NE', 3),
    (5, 3, 1, 'LT', 0),
  ],
)
@pytest.mark.parametrize('mirrored', [False, True])
def test_trips_of_a_tpu_loop(first, bound, step, direction, trips, mirrored):
  turned = {'LT': 'GT', 'GT': 'LT', 'LE': 'GE', 'GE': 'LE', 'NE': 'NE'}
  program = recorded(
    'tpu_loop',
    first=first,
    bound=bound,
    step=step,
    direction=turned[direction] if mirrored else direction,
    compared='%bound, %i' if mirrored else '%i, %bound',
  )
  assert only(program).count == trips


def test_loop_that_never_ends_is_unknown():
  program = recorded(
    'tpu_loop', first=0, bound=3, step=-1, direction='LT', compared='%i, %bound'
  )
  with pytest.raises(ValueError, match='while'):
    hlo.collectives(program)


def test_tpu_fusions_count_once():
  gathered, scattered = hlo.collectives(recorded('tpu_fused'))
  assert gathered.sent_bytes == 15 * 128 * 2048 * 2
  assert (scattered.kind, scattered.sent_bytes) == ('reduce-scatter', 15 * 256)


@pytest.mark.parametrize(
  ('groups', 'header', 'attributes', 'size'),
  [
    ('{}', 'replica_count=4', '', 4),
    ('{}', 'num_partitions=8', 'channel_id=1, ', 8),
    ('{{0}}', 'num_partitions=8', 'channel_id=1, ', 8),
    ('{{0,1},{2,3}}', 'replica_count=4', '', 2),
    (
      '{{0},{1}}',
      'replica_count=2, num_partitions=2',
      'channel_id=1, use_global_device_ids=true, ',
      1,
    ),
  ],
)
def test_who_the_ids_stand_for(groups, header, attributes, size):
  program = recorded(
    'group_ids',
    header=header,
    attributes=f'{attributes}replica_groups={groups}',
  )
  assert only(program).group_size == size


@pytest.mark.parametrize(
  ('notation', 'device_ids', 'groups'),
  [
    ('{{0,1},{2,3}}', None, [[0, 1], [2, 3]]),
    ('{{0}}', None, [[0]]),
    ('[2,4]<=[8]', None, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('[4,2]<=[2,4]T(1,0)', None, [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['d'=4] {'d'}", None, [[0, 1, 2, 3]]),
    ("mesh['a'=2,'b'=1] {'b'}", None, [[0], [1]]),
    ("mesh['a'=2,'b'=2] {'b','a'}", None, [[0, 2, 1, 3]]),
    ("mesh['d'=8] {'d':(2)2}", None, [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['d'=8] {'d':(1)2,'d':(4)2}", None, [[0, 1, 4, 5], [2, 3, 6, 7]]),
    (
      "mesh['a'=2,'b'=2,'c'=1,'d'=2]",
      "([2,2,2]T(0,2,1)) {'b'}",
      [[0, 1], [2, 3], [4, 5], [6, 7]],
    ),
    ("mesh['a'=2,'b'=2]", "(3,1,2,0) {'b'}", [[3, 1], [2, 0]]),
  ],
)
def test_group_notations(notation, device_ids, groups):
  found = parse_groups(notation, device_ids)
  assert sorted(map(list, found)) == sorted(groups)


def test_other_notations():
  assert parse_groups('{}') is None
  assert parse_pairs('{{0,1},{1,0}}') == ((0, 1), (1, 0))
  assert parse_pairs('') == ()
  assert parse_slice_groups('{1,2}x{0,3}') == (
    (100000, 200000),
    (100003, 200003),
  )
  with pytest.raises(ValueError, match='replica_groups'):
    parse_groups('<new>')


@pytest.mark.parametrize(
  ('shape', 'dtype', 'dims', 'nbytes'),
  [
    ('f32[]', 'float32', (), 4),
    ('bf16[3,2]{1,0:T(8,128)(2,1)S(1)}', 'bfloat16', (3, 2), 12),
    ('pred[9]{0}', 'bool', (9,), 9),
    ('s4[9]{0}', 'int4', (9,), 9),
    ('s4[9]{0:E(4)}', 'int4', (9,), 5),
    ('u2[9]{0:T(1024)E(2)}', 'uint2', (9,), 3),
    ('f8e4m3fn[7]{0}', 'float8_e4m3fn', (7,), 7),
    ('f8e5m2[7]{0}', 'float8_e5m2', (7,), 7),
    ('c64[2]', 'complex64', (2,), 16),
    ('f64[0,3]', 'float64', (0, 3), 0),
    ('f32[<=16,2]{1,0}', 'float32', (16, 2), 128),
  ],
)
def test_array_shapes(shape, dtype, dims, nbytes):
  assert hlo_text.arrays(shape) == ((dtype, dims, nbytes),)
  if dtype not in ('int4', 'uint2'):
    assert np.prod(dims, dtype=int) * jnp.dtype(dtype).itemsize == nbytes


def test_truncated_text():
  with pytest.raises(ValueError, match='compiled'):
    hlo.collectives(
      recorded('gpu').replace('%p = f32[4096]{0} parameter(0)', '')
    )
