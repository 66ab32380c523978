"""What xweights writes of a module is what its state dict holds, and the keys of a file find their way back."""

from __future__ import annotations

import io
import random
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch.optim.swa_utils import AveragedModel  # noqa: E402

import xweights as xw  # noqa: E402
from xweights.core.backend import HasState  # noqa: E402
from xweights.errors import NotBuiltError, RefusedFileError, ShapeError, WriteError, XweightsError  # noqa: E402
from xweights_torch import backend  # noqa: E402
from xweights_torch.tables.spellings import respell  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.body(self.embedding(x)))


class Doubled(nn.Module):
    def forward(self, w):
        return w * 2

    def right_inverse(self, w):
        return w / 2


class WithExtraState(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.dense = nn.Linear(2, 2)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


class Cast(nn.Module):
    """Its state dict has the weights in half precision, under a name that the module hasn't."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3, 2)
        self._register_state_dict_hook(lambda module, state, prefix, metadata: self.change(state, prefix))

    def change(self, state, prefix):
        state[f"{prefix}packed"] = state.pop(f"{prefix}dense.weight").detach().half()


class Renaming(nn.Module):
    """Its state dict has other names for the same tensors."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def state_dict(self):
        return OrderedDict((f"outer.{key}", value) for key, value in self.inner.state_dict().items())


LAYERS = {
    "plain": lambda layer: layer,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
    "two": lambda m: parametrize.register_parametrization(parametrizations.weight_norm(m), "weight", Doubled()),
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda m: prune.random_unstructured(m, "weight", 0.5),
    "prune twice": lambda m: prune.random_unstructured(prune.random_unstructured(m, "weight", 0.3), "weight", 0.3),
    "pruned weight_norm": lambda m: prune.random_unstructured(nn.utils.weight_norm(m), "weight_v", 0.5),
}


def averaged(module):
    """Return an average of the module, which copies it: torch copies no tensor that has a history."""
    for child in module.modules():
        for name, value in vars(child).items():
            if isinstance(value, torch.Tensor):
                vars(child)[name] = value.detach()
    return AveragedModel(module)


WRAPPERS = {
    "none": lambda m: m,
    "DataParallel": nn.DataParallel,
    "AveragedModel": averaged,
    "compiled": torch.compile,
    "averaged and compiled": lambda m: torch.compile(averaged(m)),
}


def build(seed):
    """Return a random module: nested, tied, parametrized, wrapped. The same seed gives the same structure."""
    choose = random.Random(seed)
    torch.manual_seed(seed)

    def layer():
        base = choose.choice([lambda: nn.Linear(4, 4), lambda: nn.Conv1d(4, 3, 2), lambda: nn.ConvTranspose2d(4, 5, 2)])
        return LAYERS[choose.choice(list(LAYERS))](base())

    def block(depth):
        kind = choose.randrange(8)
        if kind == 0 and depth < 3:
            return nn.Sequential(*(block(depth + 1) for _ in range(choose.randrange(1, 4))))
        if kind == 1 and depth < 3:
            return nn.ModuleDict({name: block(depth + 1) for name in "ab"})
        if kind == 2:
            return Tied()
        if kind == 3:
            return nn.BatchNorm1d(4)
        if kind == 4:
            return WithExtraState(choose.choice([torch.arange(3), {"step": 3, "scale": [0.5, None]}, "text"]))
        if kind == 5:
            return choose.choice([lambda: nn.LSTM(3, 2), lambda: nn.MultiheadAttention(4, 2)])()
        if kind == 6:
            shared = layer()
            return nn.ModuleList([shared, nn.Sequential(shared)])
        return layer()

    inner = nn.Sequential(*(block(0) for _ in range(choose.randrange(1, 5))), nn.Linear(2, 2))
    wrapped = WRAPPERS[choose.choice(list(WRAPPERS))](inner)
    return wrapped.to(choose.choice([torch.float32, torch.float32, torch.float64])).train(choose.random() < 0.5)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def same_state(got, expected):
    return list(got) == list(expected) and all(same(got[key], expected[key]) for key in expected)


def write_all(match, arrays):
    """Write what a match says, as set_params does."""
    for write in match.writes:
        values = [np.array(arrays[key]) for key in write.sources]
        write.parameter.write(values[0] if write.combine is None else write.combine(values))


def arrays_of(module):
    return {
        key: value.detach().numpy() for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)
    }


def erase(module):
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.zero_()
    return module


def prove(seed, path):
    module = build(seed)
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in module.state_dict().items()}
    xw.save(module, path, durable=False)
    saved = torch.load(path, weights_only=True)
    assert same_state(module.state_dict(), before)
    assert same_state(saved, before)
    assert saved._metadata == module.state_dict()._metadata
    twin = erase(build(seed))
    twin.load_state_dict(saved, strict=True)
    assert same_state(twin.state_dict(), before)
    match = backend.match_state(list(before), module)
    extra = {key for key in before if key.endswith("_extra_state")}
    assert {key for write in match.writes for key in write.keys} | extra == set(before)
    assert set(match.left_in_file) == extra
    assert all(reason for reason in match.left_in_file.values())
    assert {key for entry, _ in match.left_in_model for key in entry.keys} == extra
    other = erase(build(seed))
    write_all(backend.match_state([key for key in before if key not in extra], other), arrays_of(module))
    arrays = {k: v for k, v in before.items() if k not in extra}
    assert same_state({k: v for k, v in other.state_dict().items() if k not in extra}, arrays)
    for saver in (lambda file: None, lambda file: torch.save({"model": module.state_dict(), "epoch": 1}, file)):
        saver(path)
        third = erase(build(seed))
        xw.set_params(third, path, layout="native", allow_nonfinite=True)
        assert same_state({k: v for k, v in third.state_dict().items() if k not in extra}, arrays)
        assert xw.equal(third, path)


@pytest.mark.parametrize("seed", range(30))
def test_a_random_module_takes_what_was_saved_of_it_and_every_key_is_accounted_for(seed, tmp_path):
    prove(seed, tmp_path / "m.pt")


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(30, 200))
def test_a_further_random_module_takes_what_was_saved_of_it(seed, tmp_path):
    prove(seed, tmp_path / "m.pt")


@pytest.mark.parametrize("make", [LAYERS[name] for name in LAYERS], ids=list(LAYERS))
def test_a_safetensors_file_loads_into_the_module_that_wrote_it(make, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module, path = nn.Sequential(make(nn.Linear(4, 4)), Tied()), tmp_path / "m.safetensors"
    xw.save(module, path)
    twin = nn.Sequential(make(nn.Linear(4, 4)), Tied())
    assert safetensors.load_model(twin, path) == (set(), [])
    assert same_state(twin.state_dict(), module.state_dict())


def test_names_of_tied_weights_are_dropped_from_safetensors_and_noted_as_their_own_saver_does(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    xw.save(Tied(), tmp_path / "m.safetensors", metadata={"author": "me"})
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert "head.weight" not in file.keys()  # noqa: SIM118 - it is no dict
        texts = file.metadata()
    assert (texts["head.weight"], texts["format"], texts["author"]) == ("embedding.weight", "pt", "me")


def test_each_shard_says_that_its_tensors_are_torchs(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    xw.save(Tied(), tmp_path / "m.safetensors.index.json", shard_bytes=64)
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        with safetensors.safe_open(shard, "pt") as file:
            assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("ending", ["pt", "safetensors", "safetensors.index.json"])
def test_a_file_knows_the_other_names_of_a_tied_weight_and_a_conversion_keeps_them(ending, tmp_path):
    path, model = tmp_path / f"m.{ending}", Tied()
    xw.save(model, path)
    live = {p.name: p.aliases for p in xw.parameters(model)}
    with xw.load(path) as checkpoint:
        assert {p.name: p.aliases for p in xw.parameters(checkpoint)} == live
    xw.convert(path, tmp_path / "again.pt")
    Tied().load_state_dict(torch.load(tmp_path / "again.pt", weights_only=True), strict=True)
    xw.convert(tmp_path / "again.pt", tmp_path / "once_more.safetensors")
    with xw.load(tmp_path / "once_more.safetensors") as checkpoint:
        assert {p.name: p.aliases for p in xw.parameters(checkpoint)} == live


def test_the_other_names_in_a_file_of_safetensors_own_saver_are_found(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(Tied(), tmp_path / "m.safetensors")
    with xw.load(tmp_path / "m.safetensors") as checkpoint:
        assert {p.name: p.aliases for p in xw.parameters(checkpoint) if p.aliases} == {
            "embedding.weight": ("head.weight",)
        }


def test_plain_parameters_keep_their_neutral_names_and_axes_in_the_file(tmp_path):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    xw.save(model, tmp_path / "m.pt")
    with xw.load(tmp_path / "m.pt") as checkpoint:
        assert {p.name: p.axes for p in xw.parameters(checkpoint)} == {
            "0/bias": ("out",), "1/kernel": ("in", "out"), "1/bias": ("out",),
            "0/parametrizations/weight/original0": None, "0/parametrizations/weight/original1": None,
        }  # fmt: skip


def test_a_subset_is_written_under_the_names_of_the_parameters(tmp_path):
    xw.save(nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2))), tmp_path / "m.pt", where="*kernel")
    assert list(torch.load(tmp_path / "m.pt", weights_only=True)) == ["0.weight"]


def test_extra_state_goes_into_a_pt_and_back(tmp_path):
    extra = {
        "steps": [1, -1, 2**40, -(2**40), 2**200], "rate": 1e-3, "none": None, "on": True, "name": "é",
        "raw": b"\x00\xff", "buffer": bytearray(b"ab"), "pair": (1, (2.0, "x")), "ordered": OrderedDict(a=1),
        3: "number", "empty": [{}, (), []],
        "tensors": {"mean": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    }  # fmt: skip
    xw.save(WithExtraState(extra), tmp_path / "m.pt")
    twin = WithExtraState(None)
    twin.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    got, tensors = dict(twin.extra), twin.extra["tensors"]
    del got["tensors"]
    assert got == {key: value for key, value in extra.items() if key != "tensors"}
    assert [type(value) for value in got.values()] == [type(extra[key]) for key in got]
    assert same_state(tensors, extra["tensors"])


@pytest.mark.parametrize("ending", ["safetensors", "npz", "safetensors.index.json"])
def test_extra_state_is_refused_by_formats_without_a_place_for_it(ending, tmp_path):
    path = tmp_path / f"m.{ending}"
    path.write_bytes(b"old")
    with pytest.raises(RefusedFileError, match=r"_extra_state.*no array"):
        xw.save(nn.Sequential(WithExtraState({"step": 1})), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
    path.unlink()
    xw.save(nn.Sequential(WithExtraState({"step": 1})), path, names="neutral")


@pytest.mark.parametrize("extra", [io.BytesIO(b"x"), {1, 2}, [object()], 2**3000, "cycle"])
def test_extra_state_that_no_safe_file_can_hold_is_refused(extra, tmp_path):
    if extra == "cycle":
        extra = []
        extra.append(extra)
    with pytest.raises(RefusedFileError, match="_extra_state"):
        xw.save(WithExtraState(extra), tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


def test_tensors_that_hooks_make_are_written_and_never_taken_for_parameters(tmp_path):
    model = Cast()
    xw.save(model, tmp_path / "m.pt")
    assert same_state(torch.load(tmp_path / "m.pt", weights_only=True), model.state_dict())
    entry = next(entry for entry in backend.state(model).entries if entry.keys == ("packed",))
    assert "write would be lost" in entry.parameter.refusal(writing=True)
    assert entry.parameter.hidden


def test_an_override_of_state_dict_is_believed(tmp_path):
    model = Renaming()
    xw.save(model, tmp_path / "m.pt")
    assert list(torch.load(tmp_path / "m.pt", weights_only=True)) == ["outer.weight", "outer.bias"]
    match = backend.match_state(["outer.weight", "outer.bias"], model)
    assert [write.parameter.name for write in match.writes] == ["inner/kernel", "inner/bias"]


def test_an_override_that_returns_no_dict_is_refused():
    model = nn.Linear(2, 2)
    model.state_dict = lambda **_: [model.weight]
    with pytest.raises(XweightsError, match="no dict with names"):
        backend.state(model)


def test_a_script_module_has_the_state_of_its_source(tmp_path):
    source = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    xw.save(torch.jit.script(source), tmp_path / "m.pt")
    assert same_state(torch.load(tmp_path / "m.pt", weights_only=True), source.state_dict())


def test_a_lazy_module_isnt_built_and_a_lone_parameter_has_no_state():
    with pytest.raises(NotBuiltError):
        backend.state(nn.Sequential(nn.LazyLinear(2)))
    assert isinstance(backend, HasState)
    assert backend.state(nn.Parameter(torch.ones(2))) is None
    assert backend.match_state(["x"], nn.Parameter(torch.ones(2))) is None


@pytest.mark.parametrize("name", ["spectral_norm", "old spectral_norm"])
def test_saving_in_training_mode_changes_no_vector(name, tmp_path):
    model = LAYERS[name](nn.Linear(4, 3)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    xw.save(model, tmp_path / "m.pt")
    assert same_state(model.state_dict(), before)


NORMS = {
    "weight_norm": (nn.utils.weight_norm, parametrizations.weight_norm),
    "spectral_norm": (nn.utils.spectral_norm, parametrizations.spectral_norm),
}
BASES = {
    "linear": lambda: nn.Linear(4, 4),
    "conv": lambda: nn.Conv2d(3, 5, 2),
    "transposed": lambda: nn.ConvTranspose1d(3, 3, 1),
}


def settle(layer):
    """Run a few training steps' worth of power iterations, and change the arrays."""
    with torch.no_grad():
        for key, tensor in layer.named_parameters():
            tensor.mul_(1.5).add_(0.1 if key.endswith("bias") else 0.0)
    layer.train()
    shape = {nn.Linear: (2, 4), nn.Conv2d: (2, 3, 4, 4), nn.ConvTranspose1d: (2, 3, 4)}
    kind = next(base for base in shape if isinstance(layer, base))
    for _ in range(20):
        layer(torch.randn(shape[kind]))
    return layer.eval()


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("older", [True, False])
def test_old_and_new_spellings_go_into_each_other_and_into_plain_layers(base, kind, older, tmp_path):
    torch.manual_seed(1)
    old, new = NORMS[kind]
    source = settle((old if older else new)(base()))
    arrays = arrays_of(source)
    with torch.no_grad():
        (next(iter(source._forward_pre_hooks.values()))(source, None) if older else None)
        want = source.weight.detach().clone()
    for target in ((new if older else old)(base()), (old if older else new)(base())):
        match = backend.match_state(list(arrays), target)
        write_all(match, arrays)
        assert not match.left_in_file
        assert not match.left_in_model
        assert all(write.combine is None for write in match.writes)
        target.eval()
        plain = next(p for p in backend.adapter(target).parameters(target) if p.native_name == "weight")
        np.testing.assert_array_equal(plain.read(), want)
    target = base()
    match = backend.match_state(list(arrays), target)
    write_all(match, arrays)
    assert not match.left_in_file
    assert not match.left_in_model
    np.testing.assert_array_equal(target.weight.detach(), want)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_the_shape_of_g_tells_over_which_axes_the_norm_of_a_plain_weight_is(dim):
    source = nn.utils.weight_norm(nn.Conv1d(3, 4, 2), dim=dim)
    with torch.no_grad():
        source.weight_g.mul_(3)
    target = nn.Conv1d(3, 4, 2)
    write_all(backend.match_state(list(source.state_dict()), target), arrays_of(source))
    (hook,) = source._forward_pre_hooks.values()
    np.testing.assert_array_equal(target.weight.detach(), hook.compute_weight(source).detach())


def test_a_pruned_weight_and_a_pruned_part_of_a_norm_go_into_plain_layers():
    for make, size in (("prune", 2), ("pruned weight_norm", 3)):
        torch.manual_seed(1)
        source, target = LAYERS[make](nn.Linear(4, 4)), nn.Linear(4, 4)
        source(torch.ones(1, 4))
        match = backend.match_state(list(source.state_dict()), target)
        write_all(match, arrays_of(source))
        assert max(len(write.sources) for write in match.writes) == size
        assert not match.left_in_file
        assert torch.equal(target.weight, source.weight)


def test_a_plain_weight_goes_into_a_computed_one_as_a_whole():
    source, target = nn.Linear(4, 3), parametrizations.weight_norm(nn.Linear(4, 3))
    match = backend.match_state(["weight", "bias"], target)
    write_all(match, arrays_of(source))
    assert {write.parameter.name: write.sources for write in match.writes} == {
        "kernel": ("weight",), "bias": ("bias",),
    }  # fmt: skip
    assert not match.left_in_model
    torch.testing.assert_close(target.weight, source.weight)


def test_one_kind_of_norm_goes_into_another_through_its_value():
    torch.manual_seed(1)
    source, target = nn.utils.spectral_norm(nn.Linear(4, 3)), parametrizations.weight_norm(nn.Linear(4, 3))
    match = backend.match_state(list(source.state_dict()), target)
    write_all(match, arrays_of(source))
    assert not match.left_in_file
    assert not match.left_in_model
    torch.testing.assert_close(target.weight, source.eval()(torch.eye(4)).T - source.bias[:, None])


def test_arrays_of_an_unknown_parametrization_are_left_in_the_file():
    two = LAYERS["orthogonal"](nn.Linear(4, 4))
    match = backend.match_state(list(two.state_dict()), nn.Linear(4, 4))
    assert {entry.keys[0] for entry, _ in match.left_in_model} == {"weight"}
    assert all(key.startswith("parametrizations.weight.") for key in match.left_in_file)
    assert len(match.left_in_file) == 2


def test_an_own_parametrization_with_two_originals_takes_no_weight_norm():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

        def right_inverse(self, w):
            return w / 2, w / 2

    target = nn.Linear(2, 2)
    parametrize.register_parametrization(target, "weight", Sum())
    match = backend.match_state(["weight_g", "weight_v", "bias"], target)
    assert {write.parameter.name for write in match.writes} == {"kernel", "bias"}
    assert next(write for write in match.writes if write.parameter.name == "kernel").combine is not None


@pytest.mark.parametrize(
    ("key", "shapes"),
    [
        ("weight norm", {"weight_g": (3, 1), "weight_v": (4, 4)}),
        ("weight norm", {"weight_g": (2, 2), "weight_v": (2, 2)}),
        ("spectral norm", {"weight_orig": (4, 4), "weight_u": (3,), "weight_v": (4,)}),
        ("mask", {"weight_orig": (4, 4), "weight_mask": (4, 3)}),
    ],
)
def test_arrays_that_dont_belong_together_are_refused(key, shapes):
    (write,) = backend.match_state(list(shapes), nn.Linear(4, 4, bias=False)).writes
    with pytest.raises(ShapeError, match=key):
        write.combine([np.ones(shape, np.float32) for shape in shapes.values()])


def test_a_spectral_norm_over_the_other_axis_of_a_square_weight_is_noticed():
    torch.manual_seed(1)
    source = nn.utils.spectral_norm(nn.Linear(8, 8, bias=False), dim=1)
    for _ in range(20):
        source(torch.ones(1, 8))
    (write,) = backend.match_state(list(source.state_dict()), nn.Linear(8, 8, bias=False)).writes
    with pytest.raises(ShapeError, match="axis 1"):
        write.combine([source.state_dict()[key].numpy() for key in write.sources])


def test_dtypes_are_kept_by_the_formulas():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    source = nn.utils.weight_norm(nn.Linear(4, 3)).to(torch.bfloat16)
    target = nn.Linear(4, 3).to(torch.bfloat16)
    write = backend.match_state(["weight_g", "weight_v"], target).writes[0]
    state = {p.native_name: p.read() for p in backend.adapter(source).parameters(source)}
    got = write.combine([state[key] for key in write.sources])
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(got.astype(np.float32), state["weight"].astype(np.float32))


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, AveragedModel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_keys_without_the_targets_wrappers_find_their_place(wrap):
    source = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)), Tied())
    target = wrap(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), Tied()))
    match = backend.match_state(list(source.state_dict()), target)
    assert not match.left_in_file
    assert {entry.keys[0] for entry, _ in match.left_in_model} <= {"n_averaged"}
    write_all(match, arrays_of(source))
    values = {key.split("module.")[-1].split("_orig_mod.")[-1]: v for key, v in target.state_dict().items()}
    assert torch.equal(values["0.parametrizations.weight.original1"], source[0].weight_v)
    assert torch.equal(values["1.head.weight"], source[1].head.weight)


def test_a_checkpoint_wrapper_whose_hook_removes_its_own_name_is_seen_through():
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper").checkpoint_wrapper
    target = nn.DataParallel(nn.Sequential(wrapper(nn.Linear(2, 2))))
    assert [entry.plain_keys for entry in backend.state(target).entries] == [("0.weight",), ("0.bias",)]


def test_tied_names_of_a_file_are_one_write_with_the_others_to_compare():
    (write, *_) = backend.match_state(["head.weight", "embedding.weight", "body.weight", "body.bias"], Tied()).writes
    assert (write.sources, write.same) == (("embedding.weight",), ("head.weight",))
    (write, *_) = backend.match_state(["head.weight"], Tied()).writes
    assert (write.sources, write.same) == (("head.weight",), ())


def test_buffers_that_come_and_go_between_versions_are_no_fault():
    class Positions(nn.Module):
        def __init__(self, persistent):
            super().__init__()
            self.register_buffer("position_ids", torch.arange(3), persistent=persistent)
            self.norm = nn.BatchNorm1d(2)

    given = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    match = backend.match_state(given, Positions(True))
    assert {entry.keys[0]: bool(reason) for entry, reason in match.left_in_model} == {
        "position_ids": True, "norm.num_batches_tracked": True,
    }  # fmt: skip
    match = backend.match_state([*given, "position_ids", "other"], Positions(False))
    assert {key: bool(reason) for key, reason in match.left_in_file.items()} == {"position_ids": True, "other": False}
    missing = backend.match_state(given[1:], Positions(False)).left_in_model
    assert [entry.keys for entry, reason in missing if reason is None] == [("norm.weight",)]


def test_only_whole_weights_are_respelled():
    new = [f"a.parametrizations.weight.original{i}" for i in (0, 1)]
    assert respell(["a.weight_g", "a.weight_v"], new) == dict(zip(new, ["a.weight_g", "a.weight_v"], strict=True))
    assert respell(new, ["a.weight_g", "a.weight_v"]) == dict(zip(["a.weight_g", "a.weight_v"], new, strict=True))
    assert respell(["a.weight_g"], new) == {}
    assert respell(["a.weight_g", "a.weight_v"], new[:1]) == {}
    assert respell(new, new) == {}
    assert respell(["weight_orig", "weight_u", "weight_v"],
                   [f"parametrizations.weight.{end}" for end in ("original", "0._u", "0._v")])  # fmt: skip
    assert respell(["xparametrizations.w.original0", "xparametrizations.w.original1"], ["xw_g", "xw_v"]) == {}
    assert respell([], ["_g", "_v", "original0", "parametrizations..original0", "parametrizations.original0"]) == {}


def test_a_sharded_module_is_refused_without_a_call_of_its_state_dict(monkeypatch):
    class FullyShardedDataParallel(nn.Linear):
        def state_dict(self, *_, **__):
            raise AssertionError("it would wait for the other processes")

    FullyShardedDataParallel.__module__ = "torch.distributed.fsdp"
    model = nn.Sequential(FullyShardedDataParallel(2, 2))
    with pytest.raises(WriteError, match="FSDP"):
        xw.save(model, "never.pt")
    assert [entry.keys for entry in backend.state(model).entries] == [("0.weight",), ("0.bias",)]
