"""Mistakes that mypy and pyright have to find: an ignore that nothing needs is an error in both (`nox -s types`)."""

import numpy as np

import xweights as xw

weights = {"dense/kernel": np.ones((3, 2))}


def misspell() -> None:
    xw.clipp(weights, -1, 1)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
    xw.Cliip(-1, 1)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
    xw.import_module("os")  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
    xw.get_params(weights).axis  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue] # noqa: B018
    from xweights import mergee  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue] # noqa: F401


def misname() -> None:
    xw.prune(weights, amount=0.8)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    xw.prune(weights, 0.8)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    xw.clip(weights, min=-1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def mistake_the_result() -> None:
    xw.prune(weights, fraction=0.5).release()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
    xw.prune(weights, fraction=0.5, hold=True)["dense/kernel"]  # type: ignore[index] # pyright: ignore[reportIndexIssue]
    xw.merge([weights], out="w.npz")["dense/kernel"]  # type: ignore[index] # pyright: ignore[reportIndexIssue]
    xw.stats(weights)["dense/kernel"].avg  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue] # noqa: B018
