import json

import pytest

from experiments.benchmark.engineer.summary import summarized
from experiments.reports import search

DEFAULT = 'cma_es_dynamic'
FACTS = {'command': 'python -m it', 'device': '1 x cpu', 'commit': 'a' * 40}


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content), 'utf-8')


def write_rows(results, name, rows):
  write(results / 'benchmark' / f'{name}.json', {**FACTS, 'rows': rows})


def cell(searcher, seed, loss, accuracy, *, network='net', budget=0.5):
  return {
    'network': network,
    'budget': budget,
    'searcher': searcher,
    'seed': seed,
    'evaluations': 1200,
    'cost': 0.49,
    'check_loss': loss,
    'accuracy': accuracy,
    'tuned': accuracy + 0.1,
    'seconds': 2.0,
  }


def joint(way, seed, loss, accuracy):
  return {
    'network': 'net',
    'bytes_budget': 20000,
    'way': way,
    'seed': seed,
    'file_bytes': 19000 + 100 * seed,
    'check_loss': loss,
    'check_accuracy': accuracy,
    'test_accuracy': accuracy,
    'evaluations': 400,
  }


def outcome(dataset='cifar10'):
  frontier = [
    {'searcher': 'whole', 'cost': 1.0, 'accuracy': 0.93, 'loss': 0.21},
    {'searcher': 'searched', 'cost': 0.4871, 'accuracy': 0.91, 'loss': 0.25},
    {'searcher': 'uniform', 'cost': 0.49, 'accuracy': 0.84, 'loss': 0.4},
  ]
  return {
    **FACTS,
    'config': {'dataset': {'name': dataset}},
    'searcher': {'name': DEFAULT},
    'evaluations': 200,
    'budget': 0.5,
    'cost': {'name': 'macs', 'fraction': 0.4871},
    'policy': [{'name': 'Conv_0', 'fraction': 9 / 16, 'label': '9'}],
    'score': {
      'check': frontier[1],
      'test': {'accuracy': 0.905, 'file_bytes': 123456},
    },
    'frontier': frontier,
    'seconds': {'total': 90.0},
  }


def report(seed, accuracy, size):
  return {
    **FACTS,
    'seed': seed,
    'accuracy': {'baseline': accuracy, 'final': accuracy},
    'seconds': 120.0,
    'memory': {'file_bytes': size},
  }


def test_nothing_is_there(tmp_path):
  text = '# Search of compression policies\n'
  assert search.tables(tmp_path) == text
  assert search.plot(tmp_path) == []


def test_searchers_have_a_table_for_each_cell(tmp_path):
  cells = [
    cell('amc', 0, 0.5, 0.80),
    cell('amc', 1, 0.9, 0.70),
    cell(DEFAULT, 0, 0.4, 0.82),
    cell(DEFAULT, 1, 0.7, 0.74),
  ]
  write_rows(tmp_path, 'search', summarized(cells))
  others = [cell(DEFAULT, 0, 0.25, 0.5, network='wide', budget=0.07)]
  write_rows(tmp_path, 'search_equal_wide', summarized(others))
  lines = search.tables(tmp_path).splitlines()
  # Two values have half of their distance as standard error.
  assert (
    '| amc | 1,200 | 2 | 49.00% | 0.7000 ± 0.2000 | +0.1500 ± 0.0500 '
    '| 75.00 ± 5.00 | -3.00 ± 1.00 | 85.00 ± 5.00 | -3.00 ± 1.00 | 2.00 |'
  ) in lines
  assert (
    f'| {DEFAULT} | 1,200 | 1 | 49.00% | 0.2500 |  | 50.00 |  | 60.00 |  '
    '| 2.00 |'
  ) in lines
  of_one = '1 of 1 | 1 of 1 | 0 of 1'
  for other in ('amc', 'every other'):
    assert f'| {other} | {of_one} | {of_one} | {of_one} |' in lines
  assert '### net, budget 50 %' in lines
  assert '### wide, budget 7 %' in lines
  assert lines.count('`python -m it`; 1 x cpu; commit aaaaaaaaaa.') == 2


def test_times_and_frontiers(tmp_path):
  timing = {
    'network': 'net', 'evaluations': 800, 'traces': 1, 'compile_seconds': 3.5,
    'seconds': 4.0, 'ms_per_episode': 5.0, 'outside_evaluation': 0.25,
  }  # fmt: skip
  more = {**timing, 'evaluations': 1600, 'agent_seconds': 1.25}
  write_rows(tmp_path, 'search_timing', [timing, more])
  point = {
    'network': 'net', 'budget': 0.2, 'way': 'one pass', 'cost': 0.199,
    'error': 0.0123456, 'check_loss': 0.5, 'check_accuracy': 0.875,
    'same_candidate': True,
  }  # fmt: skip
  less = {**point, 'budget': 0.1, 'way': 'separate', 'same_candidate': False}
  write_rows(tmp_path, 'search_frontier', [point, less])
  lines = search.tables(tmp_path).splitlines()
  assert '| net | 800 | 1 | 3.50 | 4.00 | 5.00 | 25.0% |  |' in lines
  assert '| net | 1,600 | 1 | 3.50 | 4.00 | 5.00 | 25.0% | 1.25 |' in lines
  smaller = lines.index(
    '| 10 % | separate | 19.90% | 0.012346 | 0.5000 | 87.50 | no |'
  )
  assert lines[smaller + 1].startswith('| 20 % | one pass |')
  assert lines[smaller + 1].endswith('| yes |')


def test_joint_search_is_paired_by_seed(tmp_path):
  rows = [
    joint('joint', 0, 0.2, 0.90),
    joint('joint', 1, 0.4, 0.86),
    joint('quantize', 0, 0.3, 0.89),
    joint('quantize', 1, 0.7, 0.83),
  ]
  write_rows(tmp_path, 'search_joint', rows)
  lines = search.tables(tmp_path).splitlines()
  assert '### net, at most 20,000 bytes' in lines
  assert (
    '| joint | 2 | 400 | 19,050 | 0.3000 ± 0.1000 |  | 88.00 ± 2.00 |  '
    '| 88.00 ± 2.00 |  |'
  ) in lines
  assert (
    '| quantize | 2 | 400 | 19,050 | 0.5000 ± 0.2000 | +0.2000 ± 0.1000 '
    '| 86.00 ± 3.00 | -2.00 ± 1.00 | 86.00 ± 3.00 | -2.00 ± 1.00 |'
  ) in lines


def test_an_accuracy_in_per_cent_is_refused(tmp_path):
  write_rows(tmp_path, 'search_joint', [joint('joint', 0, 0.2, 90.0)])
  with pytest.raises(ValueError, match=r'check_accuracy=90.0 is not in \[0, 1'):
    search.tables(tmp_path)


def test_kept_searches_and_what_became_of_them(tmp_path):
  write(tmp_path / 'net' / 'search_0.json', outcome())
  for seed, accuracy in ((0, 0.91), (1, 0.93)):
    found = report(seed, accuracy, 1000 + 100 * seed)
    write(tmp_path / 'net-policy' / f'{seed}.json', found)
    write(tmp_path / 'net-whole' / f'{seed}.json', report(seed, 0.94, 5000))
  lines = search.tables(tmp_path).splitlines()
  assert (
    f'| net, 0 | 48.7 % of macs (at most 50 %) | {DEFAULT} | 200 | 0.2500 '
    '| 0.2100 | 91.00 | 93.00 | 90.50 | 123,456 | 1.5 | 1 x cpu | aaaaaaaaaa '
    '| `python -m it` |'
  ) in lines
  assert (
    '| net, smaller | 0 1 | 92.00 ± 1.00 | -2.00 ± 1.00 | 1,050 | 2.0 '
    '| 1 x cpu | `python -m it` |'
  ) in lines
  assert any(
    line.startswith('| net, whole | 0 1 | 94.00 ± 0.00 |  | 5,000 |')
    for line in lines
  )
  assert any('ResNet-56, cifar10 | 50% | 92.8 | 91.9 |' in x for x in lines)


def test_published_numbers_stand_beside_their_data_set_only(tmp_path):
  write(tmp_path / 'net' / 'search_0.json', outcome('mnist'))
  write(tmp_path / 'net-policy' / '0.json', report(0, 0.91, 1000))
  text = search.tables(tmp_path)
  assert '| net, smaller | 0 | 91.00 |  |' in text
  assert 'ResNet-56' not in text


def test_plots(tmp_path):
  cells = [
    cell(name, seed, 0.5 - budget / 2 + seed / 50, 0.5, budget=budget)
    for name in ('amc', DEFAULT)
    for budget in (0.1, 0.2)
    for seed in (0, 1)
  ]
  one = [cell('uniform', 0, 0.3, 0.5, network='wide')]
  write_rows(tmp_path, 'search', summarized([*cells, *one]))
  write(tmp_path / 'net' / 'search_0.json', outcome())
  counts = [{'group': 'Conv_0', 'channels': 16, 'kept': 9}]
  other = {**outcome(), 'policy': counts}
  write(tmp_path / 'net' / 'search_1.json', other)
  drawn = search.plot(tmp_path)
  assert [path.relative_to(tmp_path / 'plots').name for path in drawn] == [
    'search_searchers.png',
    'net_frontier.png',
    'net_policy.png',
    'net_frontier_1.png',
    'net_policy_1.png',
  ]
  images = [path.read_bytes() for path in drawn]
  assert all(image.startswith(b'\x89PNG') for image in images)
  assert images[1:3] == images[3:]
  assert [p.read_bytes() for p in search.plot(tmp_path)] == images
