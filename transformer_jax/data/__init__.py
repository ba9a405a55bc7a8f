"""Tasks, tokenizer, batch plan and pipeline."""

from transformer_jax.data.batching import BATCHING
from transformer_jax.data.pipeline import Data, load_data
from transformer_jax.data.source_batches import source_batches
from transformer_jax.data.tasks import TASKS

__all__ = ['BATCHING', 'TASKS', 'Data', 'load_data', 'source_batches']
