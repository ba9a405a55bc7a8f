"""Probes of attention against loops, hand-made heads, and the command that writes them."""

import dataclasses
import json
import math
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build, build_model, dummy_batch
from helpers.support import experiment, quiet
from matplotlib.image import imread

from transformer_jax.attention import KINDS
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.cli import main
from transformer_jax.data.batching import Buckets
from transformer_jax.errors import ConfigError
from transformer_jax.inference import probe_display, probes
from transformer_jax.inference.head_sums import PROBES, AttentionRecord, HeadSums, head_sums
from transformer_jax.inference.probes import attention_records, read_probes
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.schema import ModelConfig
from transformer_jax.storage.checkpoint_folders import CheckpointFolders
from transformer_jax.training.train import train

V, LENGTH = 20, 8
LENGTHS = [[(3, 2), (4, 5)], [(8, 8)], [(2, 6)], [(1, 1), (2, 3), (3, 4)]]  # packed, full, padded
WHOLE = [[(5, 8)], [(8, 3)]]
# The numbers of a query, and the scores of its pairs.
QUERIED = ('entropy', 'normalized_entropy', 'distance', 'sink', 'scores')


def random_params(model):
    shapes = nn.meta.unbox(
        jax.eval_shape(
            model.init, jax.random.PRNGKey(0), dummy_batch(kind=model.architecture.kind)
        )['params']
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.normal(scale=0.5, size=a.shape).astype(a.dtype), shapes)


def probed(config, batch, params=None):
    """{(site, layer): rows of its heads} of one batch."""
    model = build_model(config, V, 3)
    params = params or random_params(model)
    sums = jax.jit(
        lambda params, batch: jax.tree.map(
            head_sums,
            attention_records(model, params, batch),
            is_leaf=lambda x: isinstance(x, AttentionRecord),
        )
    )(params, batch)
    return {place: jax.device_get(of_place).probes() for place, of_place in sums.items()}


def literal(record, head):
    """The definitions, query by query."""
    weights, allowed = np.asarray(record.weights_BNTS, np.float64), np.asarray(record.allowed_BTS)
    found = {name: [] for name in QUERIED}
    for b, t in np.ndindex(allowed.shape[:2]):
        if not allowed[b, t].any():
            continue
        w, n = weights[b, head, t], allowed[b, t].sum()
        shares = w / w.sum()
        entropy = -sum(share * math.log(share) for share in shares if share > 0)
        found['entropy'].append(entropy)
        if n > 1:
            found['normalized_entropy'].append(entropy / math.log(n))
        places = zip(record.key.positions_BT[b], record.key.segments_BT[b], strict=True)
        found['distance'].append(
            sum(
                share * abs(int(record.query.positions_BT[b, t]) - int(key[0]))
                for share, key in zip(shares, record.key.positions_BT[b][:, None], strict=True)
            )
        )
        found['sink'].append(
            sum(
                w[s]
                for s, (position, segment) in enumerate(places)
                if position == 0 and segment == record.query.segments_BT[b, t]
            )
        )
        found['scores'] += [
            np.float64(record.logits_BNTS[b, head, t, s]) for s in np.flatnonzero(allowed[b, t])
        ]
    return summed(found)


def summed(found):
    """Turn the numbers of the queries, and the scores of the pairs, into the probes of a head."""
    scores = found.pop('scores')
    means = {name: np.mean(values) for name, values in found.items()}
    return means | {'max_logit': max(scores), 'logit_std': np.std(scores)}


def test_sums_are_those_of_loops_over_packed_and_padded_rows(make_batch, random_rows, tiny):
    batch = make_batch(random_rows(LENGTHS, V), LENGTH)
    model = build_model(
        tiny(attention='softmax(normalizer=sigmoid, softcap=5)', position='alibi'), V
    )
    found = jax.jit(lambda params: attention_records(model, params, batch))(random_params(model))
    assert list(found) == sorted(model.architecture.sites)
    for record in found.values():
        record = jax.device_get(record)
        rows = jax.device_get(jax.jit(head_sums)(record)).probes()
        for head, row in enumerate(rows):
            assert row == pytest.approx(literal(record, head), rel=1e-5)


def test_batches_add_up(make_batch, random_rows, tiny):
    rows = random_rows(LENGTHS, V)
    model = build_model(tiny(encoder_layers=1, decoder_layers=1), V)
    params = random_params(model)

    @jax.jit
    def sums(params, batch):
        return [head_sums(record) for record in attention_records(model, params, batch).values()]

    parts = (make_batch(part, LENGTH) for part in (rows, rows[:2], rows[2:]))
    whole, first, second = (jax.device_get(sums(params, part)) for part in parts)
    for total, *parts in zip(whole, first, second, strict=True):
        for row, added in zip(total.probes(), HeadSums.plus(*parts).probes(), strict=True):
            assert row == pytest.approx(added, rel=1e-5)


def test_numbers_of_a_language_model_written_out(make_batch):
    """One layer without positions, queries and keys made in loops of its parameters."""
    batch = make_batch([[([4], [5, 6, 7, 8, 9])]], 6)
    config = ModelConfig(
        kind='decoder_only',
        decoder_layers=1,
        d_model=6,
        d_ff=4,
        num_heads=2,
        head_dim=5,
        position='none',
        attention='softmax(scale=0.3)',
    )
    params = random_params(build_model(config, V))
    [rows] = probed(
        config,
        batch._replace(source_BS=None, source_positions_BS=None, source_segments_BS=None),
        params,
    ).values()
    x_TD = params['target_embedding']['table'][batch.inputs_BT[0]].astype(np.float64) * math.sqrt(6)
    attention = params['decoder_0']['attention']
    for head, row in enumerate(rows):
        q_TH, k_TH = (
            x_TD @ attention[side][name]['kernel'][:, head].astype(np.float64)
            for side, name in (('queries', 'query'), ('keys', 'key'))
        )
        found = {name: [] for name in QUERIED}
        for t in range(5):
            scores = np.array([0.3 * q_TH[t] @ k_TH[s] for s in range(t + 1)])
            w = np.exp(scores) / np.exp(scores).sum()
            found['entropy'].append(-(w * np.log(w)).sum())
            found['normalized_entropy'] += [found['entropy'][-1] / math.log(t + 1)] if t else []
            found['distance'].append(sum(w[s] * (t - s) for s in range(t + 1)))
            found['sink'].append(w[0])
            found['scores'] += scores.tolist()
        assert row == pytest.approx(summed(found), rel=1e-4)


def made_record(weights_NTS, logits_NTS=None, real=None):
    """A row of `real` tokens that see one another, the rest padding."""
    T = weights_NTS.shape[1]
    segments_BT = (np.arange(T)[None] < (real or T)).astype(np.int32)
    tokens = Tokens(np.arange(T, dtype=np.int32)[None], segments_BT)
    return AttentionRecord(
        jnp.asarray(weights_NTS[None], jnp.float32),
        None if logits_NTS is None else jnp.asarray(logits_NTS[None], jnp.float32),
        Segments().allowed(tokens, tokens),
        tokens,
        tokens,
    )


def test_uniform_attention_has_entropy_log_n_and_the_identity_none():
    n, T = 6, 8
    uniform, identity = np.zeros((T, T)), np.zeros((T, T))
    uniform[:n, :n], identity[:n, :n] = 1 / n, np.eye(n)
    even, own = jax.device_get(
        head_sums(made_record(np.stack([uniform, identity]), real=n))
    ).probes()
    mean = sum(abs(i - j) for i in range(n) for j in range(n)) / n**2
    assert even == pytest.approx(
        {
            'entropy': math.log(n),
            'normalized_entropy': 1,
            'distance': mean,
            'sink': 1 / n,
            'max_logit': None,
            'logit_std': None,
        }
    )
    assert own == pytest.approx(
        even | {'entropy': 0, 'normalized_entropy': 0, 'distance': 0, 'sink': pytest.approx(1 / n)},
        abs=1e-7,
    )


def test_models_that_look_everywhere_and_at_themselves(make_batch, random_rows, tiny):
    batch = make_batch(random_rows(LENGTHS, V), LENGTH)
    config = tiny(attention='softmax(mask=window(1))', cross_attention='softmax')
    params = random_params(build_model(config, V))
    for layer in ('decoder_0', 'decoder_1'):
        params[layer]['cross']['queries']['query']['kernel'] *= 0
    places = probed(config, batch, params)
    of_queries = [
        math.log(source) for row in LENGTHS for source, target in row for _ in range(target)
    ]
    for (site, _), rows in places.items():
        for row in rows:
            if site == 'cross':
                assert (row['entropy'], row['max_logit']) == (pytest.approx(np.mean(of_queries)), 0)
                assert row['normalized_entropy'] == pytest.approx(1)
            else:
                assert (row['entropy'], row['normalized_entropy'], row['distance']) == (0, None, 0)


def test_padding_that_sees_nothing_does_not_count():
    weights_NTS = np.random.default_rng(0).dirichlet(np.ones(4), (1, 4))
    padded_NTS = np.pad(weights_NTS, ((0, 0), (0, 3), (0, 3)))
    whole, padded = (
        jax.device_get(head_sums(record)).probes()
        for record in (
            made_record(weights_NTS, weights_NTS),
            made_record(padded_NTS, padded_NTS + 9 * (padded_NTS == 0), real=4),
        )
    )
    assert padded == [pytest.approx(row) for row in whole]


def test_what_has_no_meaning_is_none():
    signed, nothing, rounded = np.array(
        [[[1.5, -0.5], [0.5, 0.5]], np.zeros((2, 2)), [[1, 0], [-1e-9, 1]]]
    )
    rows = jax.device_get(head_sums(made_record(np.stack([signed, nothing, rounded])))).probes()
    assert rows[0] == {
        'entropy': None,
        'normalized_entropy': None,
        'distance': None,
        'sink': 1.0,
        'max_logit': None,
        'logit_std': None,
    }
    assert rows[1] == rows[0] | {'sink': 0.0}
    assert rows[2]['entropy'] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param(
            {'position': 'rope', 'attention': 'softmax(normalizer=sink)'}, marks=pytest.mark.slow
        ),
        {'attention': 'softmax(forget=True)', 'num_kv_heads': 2},
        pytest.param({'attention': 'latent', 'position': 't5'}, marks=pytest.mark.slow),
    ],
)
def test_an_engine_that_holds_no_weights_gives_the_same(changes, make_batch, random_rows, tiny):
    batch = make_batch(random_rows(LENGTHS, V), LENGTH)
    batch = batch._replace(source_BS=None, source_positions_BS=None, source_segments_BS=None)
    dense, chunked = (
        probed(tiny(kind='decoder_only', engine=engine, **changes), batch)
        for engine in ('dense', 'chunked')
    )
    for place, rows in dense.items():
        assert [pytest.approx(row, rel=1e-4) for row in rows] == chunked[place]


@pytest.mark.parametrize(
    'kind',
    [
        kind if kind in ('linear', 'differential') else pytest.param(kind, marks=pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_every_kind_can_be_probed(kind, make_batch, random_rows, tiny):
    batch = make_batch(random_rows(WHOLE, V), LENGTH)
    config = tiny(kind='classifier', encoder_layers=1, attention=kind, position='none', num_heads=2)
    [rows] = probed(config, batch._replace(targets_BT=batch.targets_BT[:, :1])).values()
    assert len(rows) == 2
    scored = KINDS[kind].__mro__[1].__name__ == 'Scored' or kind == 'additive'
    signed = kind in ('differential', 'linformer')
    for row in rows:
        assert row['sink'] is not None
        assert (row['max_logit'] is None) == (row['logit_std'] is None) == (not scored)
        assert KINDS[kind]().has_scores == scored
        assert KINDS[kind]().has_signed_weights == signed
        assert all(
            (row[name] is None) == signed for name in ('entropy', 'normalized_entropy', 'distance')
        )


def test_scores_of_differential_attention_are_those_of_both_maps(make_batch, random_rows, tiny):
    batch = make_batch(random_rows(WHOLE, V), LENGTH)
    config = tiny(kind='decoder_only', decoder_layers=1, attention='differential', position='none')
    batch = batch._replace(source_BS=None, source_positions_BS=None, source_segments_BS=None)
    params = random_params(build_model(config, V))
    rows = probed(config, batch, params)['decoder', 0]
    x_BTD = params['target_embedding']['table'][batch.inputs_BT] * 4
    attention = params['decoder_0']['attention']
    half = config.d_model // 4 // 2
    for head, row in enumerate(rows):
        q_BTH, k_BTH = (
            x_BTD @ attention[side][name]['kernel'][:, head]
            for side, name in (('queries', 'query'), ('keys', 'key'))
        )
        scores = [
            q_BTH[b, t, part] @ k_BTH[b, s, part] / math.sqrt(half)
            for part in (slice(half), slice(half, None))
            for b, n in enumerate(batch.segments_BT.sum(1))
            for t in range(n)
            for s in range(t + 1)
        ]
        assert row['max_logit'] == pytest.approx(max(scores), rel=1e-4)
        larger = np.maximum(*np.split(np.array(scores), 2))
        assert row['logit_std'] == pytest.approx(np.std(larger), rel=1e-4)


def test_a_token_put_before_the_text_is_where_weight_sinks(make_batch, random_rows, tiny):
    batch = make_batch(random_rows(WHOLE, V), LENGTH)
    batch = batch._replace(targets_BT=batch.targets_BT[:, :1])
    config = tiny(kind='classifier', encoder_layers=1, pooling='first', position='none')
    params = random_params(build_model(config, V, 3))
    params['encoder_0']['attention']['queries']['query']['kernel'] *= 0
    [rows] = probed(config, batch, params).values()
    sizes = [source + 1 for [(source, _)] in WHOLE for _ in range(source + 1)]
    assert [row['sink'] for row in rows] == pytest.approx([np.mean([1 / n for n in sizes])] * 4)


def test_the_alignment_of_a_recurrent_model_is_one_head(make_batch, random_rows, tiny):
    batch = make_batch(random_rows(LENGTHS, V), LENGTH)
    config = tiny(
        kind='rnn_seq2seq',
        rnn="gru(attention='multiplicative')",
        encoder_layers=1,
        decoder_layers=1,
    )
    model = build_model(config, V)
    params = random_params(model)
    params['alignment']['key_kernel'] *= 0
    [(place, [row])] = probed(config, batch, params).items()
    assert place == ('cross', 0)
    sizes = [source for row in LENGTHS for source, target in row for _ in range(target)]
    assert row['entropy'] == pytest.approx(np.mean(np.log(sizes)))
    assert row['normalized_entropy'] == pytest.approx(1)
    assert row['sink'] == pytest.approx(np.mean(1 / np.array(sizes)))
    assert row['max_logit'] is row['logit_std'] is None


def test_weights_of_all_layers_are_never_held_at_once(tiny):
    def held(layers):
        model = build_model(tiny(kind='decoder_only', decoder_layers=layers, position='none'), V)
        batch = dummy_batch(4, 128, 'decoder_only')
        params = jax.eval_shape(
            lambda: nn.meta.unbox(model.init(jax.random.PRNGKey(0), batch)['params'])
        )
        lowered = jax.jit(
            lambda params, batch: [
                head_sums(record) for record in attention_records(model, params, batch).values()
            ]
        ).lower(params, batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert held(6) < 1.5 * held(1)


@pytest.mark.parametrize('steps', [[7], [7, 9]])
def test_pictures_leave_out_what_has_no_meaning(steps, monkeypatch, tmp_path):
    def row(site, layer, head, step):
        signed = site == 'encoder'
        numbers = [
            None if signed else step + layer,
            None if signed else 0.5,
            None if signed else 2.0,
            0.1,
            None,
            None,
        ]
        return {'site': site, 'layer': layer, 'head': head} | dict(
            zip(PROBES, numbers, strict=True)
        )

    result = {
        'split': 'validation',
        'checkpoints': [
            {
                'step': n,
                'sites': [
                    row(site, layer, head, n)
                    for site in ('encoder', 'cross')
                    for layer in (0, 1, 2)
                    for head in (0, 1)
                ],
            }
            for n in steps
        ],
    }
    kept = []
    monkeypatch.setattr(
        probe_display, 'save_figure', lambda figure, path: kept.append(figure) or path
    )
    probe_display.draw_probes(result, tmp_path / 'picture.png')
    panels = [
        axes for axes in kept[0].axes if axes.get_visible() and axes.get_label() != '<colorbar>'
    ]
    assert len(panels) == 5, 'the sink of both sites, and three probes of one'
    titled = {axes.get_title(): axes for axes in panels if axes.get_title()}
    assert set(titled) == set(list(PROBES.values())[:4])
    assert [axes.get_ylabel().split()[0] for axes in panels if axes.get_ylabel()] in (
        ['cross', 'encoder'],
        ['encoder', 'cross'],
    )
    entropy = titled['entropy (nats)']
    if len(steps) == 1:
        np.testing.assert_array_equal(entropy.get_images()[0].get_array(), [[7, 7], [8, 8], [9, 9]])
        assert [text.get_text() for text in entropy.texts] == ['7.00'] * 2 + ['8.00'] * 2 + [
            '9.00'
        ] * 2
    else:
        assert entropy.lines[0].get_xydata().tolist() == [[7, 7], [9, 9]]
        assert len(entropy.lines) == 6


def test_files_with_old_names_are_read(tmp_path):
    row = {'site': 'encoder', 'layer': 0, 'head': 0, 'normalised_entropy': 0.5, 'sink': None}
    old = {'split': 'test', 'checkpoints': [{'step': 3, 'sites': [row]}]}
    (tmp_path / 'probes.json').write_text(json.dumps(old))
    [checkpoint] = read_probes(tmp_path / 'probes.json')['checkpoints']
    [found] = checkpoint['sites']
    assert found == {
        'site': 'encoder',
        'layer': 0,
        'head': 0,
        'normalized_entropy': 0.5,
        'sink': None,
    }


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('trained')
    train(experiment(checkpoint__keep=5), path, quiet)
    return path


@pytest.fixture
def call(monkeypatch, capsys, workdir):
    monkeypatch.setattr(sys, 'argv', sys.argv)

    def run(*arguments):
        return main(['probe', f'--workdir={workdir}', *arguments]), *capsys.readouterr()

    return run


def test_one_checkpoint(call, workdir):
    code, output, errors = call('--checkpoint=8', '--batches=1')
    assert code == 0, errors
    result = json.loads((workdir / 'probes.json').read_text())
    assert (result['split'], [checkpoint['step'] for checkpoint in result['checkpoints']]) == (
        'validation',
        [8],
    )
    rows = result['checkpoints'][0]['sites']
    assert [(row['site'], row['layer'], row['head']) for row in rows] == [
        (site, 0, head) for site in ('encoder', 'decoder', 'cross') for head in (0, 1)
    ]
    assert all(set(row) == {'site', 'layer', 'head', *PROBES} for row in rows)
    assert all(0 <= row['normalized_entropy'] <= 1 for row in rows)
    assert f'{rows[0]["entropy"]:.3f}' in output
    assert imread(workdir / 'probes.png').size
    assert str(workdir / 'probes.json') in errors


def test_all_checkpoints(call, workdir, tmp_path):
    code, output, errors = call('--all_checkpoints', '--json', f'--out={tmp_path / "lines.svg"}')
    assert code == 0, errors
    result = json.loads(output)
    assert result == json.loads((workdir / 'probes.json').read_text())
    assert [checkpoint['step'] for checkpoint in result['checkpoints']] == [4, 8, 12]
    entropies = [checkpoint['sites'][0]['entropy'] for checkpoint in result['checkpoints']]
    assert len(set(entropies)) == 3
    assert '<svg' in (tmp_path / 'lines.svg').read_text()


# Flags, the steps of the table's title, and the checkpoint that the log names.
NAMED = [
    ([], 'step 8', 'best (step 8)'),
    (['--all_checkpoints'], 'step 12', 'last (step 12)'),  # the newest, not the best
    (['--checkpoint=4'], 'step 4', '4 (step 4)'),
    (['--checkpoint=avg:2'], 'step 12, 8, averaged', 'avg:2 (step 12, 8)'),
]


@pytest.mark.parametrize(('flags', 'title', 'logged'), NAMED)
def test_the_table_names_the_steps_of_its_numbers(call, workdir, monkeypatch, flags, title, logged):
    """Of a run whose best checkpoint is not its newest."""
    monkeypatch.setattr(CheckpointFolders, 'best_step', lambda self: 8)
    code, output, errors = call('--batches=1', *flags)
    assert code == 0, errors
    assert output.splitlines()[0].strip() == f'validation, {title}'
    assert f'checkpoint: {logged}\n' in errors
    shown = json.loads((workdir / 'probes.json').read_text())['checkpoints'][-1]
    steps = ', '.join(map(str, [shown['step'], *shown['averaged']]))
    assert title.removesuffix(', averaged') == f'step {steps}'
    assert f'{shown["sites"][0]["entropy"]:.3f}' in output


def test_batches_are_taken_from_short_rows_to_long_ones(workdir, monkeypatch):
    trained = TrainedRun(workdir, 'last', quiet, {})
    trained.data.config = dataclasses.replace(trained.data.config, eval_batch_tokens=48)
    trained.data.batching = Buckets((8, 24))
    seen = []
    put = trained.partitioner.put
    monkeypatch.setattr(
        trained.partitioner,
        'put',
        lambda batch: seen.append(batch.targets_BT.shape[1]) or put(batch),
    )
    two = probes.probe(trained, 'validation', 2)
    assert seen == [8, 24]
    seen.clear()
    everything = probes.probe(trained, 'validation', 999)
    plan, _ = trained.data.evaluation('validation')
    assert len(seen) == plan.steps_per_epoch > 2
    assert everything != two


def test_mistakes_are_refused(call):
    assert call('--checkpoint=4', '--all_checkpoints')[0] == 2
    assert call('--batches=0')[0] == 2
    code, _, errors = call('--checkpoint=5')
    assert (code, 'there is no step 5' in errors) == (2, True)
    config = experiment(model__kind='rnn_seq2seq', model__rnn="gru(attention='none')")
    trained = types.SimpleNamespace(config=config, model=build(config))
    with pytest.raises(ConfigError, match='has no attention'):
        probes.probe(trained, 'validation', 1)
