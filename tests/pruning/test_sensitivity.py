import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import pruning

NET = {
  'a[0]': {'kernel': jnp.array([[1.0, -2.0], [3.0, 4.0]]), 'bias': jnp.ones(2)},
  'b': jnp.array([[10.0, 20.0]]),
}


@jax.jit
def loss(net):
  return sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(net))


def test_scan_prunes_one_parameter_at_a_time():
  rows = pruning.sensitivity_scan(loss, NET, [0.0, 0.5, 1.0])
  table = [(r.name, r.sparsity, r.kept, r.change) for r in rows]
  assert table == [
    ('a[0]/kernel', 0.0, 4, 0.0),
    ('a[0]/kernel', 0.5, 2, -3.0),
    ('a[0]/kernel', 1.0, 0, -10.0),
    ('b', 0.0, 2, 0.0),
    ('b', 0.5, 1, -10.0),
    ('b', 1.0, 0, -30.0),
  ]
  assert all(r.value == 42.0 + r.change for r in rows)
  assert rows[0].size == 4


def test_scan_with_channels_and_rules():
  rules = [('a.*kernel', True), ('.*', False)]
  rows = pruning.sensitivity_scan(
    loss, NET, [0.5], structure=pruning.channel(), rules=rules
  )
  assert [(r.name, r.kept, r.change) for r in rows] == [
    ('a[0]/kernel', 2, -4.0)
  ]


def test_bad_arguments():
  with pytest.raises(ValueError, match='sparsities=2'):
    pruning.sensitivity_scan(loss, NET, [2])
  with pytest.raises(ValueError, match='no parameter is prunable'):
    pruning.sensitivity_scan(loss, {'b': jnp.ones(2)})
  with pytest.raises(ValueError, match='not finite'):
    pruning.sensitivity_scan(lambda p: np.nan, NET)
