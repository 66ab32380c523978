"""Tables of the layers of packages that build on Keras, one file for each; nothing of them is imported.

Each row was read off the source of the version that docs/layers.md names. A row's key is the variable's own name
(``add_weight(name=...)``), or the attribute that holds it. Keras' layers inside of these (Dense, EinsumDense,
MultiHeadAttention ...) need no rows.
"""

from __future__ import annotations

from xweights.core.package_tables import PackageTables

TABLES = PackageTables(
    "xweights_keras.tables",
    {
        "keras.src.applications.": "applications",
        "keras_hub.": "keras_hub",
        "keras_nlp.": "keras_hub",  # its name before it had other models than of language
        "keras_cv.": "keras_cv",
    },
)
