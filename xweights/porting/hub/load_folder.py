"""``import_hf``: make a model of a hub from a folder of the other library, proved against that library."""

from __future__ import annotations

import os
import warnings
from typing import Any

from xweights.errors import ArgumentError, BackendMissingError
from xweights.porting.hub.find import load_hubs
from xweights.porting.port import port


def import_hf(
    folder: str | os.PathLike[str], *, sample: Any = None, hub: str = "keras_hub", ignore_settings: bool = False
) -> Any:
    """Return a keras_hub backbone with the weights of a folder of Hugging Face transformers.

    The folder is loaded with transformers (only ``config.json`` and safetensors, no code of its own, nothing from the
    network), the backbone is made from the mapped settings, and the port is proved on a sample.

    A setting that keras_hub's class makes otherwise is set on its layers, with a warning.

    Args:
        folder: A local folder with ``config.json`` and weights in safetensors.
        sample: What the backbone is called with. Default: random numbers of a short length.
        hub: Whose model is made: the name of a hub.
        ignore_settings: Import a folder although a setting of its model can't be had in keras_hub (an activation, an
            eps): the weights are proved with keras_hub's setting, and the difference is a warning. Default: refuse.

    Exact: exactly the same bits as the weights in the folder, in 32 bits.
    Raises CheckpointError (a folder that isn't what it says), TargetError (a family that isn't known), PortError,
    BackendMissingError.

    Example:
        >>> import xweights as xw
        >>> xw.import_hf("there_is_none")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ...
        xweights.errors.FileAccessError: 'config.json': the system doesn't let us read it: No such file or directory
    """
    known = {one.name: one for one in load_hubs()}
    if hub not in known:
        if not known:
            raise BackendMissingError("no hub is registered\nFix: python -m pip install --force-reinstall xweights-nn")
        raise ArgumentError(f"hub= is the name of a hub\ngot:      {hub!r}\nexpected: {', '.join(known)}")
    twins = known[hub].open_folder(os.fspath(folder), sample, ignore=ignore_settings)
    report = port(
        twins.twin,
        twins.model,
        sample=twins.twin_sample,
        sample_target=twins.sample,
        outputs=dict(twins.outputs) if twins.outputs else None,
        attributes="fix",
    )
    fixed = [difference for difference in report.differences if difference.fixed]
    if fixed:
        text = f"{fixed[0]}: it was set, likewise on {len(fixed) - 1} more layers, and get_config() doesn't keep it"
        warnings.warn(text, UserWarning, stacklevel=2)
    return twins.returned
