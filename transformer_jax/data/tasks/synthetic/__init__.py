"""The table of generated tasks. A new one is a class and a row."""

from transformer_jax.data.tasks.synthetic.algorithmic import (
    Addition,
    Copy,
    Dyck,
    Parity,
    Reverse,
    Sort,
)
from transformer_jax.data.tasks.synthetic.base import GeneratedTask
from transformer_jax.data.tasks.synthetic.listops import ListOps
from transformer_jax.data.tasks.synthetic.recall import (
    MQAR,
    Dependency,
    Induction,
    SelectiveCopying,
)

GENERATED: dict[str, type[GeneratedTask]] = {
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
