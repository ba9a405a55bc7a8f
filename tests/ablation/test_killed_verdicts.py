"""Ablations that are killed and resumed, with seeds added later: the verdicts stay the same."""

import json
import signal
from pathlib import Path

import pytest
from helpers.support import finish, start, wait_until

from transformer_jax.report.analysis import analyze

TABLE = """
from transformer_jax.ablation import Claim, Experiment, Metric, config_file


def get_experiment(scale='small'):
    base = config_file('configs/generated.py:copy(length=6, alphabet=4, test_length=6)')
    base.model.d_model = 16
    base.model.d_ff = 32
    base.model.encoder_layers = base.model.decoder_layers = 1
    base.train.steps = 60
    base.train.batch_tokens = 256
    base.train.log_every = 5
    base.checkpoint.every = 10
    base.evaluate.every = 0
    return Experiment(
        claim='a rate of zero learns nothing',
        base=base,
        variants={'base': {}, 'no rate': {'optim.learning_rate': 0.0}},
        metrics=(Metric('loss', 'validation', 'last'),),
        seeds=2,
        claims=(Claim('it is worse', 'validation loss', 'no rate', direction='worse'),),
    )
"""


def ablate(root: Path, *arguments: str):
    return start('ablate', str(root.with_name('table.py')), f'--root={root}', *arguments)


def lines_logged(root: Path) -> int:
    return sum(path.read_text().count('\n') for path in root.glob('*/*/metrics.jsonl'))


def verdicts(root: Path):
    results = json.loads((root / 'results.json').read_text())
    scores = [(run['folder'], run['seed'], run['scores']) for run in results['runs']]
    [claim] = analyze(root).claims
    return scores, claim.verdict, claim.comparisons


@pytest.mark.rare
@pytest.mark.parametrize('together', ['--seeds_per_program=1', '--seeds_per_program=0'])
def test_verdicts_after_kills_are_those_without(tmp_path, together):
    (tmp_path / 'table.py').write_text(TABLE)
    undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
    for seeds in ('--seeds=2', '--seeds=4'):
        finish(ablate(undisturbed, seeds, together))
        logged = lines_logged(killed)
        process = ablate(killed, seeds, together)
        wait_until(lambda logged=logged: lines_logged(killed) > logged, process, 0)
        process.kill()
        finish(process, -signal.SIGKILL)
        finish(ablate(killed, seeds, together))
        assert verdicts(killed) == verdicts(undisturbed)
    assert verdicts(killed)[1] == 'supported'
