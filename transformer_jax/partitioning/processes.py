"""The processes of a run: small texts that they exchange through JAX's coordination service."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

from transformer_jax.errors import ConfigError, DataError
from transformer_jax.storage.json_files import parse_json
from transformer_jax.storage.json_text import to_json

PREFIX = 'transformer_jax'


class KeyValues:
    """Texts that all processes of a run see.

    No device takes part, so that processes that compile, wait or fail can still talk.
    """

    def __init__(self, name: str):
        """Use the keys under a name."""
        self._prefix = f'{PREFIX}/{name}/'

    @property
    def _client(self) -> Any:
        client = distributed.global_state.client
        assert client is not None, 'the processes have not joined'
        return client

    def offer(self, key: str, value: str) -> None:
        """Write a text, unless the key has one."""
        # JAX reports a key that exists by this error alone.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(self._prefix + key, value)

    def replace(self, key: str, value: str) -> None:
        """Write a text, whether the key has one or not."""
        self._client.key_value_set(self._prefix + key, value, allow_overwrite=True)

    def take(self, key: str, takers: int) -> str:
        """Return the text of a key, once it has one; the last of so many takers deletes it."""
        value = self.wait_for(key)
        if self._client.key_value_increment(f'{self._prefix}{key}/taken', 1) == takers:
            self._client.key_value_delete(self._prefix + key)
        return value

    def read_all(self) -> dict[str, str]:
        """Return all keys that have a text."""
        found = self._client.key_value_dir_get(self._prefix)
        return {key.partition(self._prefix)[2]: value for key, value in found}

    def wait_for(self, key: str) -> str:
        """Return the text of a key, once it has one."""
        while True:
            try:
                return self._client.blocking_key_value_get(self._prefix + key, 10_000)
            except jax.errors.JaxRuntimeError as error:
                if 'DEADLINE_EXCEEDED' not in str(error):
                    raise


_calls = itertools.count()


def from_primary(work: Callable[[], Any]) -> Any:
    """Do something on process 0, such as to read, and return its result on every process.

    The others wait as long as it takes, and no device takes part. Every process must call this.

    Args:
        work: returns a value that JSON can hold.

    Raises:
        ConfigError, DataError: on every process, where `work` raises it. What else it raises is
            raised on process 0 alone, which then ends, and the others with it.
    """
    if jax.process_count() == 1:
        return work()
    keys, key = KeyValues('primary'), str(next(_calls))
    if jax.process_index() == 0:
        try:
            value = work()
        except (ConfigError, DataError) as error:
            keys.replace(key, to_json([isinstance(error, ConfigError), str(error)]))
            raise
        keys.replace(key, to_json([value]))
        return value
    text = keys.take(key, jax.process_count() - 1)
    found = parse_json(text, 'what process 0 says', [object], 'start all processes again')
    if len(found) == 2:
        raise (ConfigError if found[0] else DataError)(found[1])
    return found[0]
