"""A file system in memory that stands for Google Cloud Storage."""

from fsspec.implementations.memory import MemoryFileSystem


class FakeBucket(MemoryFileSystem):
    """Stands for Google Cloud Storage: memory under gs:// names."""

    protocol = 'gs'
    store, pseudo_dirs = {}, ['']

    def __init__(self, finalize_on_close: bool = False, **options):
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix('gs://'))
