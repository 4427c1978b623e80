"""What benchmarks share: rows as they come, their file, and how runs end."""

import json

import pytest

from experiments.benchmark import __main__, harness
from experiments.benchmark.harness import Benchmark
from experiments.measuring.turns import Turns, in_place, take_turns
from experiments.runtime import options


def benchmark(measure, **more):
  known = {'count': options.integer(2), 'seed': options.integer(5)}
  return Benchmark(name='b', about='B.', options=known, measure=measure, **more)


def squares(given):
  given.facts['unit'] = 'one'
  for n in range(given.count):
    yield [{'n': n, 'square': n * n}]


def test_rows_are_shown_written_and_drawn(tmp_path, capsys):
  output, drawn = tmp_path / 'b.json', []

  def finish(rows, given):
    return [{**row, 'of': given.count} for row in rows]

  made = benchmark(
    squares,
    finish=finish,
    plot=lambda rows, _, path: drawn.append((rows, path)),
  )
  arguments = ['--count', '3', '--output', str(output), '--plot', 'p.png']
  assert made.main(arguments) == 0
  content = json.loads(output.read_text())
  assert content['rows'] == [
    {'n': n, 'square': n * n, 'of': 3} for n in range(3)
  ]
  assert (content['name'], content['unit'], content['seed']) == ('b', 'one', 5)
  assert content['seconds'] >= 0
  assert 'unfinished' not in content
  ((rows, path),) = drawn
  assert (rows, str(path)) == (content['rows'], 'p.png')
  said = capsys.readouterr()
  assert said.out.splitlines()[0].split() == ['n', 'square', 'of']
  assert said.err == ''


@pytest.mark.parametrize('status', [2, 130])
def test_what_was_measured_is_kept(tmp_path, capsys, status):
  def stopped(given):
    yield from squares(given)
    raise ValueError('no more') if status == 2 else KeyboardInterrupt

  output = tmp_path / 'b.json'
  assert benchmark(stopped).main(['--output', str(output)]) == status
  content = json.loads(output.read_text())
  assert [row['n'] for row in content['rows']] == [0, 1]
  assert content['unfinished'] is True
  (line,) = capsys.readouterr().err.splitlines()
  if status == 130:
    assert line == f'benchmark b: stopped after 2 parts; rows are in {output}'


def test_long_runs_say_how_far_they_are(monkeypatch, capsys):
  now = iter(range(0, 600, 6))
  monkeypatch.setattr(harness.time, 'monotonic', lambda: float(next(now)))
  made = benchmark(squares, parts=lambda given: given.count)
  assert made.main(['--count', '6']) == 0
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    'benchmark b: 2 of 6, 24 s left', 'benchmark b: 4 of 6, 12 s left',
  ]  # fmt: skip


def test_programs_take_turns():
  calls = []

  def timer(name, seconds):
    given = iter(seconds)

    def once():
      calls.append(name)
      return next(given)

    return once

  turns = take_turns(
    {'a': timer('a', [9, 2, 4, 6]), 'b': timer('b', [9, 1, 1, 6])}, 3
  )
  assert calls == ['a', 'b'] * 4
  assert isinstance(turns, Turns)
  assert (turns.median('a'), turns.fastest('b')) == (4, 1)
  assert turns.ratio('a', 'b') == 2


def test_state_is_handed_on():
  seen = []

  def call(state):
    seen.append(state)
    return 'out', state + 1

  timer = in_place(call, 0, lambda out: out[1])
  assert all(timer() >= 0 for _ in range(3))
  assert seen == [0, 1, 2]


def test_names(capsys):
  assert __main__.main(['btyes']) == 2
  error = capsys.readouterr().err
  assert "NAME='btyes' is unknown" in error
  assert error.count('\n') == 1
  assert __main__.main([]) == 2
  listed = capsys.readouterr().out
  assert all(f'  {name} ' in listed for name in __main__.BENCHMARKS)
