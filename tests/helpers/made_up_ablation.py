"""A made-up ablation: what its files hold, with gaps, an awkward name and two equal variants."""

import json

import numpy as np
from matplotlib.figure import Figure

from transformer_jax.report.analysis import analyze

SEEDS = [0, 1, 2, 3, 4]
MEANS = {
    'softmax': 38.0,
    'linear': 36.0,
    'window(8) <b>& "x"_y$': 38.1,
    'same as softmax': 38.0,
    'additive': 39.0,
    'lost': 30.0,
}
CONFIG = {'model.attention': 'softmax', 'model.d_model': 128, 'model.d_ff': 256, 'train.steps': 400}


def folder(name):
    return 'softmax' if name == 'same as softmax' else name.split('(')[0]


def make_experiment(seeds=SEEDS):
    """Make the content of an experiment.json.

    One variant is the reference under another name, one has a name that must be escaped.
    """
    metrics = [
        {
            'name': 'bleu',
            'split': 'test',
            'checkpoint': 'best',
            'length': 0,
            'lower_is_better': False,
            'label': 'test bleu',
        },
        {
            'name': 'loss',
            'split': 'test',
            'checkpoint': 'best',
            'length': 0,
            'lower_is_better': True,
            'label': 'test loss',
        },
    ]
    variants = {}
    for name in MEANS:
        overrides = {'model.attention': folder(name)}
        matched = {'model.d_ff': 240, 'residual': -0.0012} if name == 'linear' else {}
        variants[name] = {
            'folder': folder(name),
            'overrides': overrides,
            'config': CONFIG | overrides,
            'matched': matched,
        }
    published = [
        {
            'source': 'Somebody et al. (2020), Table 1',
            'measure': 'BLEU on newstest',
            'metric': 'test bleu',
            'values': {'softmax': 25.8, 'linear': 24.9, 'additive': 25.1},
            'lower_is_better': False,
        }
    ]
    return {
        'file': 'experiments/made_up/table1.py:small',
        'claim': 'Attention <kinds> & their BLEU',
        'seeds': seeds,
        'reference': 'softmax',
        'metrics': metrics,
        'published': published,
        'match': 'params',
        'axis': None,
        'variants': variants,
    }


def make_results(seeds=SEEDS, noise=0.25, lost=(('linear', 3),)):
    """Make the content of a results.json.

    The variant 'lost' has no sound run; `lost` names other runs that are missing.
    """
    experiment, rng = make_experiment(list(seeds)), np.random.default_rng(0)
    runs, missing = [], []
    for name in dict.fromkeys(map(folder, MEANS)):
        mean = next(value for variant, value in MEANS.items() if folder(variant) == name)
        for seed in seeds:
            draw = rng.normal()
            if name == 'lost' or (name, seed) in lost:
                missing.append(
                    {'folder': name, 'seed': seed, 'why': 'failed: the loss was <nan> at step 3'}
                )
                continue
            runs.append(
                {
                    'folder': name,
                    'scores': {
                        'test bleu': mean + noise * draw,
                        'test loss': 5 - mean / 20 - noise / 50 * draw,
                    },
                    'seed': seed,
                    'params': 1_234_567,
                    'non_embedding_params': 1_000_000,
                    'flops': 2_345_678,
                    'step_seconds': 0.0123 + mean / 1e4,
                    'memory_bytes': 123_456_789,
                    'wall_seconds': 321.0,
                    'steps': 400,
                    'step': 380,
                    'commit': '8706208',
                    'date': f'2026-11-{20 + seed % 3}',
                    'machine': {'devices': '1 x cpu cpu', 'cpus': 2, 'versions': {'jax': '0.10.2'}},
                }
            )
    return {'experiment': experiment, 'runs': runs, 'missing': missing}


def sentences(run, rng):
    """Draw correct and total 1- to 4-grams, length and reference length of 60 sentences."""
    chances = run['scores']['test bleu'] / 50 * np.array([1, 0.8, 0.7, 0.6])
    totals = [12, 11, 10, 9]
    return [[*rng.binomial(totals, chances).tolist(), *totals, 12, 12] for _ in range(60)]


def probes(layers=3, heads=4):
    """Make the content of a probes.json of two checkpoints; one probe is None in one head."""
    rng = np.random.default_rng(2)
    rows = [
        {
            'site': site,
            'layer': layer,
            'head': head,
            'entropy': rng.uniform(0, 3),
            'normalized_entropy': None,
            'distance': rng.uniform(1, 9),
            'sink': rng.uniform(),
            'max_logit': None if head == 1 else -1.5,
        }
        for site in ('encoder', 'cross')
        for layer in range(layers)
        for head in range(heads)
    ]
    later = [row | {'entropy': row['entropy'] / 2} for row in rows]
    return {
        'split': 'validation',
        'checkpoints': [{'step': 200, 'sites': rows}, {'step': 400, 'sites': later}],
    }


def write_file(path, results):
    path.write_text(json.dumps(results))
    return path


def write_root(root, results):
    """Write the folders that would give such results: curves, sentences, one run's probes."""
    (root).mkdir(parents=True, exist_ok=True)
    (root / 'experiment.json').write_text(json.dumps(results['experiment']))
    configs = {v['folder']: v['config'] for v in results['experiment']['variants'].values()}
    rng = np.random.default_rng(1)
    for run in results['runs']:
        workdir = root / run['folder'] / str(run['seed'])
        workdir.mkdir(parents=True)
        nested = {}
        for key, value in configs[run['folder']].items():
            section, _, last = key.partition('.')
            nested.setdefault(section, {})[last] = value
        (workdir / 'config.json').write_text(json.dumps(nested))
        (workdir / 'result.json').write_text(json.dumps(run))
        lines = []
        for step in range(10, 401, 10):
            fall = 6 * np.exp(-step / 120) + 5 - run['scores']['test bleu'] / 12
            lines.append(
                {
                    'step': step,
                    'split': 'train',
                    'loss': fall + 0.1 * rng.normal(),
                    'tokens_per_second': 3.0,
                }
            )
            if step % 50 == 0:
                bleu = run['scores']['test bleu'] * (1 - np.exp(-step / 100)) + 0.3 * rng.normal()
                lines.append(
                    {
                        'step': step,
                        'split': 'validation',
                        'loss': fall,
                        'bleu': bleu,
                        'sentences': 100,
                    }
                )
        if run['folder'] != 'additive':
            (workdir / 'sentences.json').write_text(json.dumps({'test bleu': sentences(run, rng)}))
        (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (root / 'linear' / '1' / 'probes.json').write_text(json.dumps(probes()))
    figure = Figure(figsize=(2, 1))
    figure.savefig(root / 'linear' / '1' / 'attention.png')
    for entry in results['missing']:
        workdir = root / entry['folder'] / str(entry['seed'])
        workdir.mkdir(parents=True)
        (workdir / 'failure.json').write_text(
            json.dumps({'error': entry['why'].removeprefix('failed: ')})
        )
    return root


def row_of(report, variant, metric=0):
    return next(row for row in report.tables[metric].rows if row.variant == variant)


def analyzed(tmp_path, results):
    return analyze(write_file(tmp_path / 'results.json', results))
