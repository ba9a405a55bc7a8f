"""Every task says what it predicts and by which metrics it is scored."""

import pytest

from transformer_jax.data.tasks import TASKS
from transformer_jax.data.tasks.symbols import SymbolTask
from transformer_jax.data.tasks.text import ContiguousText, TextPairs, TextTask
from transformer_jax.data.tasks.text_file import TextFile
from transformer_jax.models import MODELS

LIKELIHOOD = ('loss', 'accuracy', 'perplexity')
NATURAL_TEXT = (*LIKELIHOOD, 'word_perplexity', 'bits_per_byte')
DECODED = ('bleu', 'chrf', 'exact_match')
SCORES = {
    ('number_words', 'multi30k', 'parallel_text', 'tfds_translation'): (*NATURAL_TEXT, *DECODED),
    ('text_file', 'tfds_text'): NATURAL_TEXT,
    ('tfds_classification', 'cifar10', 'parity', 'listops'): LIKELIHOOD,
    ('copy', 'reverse', 'sort', 'addition', 'dependency'): (*LIKELIHOOD, *DECODED),
    ('dyck', 'induction', 'selective_copying', 'mqar'): (*LIKELIHOOD, 'exact_match'),
}


def test_scores_of_all_tasks():
    found = {name: cls().scores for name, cls in TASKS.items()}
    assert found == {name: scores for names, scores in SCORES.items() for name in names}


def test_scores_by_length_are_those_of_windows_or_of_examples():
    for name, cls in TASKS.items():
        windows = name == 'text_file'
        assert cls().windowed == windows
        decoded = ('bleu',) if 'bleu' in cls().scores else ()
        by_example = ('accuracy', 'exact_match', *decoded)
        assert cls().scores_by_length == (LIKELIHOOD if windows else by_example)
    assert not TextFile(documents='lines').windowed
    assert TextFile(documents='lines').scores == TextFile().scores


@pytest.mark.parametrize('name', TASKS)
def test_every_task_has_one_of_three_bases_and_a_model_that_learns_it(name):
    task = TASKS[name]()
    assert isinstance(task, TextTask) != isinstance(task, SymbolTask)
    assert bool(task.symbols()) == isinstance(task, SymbolTask) == task.text_is_tokenized
    assert task.has_source or not task.predicts_class
    if isinstance(task, TextTask):
        assert isinstance(task, TextPairs) == task.has_source
        assert isinstance(task, ContiguousText) == task.windowed
    assert any(task.form in row.learns for row in MODELS.values())
