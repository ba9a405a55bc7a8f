"""A length beyond what an attention reads is refused before it is benched."""

import pytest

from transformer_jax.cli import main


@pytest.mark.parametrize(
    'attention',
    [
        'linformer(length=8, rank=4)',
        'synthesizer(max_len=8)',
        'synthesizer(form=random, max_len=8)',
    ],
)
def test_a_length_that_it_cannot_read_is_refused(attention, capsys):
    command = ['bench', 'attention', f'--attention={attention}', '--lengths=4,16']
    assert main([*command, '--engines=dense', '--notimed']) == 2
    error = capsys.readouterr().err
    assert 'reads at most 8 tokens, --lengths has 16: {T} in a spec' in error
    assert error.count('\n') == 1
