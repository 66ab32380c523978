"""Adapters for ``adapt=``: bring a value to the shape of a parameter, one explicit way for each.

Each is a small frozen object, and does one thing along one axis, by the axis' name (or its number, in neutral order).
A list of them is applied in its order. Nothing is adapted unless it is said: values of another shape are refused.

Example:
    >>> import numpy as np, xweights as xw
    >>> gray, rgb = {"stem/kernel": np.zeros((1, 2))}, {"stem/kernel": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
    >>> report = xw.set_params(gray, rgb, adapt={"stem/kernel": xw.adapt.Sum(0)}); gray["stem/kernel"]
    array([[ 9., 12.]])
"""

from xweights.edit.adapt.along_axis import Mean, Repeat, Sum, Take
from xweights.edit.adapt.base import Adapter, Leave, Wanted
from xweights.edit.adapt.new_entries import Pad
from xweights.edit.adapt.resample import Resample
from xweights.edit.adapt.rows import Rows

__all__ = ["Adapter", "Leave", "Mean", "Pad", "Repeat", "Resample", "Rows", "Sum", "Take", "Wanted"]
