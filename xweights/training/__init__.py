"""Rules, freezing, pruning, penalties and averages that apply while a model trains."""
