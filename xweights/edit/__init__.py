"""Read, write and edit live targets."""

from collections.abc import Mapping, Sequence
from typing import Any

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter, register_io
from xweights.core.public_calls import told_of_refusals
from xweights.core.registry import loaded


def _read(parameter: Parameter) -> Array:
    from xweights.edit.read import get_params

    return get_params(parameter, where=parameter)[parameter.name]


def _write(parameter: Parameter, value: Any) -> None:
    from xweights.edit.write import set_params

    set_params(parameter, {parameter.name: value}, where=parameter)


def connect_parameters() -> None:
    """Let `Parameter.numpy` and `Parameter.assign` read and write."""
    register_io(_read, _write)


def _tell_ranks(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], error: Exception) -> None:
    if not loaded():  # files and NumPy: there are no ranks
        return
    from xweights.edit.refusals import tell_ranks

    tell_ranks(name, arguments, keywords, error)


connect_parameters()
told_of_refusals.append(_tell_ranks)
