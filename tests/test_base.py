"""What a user names, and how it is refused."""

import functools

import pytest

from bandwidth.base import check_type, make_named


def scaled(x: float, *, by: int = 2, kind: str | None = None):
  return x * by, kind


def passing(*, x: float = 0.0, **options):
  return {'x': x, **options}


MAKERS = {
  'scaled': scaled,
  'passing': passing,
  'partial': functools.partial(scaled, by=5),
}


def test_makers_get_what_they_ask_for():
  assert make_named('cost', 'scaled', MAKERS, {'by': 3}, x=2.0) == (6.0, None)
  assert make_named('cost', 'partial', MAKERS, {'x': 2}, y=1) == (10, None)
  found = make_named('cost', 'passing', MAKERS, {'z': 1}, x=3.0, y=1)
  assert found == {'x': 3.0, 'z': 1}


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('scald', {}, r"^cost.name='scald' is unknown; known: .*'scaled'\?$"),
    (['scaled'], {}, r"^cost.name=\['scaled'\] is unknown"),
    (None, {}, '^cost.name=None is unknown'),
    ('scaled', {'bye': 1}, r"^cost.bye is no argument of .*an 'by'\?$"),
    ('scaled', {'x': 1}, "^cost.x is no argument of 'scaled'; known: by, kind"),
    ('passing', {'x': 1}, "^cost.x is no argument of 'passing'; known: none"),
    ('scaled', {'by': 1.5}, '^cost.by=1.5 is no integer$'),
    ('scaled', {'by': True}, '^cost.by=True is no integer$'),
  ],
)
def test_what_makers_do_not_take(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    make_named('cost', name, MAKERS, arguments, x=1.0)


def test_what_makers_need():
  with pytest.raises(ValueError, match=r"^cost: 'scaled' needs x$"):
    make_named('cost', 'scaled', MAKERS, {})


@pytest.mark.parametrize(
  ('value', 'kind', 'word'),
  [
    (1, bool, 'boolean'),
    (1.0, int, 'integer'),
    (True, float, 'number'),
    ('1', float, 'number'),
    (1, str, 'string'),
    ('ab', tuple, 'list'),
    (None, str, 'string'),
  ],
)
def test_types(value, kind, word):
  with pytest.raises(ValueError, match=f'^a={value!r} is no {word}$'):
    check_type('a', value, kind)


def test_integers_are_numbers_and_other_types_are_not_checked():
  check_type('a', 1, float)
  check_type('a', [1], tuple)
  check_type('a', 'x', list[int])
