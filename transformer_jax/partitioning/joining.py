"""How a process joins the others of its run: what was given is checked before JAX sees it.

JAX ends a process without a message of its own (SIGSEGV, an abort, a traceback) for an address or
port that it cannot use.
"""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

from transformer_jax import process_end
from transformer_jax.errors import ConfigError, ProcessGone, UserError
from transformer_jax.partitioning.peers import START_ALL, Peers, set_peers

JOIN_S = 300  # How long the processes wait for each other at the start.
CLUSTER = '--distributed'
ABSENT = 'not all processes came'


def join_cluster() -> None:
    """Join the processes that the environment of the cluster names.

    Raises:
        ConfigError: it names none, or they cannot be joined.
        ProcessGone: they do not all come: a host may be late, and a restart helps.
    """
    address = os.environ.get('JAX_COORDINATOR_ADDRESS')
    if address:
        split_address(address, f'JAX_COORDINATOR_ADDRESS={address}')
    _join(CLUSTER, {})


def join(coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the processes of a run.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: of the run.
        process_id: of this process, from 0.

    Raises:
        ConfigError: an argument that cannot be, a port that is taken, or a process 0 that does not
            answer; the message names the flag.
    """
    if process_id >= num_processes:
        raise ConfigError(
            f'--process_id={process_id}: with --num_processes={num_processes} the processes are '
            f'0 to {num_processes - 1}'
        )
    split_address(coordinator, f'--coordinator={coordinator}')
    arguments = {
        'coordinator_address': coordinator,
        'num_processes': num_processes,
        'process_id': process_id,
    }
    _join(f'--coordinator={coordinator}', arguments)


def _join(flag: str, arguments: dict[str, Any]) -> None:
    peers = Peers(_absence(flag))
    peers.end_on_native_failure()
    # Its handler would swallow a SIGTERM that comes before the first step, see `StopAgreement`.
    jax.config.update('jax_enable_preemption_service', False)
    internals: Any = distributed  # JAX has no public name for the service that it starts
    original = internals._jax
    internals._jax = _CheckedRuntime(original, flag, peers.end_process)
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=JOIN_S, shutdown_timeout_seconds=60
        )
    except (ConfigError, ProcessGone):
        raise
    except Exception as error:  # JAX's own, of many types.
        text = _explain(error)
        kind = _absence(flag) if text.startswith(ABSENT) else ConfigError
        raise kind(f'{flag}: {text}') from error
    finally:
        internals._jax = original
        if internals.global_state.client is not None or internals.global_state.service is not None:
            set_peers(peers)  # From here on the process ends by `Peers.leave`, joined or not.
    peers.watch()
    if (guard := process_end.guard()) is not None:
        guard.before_end = peers.tell


def _absence(flag: str) -> type[UserError]:
    """Return the error for processes that do not come.

    Those that a user numbers by hand may be a mistake; those that a cluster starts are late.
    """
    return ProcessGone if flag == CLUSTER else ConfigError


def _explain(error: Exception) -> str:
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    if 'coordinator_address should be defined' in text:
        return (
            'the environment names no other processes (JAX knows SLURM, TPU VMs, Open MPI, …): '
            'give --coordinator=HOST:PORT, --num_processes and --process_id'
        )
    # bad_cast: jaxlib's own, in place of any status that it would give to its callback.
    late = ('DEADLINE_EXCEEDED', 'imed out', 'bad_cast', 'Failed to recognize coordinator')
    if any(word in text for word in late):
        return f'{ABSENT} within {JOIN_S} s, or two have one number: {START_ALL}'
    return text


class _CheckedRuntime:
    """JAX's module of the coordination service, with checks before it is started or used."""

    def __init__(self, module: Any, flag: str, on_failure: Callable[..., None]):
        self._module, self._flag, self._on_failure = module, flag, on_failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def get_distributed_runtime_service(self, address: str, *arguments: Any, **options: Any) -> Any:
        """Start the service of process 0."""
        _, port = split_address(address, self._flag)
        _require_free(port, self._flag)
        return self._module.get_distributed_runtime_service(address, *arguments, **options)

    def get_distributed_runtime_client(
        self, address: str, process_id: int, *arguments: Any, **options: Any
    ) -> Any:
        """Connect to the service; a fatal error of it ends this process with one line."""
        _wait_for_answer(*split_address(address, self._flag), self._flag)
        options |= {'missed_heartbeat_callback': self._on_failure}
        return self._module.get_distributed_runtime_client(
            address, process_id, *arguments, **options
        )


def split_address(address: str, flag: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; raises ConfigError, which names `flag`, for another."""
    host, colon, port = address.rpartition(':')
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f'{flag}: write HOST:PORT, with a port from 1 to 65535')
    return host.strip('[]'), int(port)


def _require_free(port: int, flag: str) -> None:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(('', port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ConfigError(
            f'{flag}: process 0 cannot listen on port {port} ({error.strerror}): choose another '
            'port, the same for all processes'
        ) from error


def _wait_for_answer(host: str, port: int, flag: str) -> None:
    until = time.monotonic() + JOIN_S
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except (socket.gaierror, UnicodeError) as error:
            raise _absence(flag)(f'{flag}: no host {host!r} is known here') from error
        except OSError as error:
            if time.monotonic() > until:
                raise _absence(flag)(
                    f'{flag}: nothing answers there ({error.strerror or error}): process 0 must '
                    'run on that host and listen on that port'
                ) from error
        time.sleep(0.5)
