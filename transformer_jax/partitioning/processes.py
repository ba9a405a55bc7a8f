"""The processes of a run: small texts that they exchange through JAX's coordination service."""

import contextlib
from typing import Any

import jax
from jax._src import distributed

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
