"""Shipped configurations: each builds, and each is what it was."""

import pytest
from config import golden


@pytest.mark.parametrize('name', golden.CONFIGS)
def test_a_shipped_config_is_what_it_was(name):
    expected = golden.path_of(name).read_text().splitlines()
    assert golden.describe(name).splitlines() == expected, (
        'if this is meant: make golden, and say why in the commit'
    )


def test_every_shipped_config_is_golden():
    shipped = {path.stem for path in (golden.ROOT / 'configs').glob('*.py')}
    assert shipped == {name.partition(':')[0] for name in golden.CONFIGS}
    assert {path.name for path in golden.FOLDER.iterdir()} == {
        golden.path_of(name).name for name in golden.CONFIGS
    }
