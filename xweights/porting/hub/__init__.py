"""Models of a hub as folders of another library, and back: settings are mapped, weights are ported and proved."""
