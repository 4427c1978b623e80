import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import tree
from bandwidth.base import unknown_name

PARAMS = {
  'Conv_0': {'bias': np.zeros(2), 'kernel': np.ones((3, 3, 1, 2))},
  'Dense_0': {'kernel': np.array([[0.0, 1.0]])},
}


def test_names_follow_the_order_of_leaves():
  assert tree.names(PARAMS) == [
    'Conv_0/bias',
    'Conv_0/kernel',
    'Dense_0/kernel',
  ]


def test_names_of_sequences_and_named_tuples():
  import optax

  state = optax.sgd(0.1, momentum=0.9).init({'w': jnp.zeros(1)})
  assert tree.names(state) == ['0/trace/w']
  assert tree.names([1, (2, 3)]) == ['0', '1/0', '1/1']


def test_first_matching_rule_wins():
  rules = [('Conv_0/.*', 8), ('.*/kernel', 4)]
  assert tree.match_rules(rules, PARAMS) == {
    'Conv_0/bias': 8,
    'Conv_0/kernel': 8,
    'Dense_0/kernel': 4,
  }


def test_rules_match_whole_names():
  with pytest.raises(ValueError, match='no rule matches Dense_0/kernel'):
    tree.match_rules([('Conv_0/.*', 8), ('Dense', 4)], PARAMS)


def test_all_uncovered_leaves_are_listed():
  with pytest.raises(ValueError, match=r'bits: .*Conv_0/bias, Conv_0/kernel'):
    tree.match_rules([('Dense_0/.*', 4)], PARAMS, argument='bits')


def test_unused_rules_are_listed():
  rules = [('.*', 4), ('Dense_9/.*', 2), ('Conv_0/.*', 1)]
  with pytest.raises(ValueError, match=r"'Dense_9/\.\*', 'Conv_0/\.\*'"):
    tree.match_rules(rules, PARAMS)


def test_malformed_expressions_are_named():
  with pytest.raises(ValueError, match=r"bad expression '\(': "):
    tree.match_rules([('(', 4)], PARAMS)


def test_sizes_of_concrete_and_abstract_trees():
  abstract = jax.eval_shape(
    lambda: {'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': jnp.zeros(())}
  )
  assert tree.size(abstract) == 7
  assert tree.nbytes(abstract) == 16
  assert tree.count_nonzero(PARAMS) == 19
  assert tree.size({}) == tree.nbytes([]) == 0


def test_map_named_passes_corresponding_leaves():
  doubled = tree.map_named(lambda name, a, b: (name, a + b), {'x': 1}, {'x': 2})
  assert doubled == {'x': ('x', 3)}


def test_unknown_names_without_a_near_one():
  assert unknown_name('a', 'zzz', ['pmap']) == "a='zzz' is unknown; known: pmap"
