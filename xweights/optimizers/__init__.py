"""Handing a half-trained experiment to another framework: weights, optimizer, schedule, clipping and averages.

- ``formulas``, ``numbers``: every update rule, written once
- ``rates``: learning-rate schedules, defined once
- ``state``: what an optimizer knows, in neutral words; ``specs``: one that begins
- ``protocol``: what a backend tells and does about its optimizers
- ``carrying``: a state from one model to its twin; ``variants``: what of a rule is written differently
- ``access``: ``get_optimizer``, ``set_optimizer``; ``moving``: ``handoff``
- ``proving``: ``verify_handoff``; ``reports``: what comes back
- ``data``: equal batches and equal dropout masks in every framework

Names are public through :mod:`xweights.api`.
"""
