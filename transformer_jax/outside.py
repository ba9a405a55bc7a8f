"""Classes from outside of the package, which a spec names by their module.

`my_kinds.cosine.Cosine(temperature=5)` is as good a spec as `softmax(softcap=50)`, for every table:
attention kinds, masks, positions, optimizers, tasks and the others. The module must be importable
wherever the configuration is read: installed, in a folder of PYTHONPATH, or in the current folder.
"""

import dataclasses
import hashlib
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_modules: set[str] = set()  # that were imported for specs, for the record of a run


def import_class(name: str, table: Mapping[str, type]) -> type:
    """Import a class that can stand in place of one of a table's.

    Args:
        name: module and class, 'my_kinds.cosine.Cosine'.
        table: name to frozen dataclass.

    Raises:
        ValueError: no such module or class, or one that the table cannot hold; the message goes on
            from 'model.attention=…'.
    """
    module, _, attribute = name.rpartition('.')
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f'{module}.'.startswith(f'{error.name}.'):
            raise ValueError(f'imports {module}, which needs the module {error.name}') from error
        raise ValueError(
            f'names the module {error.name}, which is not found: install it, or put its folder '
            'into PYTHONPATH'
        ) from error
    except (Exception, SystemExit) as error:  # Whatever a module of others raises.
        raise ValueError(
            f'imports {module}, which fails: {type(error).__name__}: {error}'
        ) from error
    if not hasattr(imported, attribute):
        raise ValueError(f'names {name}, but the module {module} has no {attribute}')
    found, base = getattr(imported, attribute), common_base(table)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f'names {name}, which is no {base.__name__}: derive a class of {module} from '
            f'{base.__module__}.{base.__name__}'
        )
    if not dataclasses.is_dataclass(found) or not found.__hash__:
        raise ValueError(
            f'names {name}: make it a dataclass by @dataclasses.dataclass(frozen=True)'
        )
    _modules.add(module)
    return found


def sources() -> dict[str, str]:
    """Map each module that specs named to the SHA-256 of its file."""
    files = {name: getattr(sys.modules[name], '__file__', None) for name in sorted(_modules)}
    return {
        name: hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for name, file in files.items()
        if file
    }


def class_name(cls: type) -> str:
    """Name a class by its module, as `import_class` reads it."""
    return f'{cls.__module__}.{cls.__qualname__}'


def common_base(table: Mapping[str, type]) -> type:
    """Return the class that all classes of a table derive from; the narrowest one."""
    first, *others = table.values()
    return next(cls for cls in first.__mro__ if all(issubclass(one, cls) for one in others))
