"""What every function over trees must survive: the containers of the field.

A function gives for the same leaves the same values, whatever holds them, as it
does for a dictionary; what is shaped as the parameters keeps their structure,
None and empty containers included.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandwidth import coding, collectives, inference, pruning, quantization
from bandwidth import tree as tree_lib
from bandwidth.collectives.wire.message import pack
from bandwidth.collectives.workers.resplit import flush_of, resplit_of
from bandwidth.inference.planning import Timing
from bandwidth.search.decisions.options import channel_order

WORKERS = 2


class Pair(NamedTuple):
  kernel: Any
  bias: Any = None


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['kernel', 'bias'],
  meta_fields=['units'],
)
@dataclasses.dataclass
class Layer:
  kernel: Any
  bias: Any
  units: int = 6


@jax.tree_util.register_pytree_node_class
class Bare:
  """A node that names none of its parts."""

  def __init__(self, *parts):
    self.parts = parts

  def tree_flatten(self):
    return self.parts, None

  @classmethod
  def tree_unflatten(cls, aux, parts):
    del aux
    return cls(*parts)


def frozen(a, b, c):
  from flax.core import freeze

  return freeze({'x': {'a': a, 'b': b}, 'y': {'c': c}})


def nnx_state(a, b, c):
  from flax import nnx

  return nnx.State(
    {'x': {'a': nnx.Param(a), 'b': nnx.Param(b)}, 'y': nnx.Param(c)}
  )


def equinox_partition(a, b, c):
  eqx = pytest.importorskip('equinox')
  model = eqx.nn.MLP(6, 6, 4, depth=1, key=jax.random.key(0))
  model = eqx.tree_at(lambda m: m.layers[0].weight, model, a)
  model = eqx.tree_at(lambda m: m.layers[0].bias, model, b)
  model = eqx.tree_at(lambda m: m.layers[1].weight, model, c)
  model = eqx.tree_at(lambda m: m.layers[1].bias, model, None)
  return eqx.partition(model, eqx.is_array)[0]


def everything(a, b, c):
  return {
    'a': frozen(None, Bare(a), ()),
    'b': Layer({'masked': optax.MaskedNode(), 'x': [b]}, {}),
    'c': Pair(nnx_state(None, c, {}), (None, {})),
  }


TREES = {
  'none': (
    lambda a, b, c: {'x': {'a': a, 'b': b, 'n': None}, 'y': c, 'z': None},
    ['x/a', 'x/b', 'y'],
  ),
  'masked_node': (
    lambda a, b, c: {'x': a, 'xx': optax.MaskedNode(), 'y': b, 'z': [c]},
    ['x', 'y', 'z/0'],
  ),
  'frozen_dict': (frozen, ['x/a', 'x/b', 'y/c']),
  'nnx_state': (nnx_state, ['x/a', 'x/b', 'y']),
  'dataclass': (
    lambda a, b, c: {'x': Layer(a, b), 'y': Layer(c, None)},
    ['x/kernel', 'x/bias', 'y/kernel'],
  ),
  'bare_node': (
    lambda a, b, c: Bare(a, Bare(None, b), c),
    ['0', '1/1', '2'],
  ),
  'named_tuple': (
    lambda a, b, c: (Pair(a, b), Pair(c)),
    ['0/kernel', '0/bias', '1/kernel'],
  ),
  'empty': (
    lambda a, b, c: {'a': a, 'b': [{}, b, ()], 'c': (c, {}), 'd': {}},
    ['a', 'b/1', 'c/0'],
  ),
  'sequences': (lambda a, b, c: [a, (b, [c])], ['0', '1/0', '1/1/0']),
  'everything': (everything, ['a/x/b/0', 'b/kernel/x/0', 'c/kernel/x/b']),
  'equinox': (
    equinox_partition,
    ['layers/0/weight', 'layers/0/bias', 'layers/1/weight'],
  ),
}


def leaves(seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((4, 6), (6,), (6, 4))
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def as_dict(a, b, c):
  return {'a': a, 'b': b, 'c': c}


class Given(NamedTuple):
  """The same leaves in one container."""

  params: Any
  grads: Any
  masks: Any


def given(make):
  masks = [jnp.abs(a) > 0.5 for a in leaves()]
  masks[1] = jnp.ones((), bool)
  return Given(make(*leaves()), make(*leaves(1)), make(*masks))


def reducer(factory, **arguments):
  """A step and a flush of two workers, bytes, another number of workers.

  The programs are compared, which is cheaper than to run them: the same program
  on the same leaves gives the same values.
  """

  def run(g):
    made = factory('data', **arguments)
    state = collectives.stack_states(made.init(g.params), WORKERS)
    structures = []

    def flat(*leaves):
      grads, state = jax.tree.unflatten(structure, leaves)

      def worker(grads, state):
        mean, state = made.reduce(grads, state, g.params)
        pending, state = flush_of(made)(state, g.params)
        structures.append((mean, pending))
        return mean, pending, state

      mapped = jax.vmap(worker, axis_name='data')
      return jax.tree.leaves(mapped(grads, state))

    leaves, structure = jax.tree.flatten(
      (collectives.stack_states(g.grads, WORKERS), state)
    )
    program = jax.jit(flat).lower(*leaves).as_text()
    shaped = jax.tree.map(lambda x: jnp.zeros(x.shape), structures[-1])
    dealt = resplit_of(made, WORKERS)(state, g.params, workers=WORKERS)
    sent = made.wire_bytes(g.params, 4)
    return list(shaped), (program, sent, jax.tree.leaves(dealt))

  return run


def groups(g):
  names = tree_lib.names(g.params)
  return [
    pruning.ChannelGroup(
      name='hidden',
      channels=6,
      outputs=(
        pruning.ChannelAxis(name=names[0], axis=-1),
        pruning.ChannelAxis(name=names[1], axis=0),
      ),
      inputs=(pruning.ChannelAxis(name=names[2], axis=0),),
    )
  ]


def optimized(make):
  """Two updates by a transformation."""

  def run(g):
    tx = optax.with_extra_args_support(make(g))
    params, state = g.params, tx.init(g.params)
    for _ in range(2):
      updates, state = tx.update(g.grads, state, params, grads=g.grads)
      params = optax.apply_updates(params, updates)
    return [params], jax.tree.leaves(state)

  return run


def trained(parameterization):
  def run(g):
    variables = parameterization.init(g.params)
    exported = parameterization.export(variables)
    decoded = [tensor.decode() for tensor in exported.values()]
    return [parameterization.decode(variables)], decoded

  return run


def rate(g):
  group = quantization.RateGroup(name='all')
  model = quantization.rate_model([('.*', group)])
  variables = model.init(g.params)
  bits = list(model.bits_by_name(variables).values())
  return [model.decode(variables), variables.latents], (
    bits,
    model.side_bits(variables),
    [levels.levels for levels in model.export(variables).values()],
  )


def shared(g):
  rules = [('.*', quantization.Sharing(entries=3, reserve_zero=True))]
  found = quantization.share_params(g.params, rules)
  tx = quantization.share_gradients(rules)
  state = tx.init(found.params)
  updates, state = tx.update(g.grads, state, found.params)
  books = quantization.read_codebooks(found.params, state, rules)
  assert list(books) == list(found.codebooks) == tree_lib.names(g.params)
  return [found.params, updates], [b.decode() for b in books.values()]


def shared_behind_masks(g):
  rules = [('.*', 2)]
  masks = pruning.magnitude_masks(g.params, 0.5)
  found = quantization.share_params(g.params, rules, masks=masks)
  return [found.params], [b.codes for b in found.codebooks.values()]


def file(g):
  named = dict(tree_lib.named_leaves(g.params))
  reader = coding.decode(coding.encode(named))
  assert list(reader) == tree_lib.names(g.params)
  back = tree_lib.fill(g.params, {name: reader.array(name) for name in reader})
  nested = tree_lib.nested((name, reader.array(name)) for name in reader)
  return [back], [dict(tree_lib.named_leaves(nested))[n] for n in named]


def planned(g):
  packed = jax.tree.map(
    lambda x: (
      inference.uniform_matrix(
        np.int8(np.round(np.clip(x * 40, -127, 127))), np.float32(1 / 40)
      )
      if x.ndim == 2
      else x
    ),
    g.params,
  )
  table = [
    Timing(kind, weights, 1, seconds, (64, 64))
    for kind, seconds in (('dense', 2e-3), ('uniform', 1e-3))
    for weights in (10, 10_000)
  ]
  plan = inference.plan_inference(packed, table)
  kept = jax.tree.map(lambda x: x, plan.params, is_leaf=inference.is_matrix)
  assert list(plan.choices) == [
    name for name, x in tree_lib.named_leaves(g.params) if x.ndim == 2
  ]
  dense = jax.tree.map(
    lambda x: inference.decode(x) if inference.is_matrix(x) else x,
    kept,
    is_leaf=inference.is_matrix,
  )
  return [dense], [choice.kind for choice in plan.choices.values()]


def scanned(g):
  def evaluate(params):
    return sum(float(jnp.sum(x)) for x in jax.tree.leaves(params))

  rows = pruning.sensitivity_scan(evaluate, g.params, [0.5])
  return [], [(row.kept, row.value, row.change) for row in rows]


def distributed(distribution):
  return lambda g: ([], list(distribution(g.params, 0.5).values()))


FUNCTIONS = {
  'names': lambda g: (
    [tree_lib.map_named(lambda name, x, y: x + y, g.params, g.grads)],
    (
      len(tree_lib.match_rules([('.*', 1)], g.params)),
      tree_lib.size(g.params),
      tree_lib.nbytes(g.params),
      tree_lib.count_nonzero(g.params),
    ),
  ),
  'apply_masks': lambda g: ([pruning.apply_masks(g.params, g.masks)], ()),
  'magnitude_masks': lambda g: ([pruning.magnitude_masks(g.params, 0.5)], ()),
  'prune_params': lambda g: (
    list(
      pruning.prune_params(
        g.params,
        0.5,
        score=pruning.gradient,
        distribution=pruning.global_threshold,
        rules=[('.*', True)],
        grads=g.grads,
      )
    ),
    (),
  ),
  'random scores': lambda g: (
    [pruning.make_masks(g.params, 0.5, score=pruning.random, key=KEY)],
    (),
  ),
  'sparsity_report': lambda g: (
    [],
    [row[1:] for row in pruning.sparsity_report(g.params, g.masks)],
  ),
  'uniform': distributed(pruning.uniform),
  'erdos_renyi': distributed(pruning.erdos_renyi),
  'erdos_renyi_kernel': distributed(pruning.erdos_renyi_kernel),
  'global_threshold': distributed(pruning.global_threshold),
  'per_rule': distributed(pruning.per_rule([('.*', 0.5)])),
  'std_threshold': distributed(pruning.std_threshold(1.0)),
  'sensitivity_scan': scanned,
  'prune': optimized(
    lambda g: optax.chain(
      optax.adam(0.1), pruning.prune(pruning.cubic(0.5, end=2))
    )
  ),
  'prune by gradients': optimized(
    lambda g: optax.chain(
      optax.sgd(0.1), pruning.prune(0.5, score=pruning.gradient)
    )
  ),
  'keep_masks': optimized(
    lambda g: optax.chain(
      optax.sgd(0.1, momentum=0.9), pruning.keep_masks(g.masks)
    )
  ),
  'masked prune': optimized(
    lambda g: optax.chain(
      optax.sgd(0.1),
      optax.masked(
        pruning.prune(0.5), jax.tree.map(lambda x: x.ndim > 1, g.params)
      ),
    )
  ),
  'sparse_training': optimized(
    lambda g: pruning.sparse_training(
      optax.adam(0.1),
      lambda p: pruning.magnitude_masks(p, 0.5),
      end=9,
      frequency=1,
    )
  ),
  'keep_channels': lambda g: (
    [],
    [
      *pruning.keep_channels(g.params, groups(g), 0.5).values(),
      channel_order(g.params, groups(g)[0]),
    ],
  ),
  'remove_channels': lambda g: (
    [pruning.remove_channels(g.params, groups(g), {'hidden': [0, 3]})],
    (),
  ),
  'channel_masks': lambda g: (
    [pruning.channel_masks(g.params, groups(g), {'hidden': [0, 3]})],
    (),
  ),
  'share_params': shared,
  'share_params with masks': shared_behind_masks,
  'uniform_params': trained(quantization.uniform_params([('.*', 4)])),
  'learned_step_params': trained(quantization.learned_step_params([('.*', 4)])),
  'ternary_params': trained(quantization.ternary_params([('.*', 0.05)])),
  'rate_model': rate,
  'file': file,
  'plan_inference': planned,
  'pack': lambda g: ([pack(g.params).unpack(pack(g.params).vector)], ()),
  'dense_all_reduce': reducer(collectives.dense_all_reduce),
  'deep_gradient_compression': reducer(
    collectives.deep_gradient_compression,
    density=0.2,
    clip_norm=0.5,
    weight_decay=0.1,
    workers=WORKERS,
  ),
  'owner_sharded': reducer(
    collectives.sparse_all_reduce,
    density=0.2,
    exchange='owner_sharded',
    workers=WORKERS,
  ),
  'random_k': reducer(collectives.random_k, density=0.3),
  'shared_mask': reducer(collectives.shared_mask, density=0.3),
  'qsgd': reducer(collectives.qsgd),
  'terngrad': reducer(collectives.terngrad),
  'two_phase_quantized': reducer(
    collectives.two_phase_quantized, workers=WORKERS
  ),
  'power_sgd': reducer(collectives.power_sgd, rank=1),
}
# Reducers, and what compiles a program for each container.
SLOW = {
  *list(FUNCTIONS)[list(FUNCTIONS).index('dense_all_reduce') :],
  'prune',
  'prune by gradients',
  'masked prune',
  'sparse_training',
}
SLOW_KINDS = ('masked_node', 'everything', 'equinox')
KEY = jax.random.key(0)


@pytest.mark.parametrize('kind', TREES)
def test_names_are_what_a_reader_would_say(kind):
  make, names = TREES[kind]
  assert tree_lib.names(make(*leaves())) == names


@pytest.mark.parametrize('function', FUNCTIONS)
def test_any_container_gives_what_a_dictionary_gives(function):
  fn = FUNCTIONS[function]
  wanted = fn(given(as_dict))
  kinds = SLOW_KINDS if function in SLOW else TREES
  for kind in kinds:
    make, _ = TREES[kind]
    if kind == 'equinox' and not _has_equinox():
      continue
    g = given(make)
    shaped, plain = fn(g)
    structure = jax.tree.structure(g.params)
    for found, expected in zip(shaped, wanted[0], strict=True):
      assert jax.tree.structure(found) == structure, kind
      same(jax.tree.leaves(found), jax.tree.leaves(expected))
    same(plain, wanted[1])


def same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def _has_equinox():
  try:
    import equinox  # noqa: F401
  except ImportError:
    return False
  return True


def test_only_what_nodes_wrap_is_left_out_of_names():
  @functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['value', 'scale'],
    meta_fields=[],
  )
  @dataclasses.dataclass
  class Scaled:
    value: Any
    scale: Any

  params = {'value': 1, 'w': Scaled(2, 3), 'x': Scaled(4, None)}
  assert tree_lib.names(params) == ['value', 'w/value', 'w/scale', 'x']


def test_leaves_of_one_name_are_an_error():
  with pytest.raises(ValueError, match="two leaves have the name 'a/b'"):
    tree_lib.names({'a': {'b': 1}, 'a/b': 2})


def test_missing_and_unknown_names_are_listed():
  like = {'a': 0, 'b': [0, 0]}
  with pytest.raises(ValueError, match=r'b/0, b/1 have no value'):
    tree_lib.fill(like, {'a': 1})
  with pytest.raises(ValueError, match=r'c are no leaves'):
    tree_lib.fill(like, {'a': 1, 'b/0': 1, 'b/1': 1, 'c': 1})


def test_a_file_comes_back_in_the_structure_of_a_tree(tmp_path):
  params = Layer(np.ones((2, 3), np.float32), None)
  path = tmp_path / 'model.bwz'
  coding.write(path, dict(tree_lib.named_leaves(params)))
  back = coding.load_tree(path, like=params)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  np.testing.assert_array_equal(back.kernel, params.kernel)
