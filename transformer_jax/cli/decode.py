"""The commands that apply a trained model to texts: translate, generate, classify, attention."""

import itertools

from absl import flags

from transformer_jax.cli.flags import (
    Flags,
    define_beam,
    define_decoding,
    define_trained,
    given_decoding,
    log,
    open_trained,
    required,
)
from transformer_jax.cli.streams import arriving_lines, read_standard_input, use_utf8_output
from transformer_jax.config.arguments import RANGES
from transformer_jax.errors import ConfigError


def define_translate(values: Flags) -> None:
    """Define the flags of `translate`."""
    define_decoding(values)


def run_translate(values: Flags) -> None:
    """Translate the lines of standard input, one line of output each."""
    trained = open_trained(values)
    from transformer_jax.inference.generate import translate
    from transformer_jax.inference.requirements import require_ability

    require_ability(trained, 'translate')
    use_utf8_output()
    for lines in translate(trained, arriving_lines()):
        print(''.join(f'{line}\n' for line in lines), end='', flush=True)


def define_generate(values: Flags) -> None:
    """Define the flags of `generate`."""
    define_trained(values)
    flags.DEFINE_string(
        'prompt', None, 'The text to continue; by default standard input.', flag_values=values
    )
    flags.DEFINE_integer(
        'max_tokens', 256, 'Tokens to add at most.', 1, 100_000, flag_values=values
    )
    flags.DEFINE_enum(
        'method', None, ['sample', 'greedy', 'beam'], 'Replaces decode.method.', flag_values=values
    )
    define_beam(values)
    flags.DEFINE_float(
        'temperature', None, 'Samples; replaces decode.temperature.', 0.0, flag_values=values
    )
    flags.DEFINE_integer(
        'top_k', None, 'Samples; replaces decode.top_k; 0: all.', 0, flag_values=values
    )
    flags.DEFINE_float(
        'top_p', None, 'Samples; replaces decode.top_p.', 0.0, 1.0, flag_values=values
    )
    flags.DEFINE_integer('seed', 0, 'The seed of sampling.', 0, 2**32 - 1, flag_values=values)
    flags.DEFINE_integer(
        'samples',
        1,
        'How many continuations; each adds 1 to the seed.',
        1,
        100_000,
        flag_values=values,
    )
    flags.DEFINE_multi_string('stop', [], '', flag_values=values)
    # Set here, since absl appends a remark to the help that such a flag is defined with.
    values['stop'].help = 'A text that ends the continuation; may be given several times.'


def run_generate(values: Flags) -> None:
    """Continue a prompt and print it with each continuation, token by token when sampling."""
    from transformer_jax.inference.generate import Generator
    from transformer_jax.inference.requirements import require_ability

    last = values.seed + values.samples - 1
    if why := RANGES['seed'].reject('the last one', last):
        raise ConfigError(f'--samples={values.samples} counts --seed={values.seed} up: {why}')
    trained = open_trained(values, ('method', 'beam', 'temperature', 'top_k', 'top_p'))
    require_ability(trained, 'generate')
    method = trained.config.decode.method
    if values.samples > 1 and method != 'sample':
        log(f'--samples={values.samples}: all are the same, since decode.method={method!r}')
    generator = Generator(trained, values.max_tokens, tuple(values.stop))
    prompt = read_standard_input() if values.prompt is None else values.prompt
    use_utf8_output()
    for sample in range(values.samples):
        pieces = generator.continue_text(prompt, values.seed + sample)
        print(prompt, end='')
        for piece in pieces:
            print(piece, end='', flush=True)
        print()


def define_classify(values: Flags) -> None:
    """Define the flags of `classify`."""
    define_trained(values)


def run_classify(values: Flags) -> None:
    """Print the class of each line of standard input and its probability."""
    trained = open_trained(values, ())
    from transformer_jax.inference.generate import classify
    from transformer_jax.inference.requirements import require_ability

    require_ability(trained, 'classify')
    use_utf8_output()
    lines = itertools.chain.from_iterable(arriving_lines())
    for name, probability in classify(trained, lines):
        print(f'{name}\t{probability:.4f}', flush=True)


def define_attention(values: Flags) -> None:
    """Define the flags of `attention`."""
    define_decoding(values)
    flags.DEFINE_string(
        'text',
        '',
        'The text that the model reads; it is translated where the model translates.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'out',
        'attention.png',
        'The picture; if there are several, each gets a number.',
        flag_values=values,
    )


def run_attention(values: Flags) -> None:
    """Draw the attention weights of every head for a text; print its translation, if any."""
    text = required(values, 'text')
    trained = open_trained(values)
    from transformer_jax.inference.attention_maps import draw_text
    from transformer_jax.inference.requirements import require_ability, require_decoding

    require_ability(trained, 'attention')
    require_decoding(trained, given_decoding(values))
    use_utf8_output()
    for file in draw_text(trained, text, values.out, print):
        log(f'wrote {file}')
