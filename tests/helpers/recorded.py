"""What runs of today record for a reviewer, in the files of a made-up ablation."""

import copy
import json

from helpers.made_up_ablation import make_results

HASHES = {
    split: digit * 64 for split, digit in (('train', 'a'), ('validation', 'b'), ('test', 'c'))
}
ENVIRONMENT = {
    'python': '3.11.7',
    'os': 'Linux-6',
    'packages': {'jax': '0.10.2', 'numpy': '2.1'},
    'packages_sha256': 'd' * 64,
    'flags': {'XLA_FLAGS': '--xla_x'},
}
DIFFERENCE = {'what': 'data', 'paper': 'WMT 2014 | 4.5M', 'here': 'Multi30k <29k>'}
CONFIG = {
    'train.init_from': '',
    'model.dropout': 0.1,
    'decode.method': 'beam',
    'decode.temperature': 1.0,
    'evaluate.every': 50,
    'evaluate.every_epochs': 0,
    'evaluate.best_metric': 'bleu',
}


def start(**changes):
    """Make a record of run.json, as far as it is read here."""
    splits = {split: HASHES[split] for split in ('train', 'validation')}
    own = {'devices': '1 x cpu cpu', 'settings': {'jax_enable_x64': False}, 'splits': splits}
    return own | {'environment': copy.deepcopy(ENVIRONMENT)} | changes


def make_recorded():
    """Make the content of a results.json that has what root-level files give, without `facts`."""
    results = make_results()
    results['experiment']['differences'] = [DIFFERENCE]
    for entry in results['experiment']['variants'].values():
        entry['config'] = entry['config'] | CONFIG
    for run in results['runs']:
        run['checkpoints'] = {'test bleu': [350], 'test loss': [350]}
        run['selected'] = {'test bleu': 'best', 'test loss': 'best'}
        run['splits'] = {'test': HASHES['test']}
    return results


def write_records(root, results):
    """Add run.json, times.jsonl and evaluations.json to the folders of `write_root`."""
    for run in results['runs']:
        workdir = root / run['folder'] / str(run['seed'])
        (workdir / 'run.json').write_text(json.dumps([start()]))
        write_times(workdir)
        evaluation = {'split': 'test', 'steps': [350], 'seconds': 2.0}
        (workdir / 'evaluations.json').write_text(json.dumps([evaluation]))
    return root


def write_times(workdir, seconds=10.0, flops: float | None = 1e9):
    """Write a start of 1 s of setup, 2 s of compilation, and 3 s of evaluation and `seconds`."""
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [
        {'first': 0, 'last': 0, 'began': 0.0, 'ended': 1.0, 'seconds': {'setup': 1.0}},
        {
            **{'first': 0, 'last': 400, 'began': 1.0, 'ended': 6.0 + seconds},
            'seconds': {'compile': 2.0, 'evaluate': 3.0, 'wait': 0.5},
            **({} if flops is None else {'flops': flops}),
        },
    ]
    (workdir / 'times.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
