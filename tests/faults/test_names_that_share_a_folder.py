"""Variants whose names become one folder name: each has a folder of its own, and keeps it."""

import json

import pytest
from helpers.tiny_ablation import plan

from transformer_jax.ablation import Experiment, Metric
from transformer_jax.errors import ConfigError


def folders(made) -> dict[str, str]:
    return {name: variant['folder'] for name, variant in made.record['variants'].items()}


def variants(*names: str) -> dict:
    """Give each name a config of its own."""
    return {name: {'model.d_ff': 8 + 2 * number} for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ('α', 'β'),
        ('größe', 'gr%%e'),
        ('dropout 名', 'dropout 前'),
        ('a b', 'a  b'),
        ('a+b', 'a-b'),
        ('Softmax', 'softmax'),
        ('', '.'),
        ('x' * 300, 'x' * 301),
        ('experiment.json', 'Experiment.json'),
        ('results.json', 'results.json '),
        ('report', 'REPORT'),
        ('..', '../..'),
        ('é', 'e\u0301'),  # one letter, or two that are drawn as one
    ],
)
def test_each_variant_has_its_own_folder(tmp_path, first, second):
    made = plan(tmp_path, variants(first, second))
    found = folders(made)
    used = [folder.casefold() for folder in found.values()]
    assert len({*used, 'experiment.json', 'results.json', 'report'}) == 5
    assert all(folder.isascii() and 0 < len(folder) < 256 for folder in used)
    assert all('/' not in folder and not folder.startswith('.') for folder in used)
    made.write()
    # In another order, with another variant, in another process: the same folders.
    again = plan(tmp_path, variants(first, second, 'third'))
    assert folders(again) | found == folders(again)


@pytest.mark.parametrize(
    'name', ['base', 'softmax(mask=window(8))', 'größe', 'h=4, d=8', 'x' * 200]
)
def test_a_name_that_shares_with_none_has_its_plain_folder(tmp_path, name):
    found = folders(plan(tmp_path, variants(name)))[name]
    assert '--' not in found
    assert found == {'softmax(mask=window(8))': 'softmax-mask-window-8', 'größe': 'gr-e'}.get(
        name, name.replace(', ', '-').replace('=', '-')
    )


@pytest.mark.parametrize('old', ['-', 'Softmax', 'x' * 230, 'anything'])
def test_an_old_root_keeps_its_folders(tmp_path, old):
    made = plan(tmp_path, variants('β', 'softmax'))
    record = made.record
    record['variants']['β']['folder'] = old
    (tmp_path / 'experiment.json').write_text(json.dumps(record))
    found = folders(plan(tmp_path, variants('β', 'softmax', 'α', 'Softmax', 'x' * 230)))
    assert found['β'] == old
    assert len({*found.values()}) == 5
    new = {folder.casefold() for name, folder in found.items() if name not in ('β', 'softmax')}
    assert len({*new, old.casefold(), 'softmax'}) == 5 - (old == 'Softmax')


def test_the_folder_of_a_variant_that_is_left_out_stays_its_own(tmp_path):
    plan(tmp_path, variants('α', 'base')).write()
    made = plan(tmp_path, {'base': {'model.d_ff': 10}, 'β': {'model.d_ff': 4}})
    assert folders(made)['β'] != '-'


def test_a_config_under_another_name_takes_no_folder_that_is_in_use(tmp_path):
    plan(tmp_path, {'a': {}}).write()
    made = plan(tmp_path, {'b': {}, 'a': {'checkpoint.keep': 2}})  # no number depends on it
    assert folders(made) == {'a': 'a', 'b': 'b'}


def test_a_name_that_is_no_text_is_refused(tmp_path):
    base = plan(tmp_path, variants('a')).experiment.base
    with pytest.raises(ConfigError, match=r"variant 'a\\udcff' is no text .*: rename it"):
        Experiment('a claim', base, variants('a\udcff'), (Metric('loss'),))
