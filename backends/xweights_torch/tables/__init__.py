"""Tables of the layers of packages that build on torch, one file for each; nothing of them is imported.

Each row was read off the source of the version that constraints.txt or docs/layers.md names.
"""

from __future__ import annotations

from xweights.core.package_tables import PackageTables, Row

TABLES = PackageTables(
    "xweights_torch.tables",
    {
        "transformers.": "transformers",
        "timm.": "timm",
        "torchvision.": "torchvision",
        "diffusers.": "diffusers",
        "peft.": "peft",
    },
)

layer_rows_of = TABLES.layer_rows_of
free_row_of = TABLES.free_row_of

__all__ = ["TABLES", "Row", "free_row_of", "layer_rows_of"]
