"""The table of tasks: what a model can learn from. A new task is a class and a row."""

from transformer_jax.data.tasks.base import Task
from transformer_jax.data.tasks.cifar10 import Cifar10
from transformer_jax.data.tasks.multi30k import Multi30k
from transformer_jax.data.tasks.number_words import NumberWords
from transformer_jax.data.tasks.parallel_text import ParallelText
from transformer_jax.data.tasks.synthetic import SYNTHETIC
from transformer_jax.data.tasks.text_file import TextFile
from transformer_jax.data.tasks.tfds import TfdsClassification, TfdsText, TfdsTranslation

TASKS: dict[str, type[Task]] = {
    'number_words': NumberWords,
    'multi30k': Multi30k,
    'parallel_text': ParallelText,
    'tfds_translation': TfdsTranslation,
    'text_file': TextFile,
    'tfds_text': TfdsText,
    'tfds_classification': TfdsClassification,
    'cifar10': Cifar10,
    **SYNTHETIC,
}
