"""The table of a notebook: its columns as arrays, and how it is printed."""

import sys
import types

import numpy as np
import pytest

from transformer_jax.display.data_table import MOST_ROWS, Table

ROWS = [
    {'step': 50, 'split': 'train', 'loss': 2.5},
    {'step': 50, 'split': 'validation', 'loss': 2.25, 'bleu': 12.345678},
    {'step': 100, 'split': 'train', 'loss': float('inf')},
]


def test_columns_are_arrays():
    table = Table(ROWS)
    assert table.columns == ('step', 'split', 'loss', 'bleu')
    assert table['step'].dtype.kind == 'i'
    np.testing.assert_array_equal(table['loss'], [2.5, 2.25, np.inf])
    np.testing.assert_array_equal(table['bleu'], [np.nan, 12.345678, np.nan])
    assert table['split'].tolist() == ['train', 'validation', 'train']


def test_rows_are_dictionaries():
    table = Table(ROWS)
    assert len(table) == 3
    assert table[-1] == ROWS[-1]
    assert list(table) == ROWS
    assert list(table[1:]) == ROWS[1:]
    assert table[1:].columns == table.columns


def test_an_unknown_column_is_named_with_those_that_there_are():
    with pytest.raises(KeyError, match=r'blue.*step, split, loss, bleu'):
        Table(ROWS)['blue']


def test_it_prints_numbers_to_the_right_and_marks_what_is_missing():
    assert repr(Table(ROWS)).splitlines() == [
        'step  split       loss   bleu',
        '  50  train        2.5      –',
        '  50  validation  2.25  12.35',
        ' 100  train        inf      –',
    ]


def test_large_numbers_have_no_exponent():
    table = Table([{'a': 37921.4, 'b': 1e30, 'c': 3.0, 'd': 2e-5, 'e': float('nan')}])
    assert repr(table).splitlines()[1].split() == ['37921', '1e+30', '3', '2e-05', 'nan']


def test_html_has_every_cell_and_is_escaped():
    text = Table([{'a<b': '&', 'n': 3}])._repr_html_()
    assert '<th>a&lt;b</th>' in text
    assert '<td>&amp;</td><td>3</td>' in text


def test_a_long_table_prints_its_ends():
    text = repr(Table([{'step': step} for step in range(MOST_ROWS + 1)]))
    assert '   …' in text
    assert text.splitlines()[-1] == f'{MOST_ROWS + 1} rows'
    assert len(text.splitlines()) < MOST_ROWS


def test_an_empty_table_prints():
    assert repr(Table([])) == '\n0 rows'
    assert '0 rows' in Table([], ('step',))._repr_html_()


def test_pandas_gets_rows_and_columns(monkeypatch):
    frame = types.SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns))
    monkeypatch.setitem(sys.modules, 'pandas', frame)
    assert Table(ROWS).to_pandas() == (ROWS, ['step', 'split', 'loss', 'bleu'])
