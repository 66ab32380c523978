"""keras_hub as a hub: its families as classes of transformers."""

from xweights_keras.hub.keras_hub import KerasHub

hub = KerasHub()
