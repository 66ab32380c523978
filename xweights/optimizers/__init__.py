"""Optimizer state, learning-rate schedules, and the hand-off of a half-trained experiment to another framework.

- ``rules.updates``, ``rules.scalars``, ``rules.array_math``: every update rule, written once
- ``lr_schedule``: learning-rate schedules
- ``state``: the state of an optimizer, free of any framework; ``initial_state``: before its first update
- ``protocol``: what a backend implements for its optimizers
- ``remap``: moves a state from one model to its twin; ``biases``: two recurrent biases that become one
- ``get_set``: ``get_optimizer``, ``set_optimizer``; ``handoff``: ``handoff``
- ``verify``: ``verify_handoff``; ``reports``: result types
- ``batches``: equal batches and equal dropout masks in every framework

Names are public through :mod:`xweights.api`.
"""
