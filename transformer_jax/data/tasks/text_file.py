"""Any text file, as one contiguous text or as documents that stand alone."""

import dataclasses

from etils import epath

from transformer_jax.data.files import Texts, content_hash, find, read_lines
from transformer_jax.data.tasks.text import ContiguousText
from transformer_jax.errors import DataError
from transformer_jax.ranges import number
from transformer_jax.schema import DataConfig
from transformer_jax.storage.paths import expand_home

DOCUMENTS = ('whole', 'lines', 'paragraphs')


@dataclasses.dataclass(frozen=True)
class TextFile(ContiguousText):
    """Any text files, plain or gzipped, paths relative to `data.source_dir` or absolute.

    Without a `validation` file the last `share` of the training file's characters is the validation
    split. `documents` says what stands alone: the 'whole' text, which is cut into windows as long
    as the rows; its 'lines'; or its 'paragraphs', which an empty line separates. Packed rows keep
    documents apart.
    """

    train: str = 'input.txt'
    validation: str = ''
    test: str = ''
    share: float = number(0.1, above=0, below=1)
    documents: str = 'whole'

    def __post_init__(self):
        super().__post_init__()
        if self.documents not in DOCUMENTS:
            raise ValueError(f'documents={self.documents!r}, it takes {", ".join(DOCUMENTS)}')

    @property
    def windowed(self) -> bool:
        """See Task."""
        return self.documents == 'whole'

    def load(self, data: DataConfig, split: str) -> Texts:
        """See TextTask."""
        path = self._file(data, split)
        whole = '\n'.join([*read_lines(path), ''])
        start, stop = 0, len(whole)
        if not self.validation and split != 'test':
            at = round(len(whole) * (1 - self.share))
            start, stop = (0, at) if split == 'train' else (at, len(whole))
        text, line = whole[start:stop], whole.count('\n', 0, start) + 1
        if not text.strip():
            why = ''
            if whole.strip():
                why = f': validation has share={self.share} of {len(whole)} characters; change that'
            raise DataError(f'{path}: the {split} text is empty{why}')
        separator = {'whole': '', 'lines': '\n', 'paragraphs': '\n\n'}[self.documents]
        parts, lines = [], []
        for part in text.split(separator) if separator else [text]:
            if part.strip():
                parts.append(part)
                lines.append(line + part.count('\n', 0, len(part) - len(part.lstrip())))
            line += part.count('\n') + len(separator)
        return Texts(None, parts, str(path), str(path), lines)

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See TextTask."""
        return f'{self} {split} {content_hash(self._file(data, split))}'

    def _file(self, data: DataConfig, split: str) -> epath.Path:
        name = self.train if split == 'validation' and not self.validation else getattr(self, split)
        if not name:
            raise DataError(f"data.task: text_file({split}='') has no {split} split")
        path = expand_home(data.source_dir) / name
        return find(path, f'data.source_dir and data.task ({split})')
