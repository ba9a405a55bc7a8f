"""Where an experiment differs from the paper that it reproduces."""

import dataclasses
from collections.abc import Sequence

from transformer_jax.ablation.field_types import check_fields
from transformer_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Difference:
    """A thing that the paper did otherwise: Difference('data', paper='WMT 2014', here='Multi30k').

    Attributes:
        what: data, model, training, measure, …
        paper: what the paper did.
        here: what this experiment does.
    """

    what: str
    paper: str
    here: str

    def __post_init__(self):
        check_fields(self)
        for field in dataclasses.fields(self):
            if not getattr(self, field.name).strip():
                raise ConfigError(f'Difference {self.what!r}: {field.name} is empty, fill it in')
        if self.paper == self.here:
            raise ConfigError(f'Difference {self.what!r}: paper and here say the same, remove it')


def check_differences(differences: Sequence[Difference]) -> None:
    """Raise ConfigError where two differences are about the same thing."""
    whats = [each.what for each in differences]
    if twice := [what for what in whats if whats.count(what) > 1]:
        raise ConfigError(f'differences has {twice[0]!r} twice: put them into one')
