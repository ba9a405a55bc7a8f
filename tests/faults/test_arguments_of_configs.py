"""A typo behind the colon of a configuration file is refused, never taken for the default."""

import re
from pathlib import Path

import pytest

from transformer_jax.ablation import config_file
from transformer_jax.cli import main
from transformer_jax.config import from_config_dict
from transformer_jax.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))
TYPOS = ('tpyo', 'smal', 'en', 'en-', '-de', 'en-de-fr', 'en-de,tpyo', 'en-fr,', 'copy,tpyo')
# What these are for the files that take any of it: languages are those of num2words, which the
# data names.
RIGHT = {('number_words.py', text) for text in ('en-de,tpyo', 'en-fr,')}


@pytest.mark.fault('arguments of configs')
@pytest.mark.parametrize('text', TYPOS)
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.name)
def test_a_typo_is_refused(path, text):
    if (path.name, text) in RIGHT:
        return
    with pytest.raises(ConfigError) as caught:
        from_config_dict(config_file(f'{path}:{text}'))
    said = str(caught.value)
    assert any(part in said for part in re.split('[-,]', text))
    assert 'Error:' not in said  # no error of Python's


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('listops.py:smal', "size 'smal' is unknown: did you mean 'small'?"),
        ('tiny_shakespeare.py:tpu', "size 'tpu' is unknown: did you mean 'gpu'?"),
        ('wmt14.py:en-de', "size '' is unknown: valid: base, big"),
        ('wmt14.py:de-fr,base', "direction 'de-fr' is unknown"),
        ('multi30k.py:en-es', "language 'es' is unknown"),
    ],
)
def test_the_command_names_what_is_wrong(text, said, capsys):
    assert main(['inspect', f'--config={CONFIGS[0].parent}/{text}']) == 2
    assert said in capsys.readouterr().err


EXITS = {
    'when it is read': 'import sys\nsys.exit(7)\n',
    'without a code': 'raise SystemExit\n',
    'with a message': "import sys\nsys.exit('no GPU')\n",
    'in its function': 'import sys\ndef {name}():\n    sys.exit(7)\n',
}


@pytest.mark.fault('arguments of configs')
@pytest.mark.parametrize('source', EXITS.values(), ids=EXITS)
@pytest.mark.parametrize('name', ['get_config', 'get_experiment'])
def test_a_file_that_exits_is_named(name, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('file.py').write_text(source.replace('{name}', name))
    command = ['inspect', '--config=file.py']
    if name == 'get_experiment':
        command = ['ablate', 'file.py', '--root=root']
    assert main(command) == 2
    error = capsys.readouterr().err
    assert 'SystemExit' in error
    assert f'file.py:{len(source.splitlines())}: ' in error
