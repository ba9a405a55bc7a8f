"""The table of synthetic tasks. A new one is a class and a row."""

from transformer_jax.data.tasks.synthetic.algorithmic import (
    Addition,
    Copy,
    Dyck,
    Parity,
    Reverse,
    Sort,
)
from transformer_jax.data.tasks.synthetic.base import SyntheticTask
from transformer_jax.data.tasks.synthetic.listops import ListOps
from transformer_jax.data.tasks.synthetic.recall import (
    MQAR,
    Dependency,
    Induction,
    SelectiveCopying,
)

SYNTHETIC: dict[str, type[SyntheticTask]] = {
    'copy': Copy,
    'reverse': Reverse,
    'sort': Sort,
    'addition': Addition,
    'parity': Parity,
    'dyck': Dyck,
    'induction': Induction,
    'selective_copying': SelectiveCopying,
    'mqar': MQAR,
    'listops': ListOps,
    'dependency': Dependency,
}
