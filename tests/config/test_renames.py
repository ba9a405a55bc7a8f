"""Old names: an error gives the new one, and files of earlier versions are read as today's."""

import pytest

from transformer_jax import schema
from transformer_jax.config import default_config, from_dict, to_dict
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.renames import RENAMED_KEYS
from transformer_jax.schema import ExperimentConfig, flatten
from transformer_jax.storage.config_versions import (
    ADDED_KEYS,
    VERSION,
    migrate_config,
    migrate_flat_config,
    with_version,
)


def nest(flat):
    """Nest {'train.steps': 2} as {'train': {'steps': 2}}."""
    tree = {}
    for key, value in flat.items():
        *sections, last = key.split('.')
        part = tree
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return tree


def version_1(**changes):
    """A flat configuration with the keys of version 1."""
    old = {new: old for old, new in RENAMED_KEYS.items()}
    return {
        old.get(key, key): value for key, value in flatten(ExperimentConfig()).items()
    } | changes


@pytest.mark.parametrize(('old', 'new'), RENAMED_KEYS.items())
def test_an_old_key_is_refused_with_the_new_name(old, new):
    values = to_dict(ExperimentConfig())
    section, _, key = old.partition('.')
    values[section][key] = 1
    with pytest.raises(ConfigError, match=f'{old}: .*it is called {new} now'):
        from_dict(values)


@pytest.mark.parametrize(
    ('key', 'text', 'new'),
    [
        ('optim.schedule', 'paper(warmup=4000)', 'noam'),
        ('model.attention', 'softmax(mask=first(4))', 'global_tokens'),
        ('model.attention', 'softmax(normaliser=sink)', 'normalizer'),
    ],
)
def test_an_old_spelling_is_refused_with_the_new_one(key, text, new):
    config = default_config()
    config.update_from_flattened_dict({key: text})
    with pytest.raises(ConfigError, match=f"it is called '{new}' now"):
        from_dict(config.to_dict())


def test_version_1_is_read_as_today():
    stored = nest(
        version_1(
            **{
                'decode.max_len': 7,
                'optim.schedule': 'paper(warmup=9)',
                'model.attention': 'softmax(normaliser=off_by_one, mask=window(8) | first(1))',
                'data.source_dir': 'the/first paper',
            }
        )
    )
    found = flatten(migrate_config(stored, 'config.json'))
    assert found.keys() == flatten(ExperimentConfig()).keys()
    assert found['decode.max_extra_tokens'] == 7
    assert found['optim.schedule'] == 'noam(warmup=9)'
    assert found['model.attention'] == (
        'softmax(normalizer=off_by_one, mask=window(8) | global_tokens(1))'
    )
    assert found['data.source_dir'] == 'the/first paper'
    from_dict(migrate_config(stored, 'config.json'))


def test_options_of_other_names_stay():
    flat = {'model.attention': 'softmax(mask=bigbird(first=2))'}
    assert migrate_flat_config(flat)['model.attention'] == flat['model.attention']


def test_a_key_that_was_added_later_takes_the_value_that_its_absence_meant():
    old = {new: old for old, new in RENAMED_KEYS.items()}
    stored = version_1()
    for added in ADDED_KEYS.values():
        for key in added:
            del stored[old.get(key, key)]
    assert migrate_flat_config(stored) == flatten(ExperimentConfig())


@pytest.mark.parametrize('version', ADDED_KEYS)
def test_a_file_of_each_version_may_lack_what_was_added_after_it(version):
    stored = flatten(ExperimentConfig())
    for since in range(version, VERSION):
        for key in ADDED_KEYS[since]:
            del stored[key]
    assert migrate_flat_config(stored, version) == flatten(ExperimentConfig())


def test_every_added_key_exists():
    assert [*ADDED_KEYS] == [*range(1, VERSION)]
    for added in ADDED_KEYS.values():
        assert added.keys() <= flatten(schema.ExperimentConfig()).keys()


def test_todays_version_is_read_as_it_is():
    config = to_dict(ExperimentConfig())
    assert migrate_config(with_version(config), 'config.json') == config


def test_a_later_version_is_refused():
    with pytest.raises(WorkdirError, match=f'config.json has version {VERSION + 1}'):
        migrate_config({'version': VERSION + 1}, 'config.json')
