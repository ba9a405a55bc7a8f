"""Names that were changed: errors about old spellings give the new one, and old files are read.

Version 1 of stored configurations (see `storage.config_versions`) has the old names.
"""

# Configuration keys.
RENAMED_KEYS = {
    'decode.max_len': 'decode.max_extra_tokens',
    'data.limit': 'data.max_train_examples',
    'train.replicas': 'train.num_seeds',
}
# Names in spec strings: 'first(4)' is 'global_tokens(4)' today.
RENAMED_NAMES = {'paper': 'noam', 'first': 'global_tokens'}
# Names of options in spec strings: 'softmax(normaliser=sink)'.
RENAMED_OPTIONS = {'normaliser': 'normalizer'}


def new_name(name: str) -> str:
    """Return what is called today as `name` was before, or '' for all other names."""
    return {**RENAMED_KEYS, **RENAMED_NAMES, **RENAMED_OPTIONS}.get(name, '')
