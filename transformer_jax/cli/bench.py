"""The commands `bench train`, `bench decode` and `bench attention`."""

import jax
from absl import flags
from etils import epath

from transformer_jax.cli.flags import (
    Flags,
    define_config,
    define_json,
    define_processes,
    log,
    read_config,
    whole_numbers,
)
from transformer_jax.errors import ConfigError
from transformer_jax.storage.processes import write_once


def define_bench_train(values: Flags) -> None:
    """Define the flags of `bench train`."""
    define_config(values)
    flags.DEFINE_integer(
        'steps', 30, 'How many training steps to time.', 1, 1_000_000, flag_values=values
    )
    define_json(values)
    define_processes(values)


def run_bench_train(values: Flags) -> None:
    """Time training steps and print the result."""
    from transformer_jax.display.tables import print_benchmark
    from transformer_jax.profiling.bench_train import bench_train
    from transformer_jax.profiling.bench_train_result import tables

    config = read_config(values)
    # The time to compile is a part of the result, so nothing may come from the cache.
    jax.config.update('jax_enable_compilation_cache', False)
    result = bench_train(config, values.steps, log)
    print_benchmark(result, tables(result), values.json)


def define_bench_decode(values: Flags) -> None:
    """Define the flags of `bench decode`."""
    define_config(values)
    flags.DEFINE_integer(
        'longest',
        128,
        'Output tokens; an eighth, a quarter and a half of it are timed as well.',
        16,
        1_000_000,
        flag_values=values,
    )
    flags.DEFINE_integer('rows', 64, 'Sentences of a batch.', 1, 100_000, flag_values=values)
    define_json(values)
    define_processes(values)


def run_bench_decode(values: Flags) -> None:
    """Time decoding and print the result."""
    from transformer_jax.display.tables import print_benchmark
    from transformer_jax.profiling.bench_decode import bench_decode, tables

    result = bench_decode(read_config(values), values.longest, values.rows, log)
    print_benchmark(result, tables(result), values.json)


def define_bench_attention(values: Flags) -> None:
    """Define the flags of `bench attention`."""
    from transformer_jax.profiling.bench_attention import DEFAULTS

    flags.DEFINE_string(
        'attention',
        '; '.join(DEFAULTS),
        'Specs, separated by semicolons; {T} stands for the length.',
        flag_values=values,
    )
    flags.DEFINE_list(
        'engines',
        'dense,chunked,blocked',
        'Engines for the kinds that have a choice.',
        flag_values=values,
    )
    flags.DEFINE_list('lengths', '512,1024,2048,4096,8192', 'Sequence lengths.', flag_values=values)
    flags.DEFINE_integer('rows', 1, 'Sequences of a batch.', 1, 100_000, flag_values=values)
    flags.DEFINE_integer('heads', 8, 'Query heads.', 1, 10_000, flag_values=values)
    flags.DEFINE_integer(
        'kv_heads', 0, 'Key-value heads; 0: as many as query heads.', 0, 10_000, flag_values=values
    )
    flags.DEFINE_integer('head_dim', 64, 'Size of a head.', 1, 100_000, flag_values=values)
    flags.DEFINE_enum(
        'dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'Of all inputs.', flag_values=values
    )
    flags.DEFINE_bool(
        'timed',
        True,
        'Run the programs; --notimed only compiles them, for their memory.',
        flag_values=values,
    )
    flags.DEFINE_string('out', '', 'Write a picture of the curves here.', flag_values=values)
    define_json(values)
    define_processes(values)


def run_bench_attention(values: Flags) -> None:
    """Time attention against the sequence length and print the result."""
    from transformer_jax.display.figures import check_figure
    from transformer_jax.display.tables import print_benchmark
    from transformer_jax.profiling.bench_attention import bench_attention
    from transformer_jax.profiling.bench_attention_result import Sizes, draw, tables

    lengths = whole_numbers(values, 'lengths')
    for name in ('lengths', 'engines'):
        if not values[name].value:
            raise ConfigError(f'--{name} is empty: name one or more, separated by commas')
    kv_heads = values.kv_heads or values.heads
    sizes = Sizes(values.rows, values.heads, kv_heads, values.head_dim, values.dtype)
    if sizes.heads % sizes.kv_heads:
        raise ConfigError(f'--heads={sizes.heads} is not divisible by --kv_heads={sizes.kv_heads}')
    if values.out:
        check_figure(epath.Path(values.out))
    attentions = [text.strip() for text in values.attention.split(';')]
    result = bench_attention(attentions, values.engines, lengths, sizes, log, values.timed)
    print_benchmark(result, tables(result), values.json)
    if values.out:
        write_once(lambda: log(f'wrote {draw(result, values.out)}'))
