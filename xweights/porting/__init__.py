"""Porting: moving the weights of a model to its twin in another framework, proved right or refused.

- ``protocol``: what a backend tells about its layers, and how it runs a model under watch
- ``units``, ``recipes``: every layer as units of one canonical form, the same in every framework
- ``compare``: when two arrays are the same numbers, up to layout, padding and a permutation
- ``settings``, ``samples``, ``outputs``: what else two models must have in common
- ``plan``: which unit belongs to which, without a sample
- ``trace``, ``matching``: the same by running both models on a sample, and the proof
- ``sides``, ``writing_units``: the two models, and how a unit's weights get into another
- ``moving``: ``port``; ``verify``, ``causes``: where two models part, and why
- ``reports``, ``skeletons``: what comes back; the source code of a twin

Names are public through :mod:`xweights.api`.
"""
