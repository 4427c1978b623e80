"""Lists parameters of tests that are left to the slow tier, in `slow.txt`.

    python -m pytest -n 2 --junitxml=fast.xml
    python -m tests.slow fast.xml

Of the parameters of one test, those above so many CPU seconds are slow, but for
the one that takes the least: each kind of test stays among the fast ones. What
is listed already stays so; an empty `slow.txt` before the run begins anew.
"""

import collections
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

LIST = pathlib.Path(__file__).with_name('slow.txt')
MOST = 0.7


def measured(path):
  """Node ids and CPU seconds of the parametrized tests of a report."""
  for case in ElementTree.parse(path).getroot().iter('testcase'):
    name, folder = case.get('name'), case.get('classname')
    properties = {p.get('name'): p.get('value') for p in case.iter('property')}
    if '[' in name and folder.startswith('tests.'):
      node = f'{folder.replace(".", "/")}.py::{name}'
      yield node, float(properties['cpu_seconds'])


def above(seconds):
  """Those above `MOST` but for the least of each test, of seconds by id."""
  tests = collections.defaultdict(list)
  for node, taken in seconds.items():
    tests[node.partition('[')[0]].append((taken, node))
  return {
    node
    for own in tests.values()
    for taken, node in sorted(own)[1:]
    if taken > MOST
  }


def main(report):
  """Adds to the list what a report shows."""
  listed = set(LIST.read_text('utf-8').splitlines())
  listed |= above(dict(measured(report)))
  LIST.write_text('\n'.join(sorted(listed)) + '\n', 'utf-8')
  print(f'{len(listed)} in {LIST}')


if __name__ == '__main__':
  main(sys.argv[1])
