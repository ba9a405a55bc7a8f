"""The time of decoding against the length of the output: `transformer-jax bench decode`.

The decoders are those of `translate`. The model is untrained, and its logit for EOS is lowered so
that every hypothesis is as long as its limit. Caches have a fixed size, so all steps cost the same
and the time is nearly linear in the number of steps; attention over a longer cache adds a slow
growth.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import rich.table

from transformer_jax import config as config_lib
from transformer_jax.batch import EOS
from transformer_jax.config import Components
from transformer_jax.data.batching import padded_rows
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.display.tables import result_table
from transformer_jax.efficiency.timing import seconds
from transformer_jax.errors import ConfigError
from transformer_jax.models import no_decoding
from transformer_jax.profiling.state_size import state_size
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.provenance import describe_machine
from transformer_jax.training.programs import TrainProgram, make_program

Log = Callable[[str], None]
METHODS = ('greedy', 'beam')
REPEATS = 3  # translations of each length
TOKEN_ROWS = 16  # sentences of the batch that `seconds_per_token` decodes
# The logit of EOS: below any other, but finite, so that beam search can still end at the limit.
EOS_LOGIT = -1e9


@dataclasses.dataclass(frozen=True)
class DecodeTimes:
    """The times of one decoding method; all outputs of a batch have the same length.

    Attributes:
        lengths: of the outputs, EOS included.
        seconds: of the whole batch at each length, the fastest of REPEATS.
        sentences_per_second: at each length.
        tokens_per_second: at each length.
        seconds_per_step: the slope of the line through seconds against length.
        constant_seconds: the value of that line at length 0: the encoder and the start.
        r_squared: of that line.
        exponent: p of the power law c·lengthᵖ through the same points; 1 is linear.
    """

    lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    sentences_per_second: tuple[float, ...]
    tokens_per_second: tuple[float, ...]
    seconds_per_step: float
    constant_seconds: float
    r_squared: float
    exponent: float


@dataclasses.dataclass(frozen=True)
class DecodeBench:
    """The result of `bench decode`.

    Attributes:
        machine: see `provenance.describe_machine`.
        rows: sentences of a batch.
        source_length: tokens of each source.
        beam: of beam search.
        methods: the times of each of METHODS.
        state_bytes: the decoding state of one sentence, by method and at each length: that of all
            its hypotheses, with what they share; see `state_size`.
    """

    machine: dict[str, Any]
    rows: int
    source_length: int
    beam: int
    methods: dict[str, DecodeTimes]
    state_bytes: dict[str, tuple[int, ...]]


def bench_decode(config: ExperimentConfig, longest: int, rows: int, log: Log) -> DecodeBench:
    """Time greedy and beam search of an untrained model that may not end before its limit.

    Output lengths are an eighth, a quarter, a half and the whole of `longest`; sources are as long
    as the first.

    Raises:
        ConfigError: the model's positions do not reach as far.
    """
    components = config_lib.resolve(config)
    if components.model_kind.predicts_class:
        raise ConfigError(f'model.kind={config.model.kind!r} decodes nothing; bench train times it')
    lengths = tuple(longest // part for part in (8, 4, 2, 1))
    prompt = 0 if components.model_kind.reads_source else lengths[0]
    reach = components.architecture.max_decoded
    if prompt + longest > reach:
        raise ConfigError(
            f'--longest={longest} is beyond model.position={config.model.position!r} and its '
            f'attention, which reach to {reach - prompt} here; set it lower'
        )
    machine = describe_machine()
    program = make_program(components)
    params = program.init_state().params
    methods, states = {}, {}
    for method in METHODS:
        taken = []
        states[method] = tuple(
            _state_bytes(components, method, prompt + length, lengths[0]) for length in lengths
        )
        for length in lengths:
            decode = forced_decoder(config, program, params, method, rows, lengths[0], length)
            jax.block_until_ready(decode())
            taken.append(min(seconds(decode) for _ in range(REPEATS)))
            log(f'{method}, {rows} × {length} tokens: {taken[-1]:.3f} s')
        methods[method] = fit(lengths, taken, rows)
    return DecodeBench(machine, rows, lengths[0], config.decode.beam, methods, states)


def seconds_per_token(components: Components) -> float:
    """Measure the time of a token in greedy decoding of a batch with an untrained model.

    Each row is as long as the longest of `data.batching`, a prompt of one token included; an
    encoder reads a source of the same length.

    Returns:
        the median over REPEATS of the seconds of the batch, divided by the tokens in all rows.

    Raises:
        ConfigError: the model cannot decode.
    """
    if why := no_decoding(components.architecture):
        raise ConfigError(why)
    config, longest = components.config, components.batching.row_lengths()[-1]
    # A scan shortens the compilation of a training step; decoding has its layers apart.
    model = dataclasses.replace(config.model, scan_layers=False, remat='none')
    program = make_program(config_lib.resolve(config_lib.replace(config, model=model)))
    reads_source = components.model_kind.reads_source
    source_length, length = (longest, longest) if reads_source else (1, longest - 1)
    rows = padded_rows(TOKEN_ROWS, program.rows_multiple)
    params = program.init_state().params
    decode = forced_decoder(config, program, params, 'greedy', rows, source_length, length)
    jax.block_until_ready(decode())
    taken = [seconds(decode) for _ in range(REPEATS)]
    return statistics.median(taken) / (rows * length)


def _state_bytes(components: Components, method: str, length: int, read: int) -> int:
    """Count the bytes of the decoding state of one sentence.

    Args:
        components: of the experiment.
        method: of METHODS.
        length: tokens of the decoder, those of a prompt included.
        read: tokens of the source or the prompt.
    """
    hypotheses = components.config.decode.beam if method == 'beam' else 1
    size = state_size(components.architecture, length, read, hypotheses)
    assert size is not None, 'a model that is timed decodes'
    return size.bytes


@dataclasses.dataclass(frozen=True)
class Endless:
    """A model with a very low logit for EOS, so that outputs are as long as the limit allows."""

    model: nn.Module

    def apply(self, variables: Any, *args: Any, method: str) -> Any:
        """Apply the model, and lower the logit of EOS in its decoding step."""
        result = self.model.apply(variables, *args, method=method)
        if method != 'step':
            return result
        logits_BV, cache = result
        return logits_BV.at[:, EOS].set(EOS_LOGIT), cache


def forced_decoder(
    config: ExperimentConfig,
    program: TrainProgram,
    params: Any,
    method: str,
    rows: int,
    source_length: int,
    length: int,
) -> Callable[[], jax.Array]:
    """Make a function that decodes random sources to tokens_BT, all of one length.

    Args:
        config: the decoding settings, without the method and the limit.
        program: of the model.
        params: of the model.
        method: 'greedy', 'beam' or 'sample'.
        rows: sentences of a batch.
        source_length: tokens of each source, EOS included.
        length: tokens of each output, EOS included; at least `source_length`.
    """
    vocab_size = program.model.architecture.vocab_size
    settings = dataclasses.replace(
        config.decode, method=method, max_extra_tokens=length - source_length
    )
    decoder = make_decoder(Endless(program.model), settings, vocab_size)
    shape = rows, source_length
    source_BS = np.random.RandomState(0).randint(EOS + 1, vocab_size, shape).astype(np.int32)
    positions_BS = np.broadcast_to(np.arange(source_length, dtype=np.int32), shape)
    source = [
        program.partitioner.put_whole(a_BS)
        for a_BS in (source_BS, positions_BS, np.ones(shape, np.int32))
    ]
    numbers_B = program.partitioner.put_whole(np.arange(rows, dtype=np.int32))
    key = jax.random.PRNGKey(0)

    def decode():
        with program.partitioner.context():
            return decoder(params, *source, key, numbers_B)[0]

    return decode


def fit(lengths: tuple[int, ...], taken: list[float], rows: int) -> DecodeTimes:
    """Compute rates, and fit a line and a power law to seconds against length.

    Args:
        lengths: of the outputs.
        taken: seconds of the batch at each length.
        rows: sentences of the batch.
    """
    slope, constant = np.polyfit(lengths, taken, 1).tolist()
    residuals = np.array(taken) - slope * np.array(lengths) - constant
    return DecodeTimes(
        lengths,
        tuple(taken),
        tuple(rows / s for s in taken),
        tuple(rows * length / s for length, s in zip(lengths, taken, strict=True)),
        seconds_per_step=slope,
        constant_seconds=constant,
        r_squared=1 - float(np.var(residuals) / np.var(taken)),
        exponent=float(np.polyfit(np.log(lengths), np.log(taken), 1)[0]),
    )


def tables(bench: DecodeBench) -> tuple[rich.table.Table, ...]:
    """Make the tables that are printed, one for each method."""
    return tuple(_table(bench, method, times) for method, times in bench.methods.items())


def _table(bench: DecodeBench, method: str, times: DecodeTimes) -> rich.table.Table:
    name = f'beam {bench.beam}' if method == 'beam' else method
    table = result_table(
        f'{name}: {bench.rows} sentences of {bench.source_length} tokens',
        ('output tokens', 'ms', 'sentences/s', 'tokens/s', 'state of a sentence in KiB'),
        [
            (
                f'{length}',
                f'{1e3 * s:.1f}',
                f'{sentences:,.1f}',
                f'{tokens:,.0f}',
                f'{state / 1024:,.1f}',
            )
            for length, s, sentences, tokens, state in zip(
                times.lengths,
                times.seconds,
                times.sentences_per_second,
                times.tokens_per_second,
                bench.state_bytes[method],
                strict=True,
            )
        ],
    )
    table.caption = (
        f'{1e3 * times.constant_seconds:.1f} ms + {1e3 * times.seconds_per_step:.2f} ms per token '
        f'(R² {times.r_squared:.4f}); grows as length^{times.exponent:.2f}'
    )
    table.caption_justify = 'left'
    return table
