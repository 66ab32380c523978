"""Layer table: kind of layer -> its arrays in order -> their names and axes."""

from __future__ import annotations

from xweights.backend import Entry

TABLE = {
    "linear": (Entry("0", "kernel", "out in -> in out"), Entry("1", "bias", "out")),
    "lookup": (Entry("0", "embeddings", "vocab dim"),),
}
