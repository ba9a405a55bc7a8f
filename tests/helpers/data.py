"""Small data sets of number words, and how they are loaded."""

from etils import epath

from transformer_jax.config import resolve
from transformer_jax.data import load_data
from transformer_jax.schema import DataConfig, EvaluateConfig, ExperimentConfig, TrainConfig


def everything(rows: int) -> tuple[int, int]:
    """Return the rows of the only process: all."""
    return 0, rows


def numbers(cache, seed: int = 0, **data) -> ExperimentConfig:
    """Return an experiment on 200 number words, with keys of `data` replaced."""
    given = {
        'task': 'number_words(limit=200, held_out=20)',
        'vocab_size': 70,
        'cache_dir': str(cache),
        'batching': 'buckets(lengths=(8, 16, 32))',
        **data,
    }
    return ExperimentConfig(
        data=DataConfig(**given),
        train=TrainConfig(batch_tokens=256, seed=seed),
        evaluate=EvaluateConfig(batch_tokens=256),
    )


def load(config: ExperimentConfig, directory, **kwargs):
    """Load an experiment's data; return it and the lines of the log."""
    lines, folder = [], epath.Path(directory) / 'tokenizer'
    return load_data(resolve(config).pipeline, folder, lines.append, **kwargs), lines
