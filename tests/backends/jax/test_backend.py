"""JAX's entry point: tensors, tracing, constants and buffers, but no targets."""

import numpy as np
import pytest

from xweights.errors import TargetError, TraceError

jax = pytest.importorskip("jax")
jnp = jax.numpy
from xweights_jax import backend  # noqa: E402
from xweights_jax.ops import JaxOps  # noqa: E402

OPS = JaxOps()


@pytest.mark.parametrize("mode", [lambda function: function, jax.jit], ids=["eager", "jit"])
def test_a_buffer_refilled_is_seen_by_a_compiled_step(mode):
    x = jnp.zeros(5)
    buffer = OPS.buffer(np.arange(5, dtype=np.float32), x)
    step = mode(lambda w: OPS.add(w, OPS.current(buffer)))
    assert np.asarray(step(x)).tolist() == [0, 1, 2, 3, 4]
    OPS.refill(buffer, np.full(5, 7, np.float32))
    assert np.asarray(step(x)).tolist() == [7] * 5


def test_tracing_is_noticed_wherever_jax_traces():
    seen = []

    def look(x):
        seen.append(backend.tracing())
        return x.sum()

    x = jnp.ones(3)
    look(x)
    jax.jit(look)(x)
    jax.grad(look)(x)
    jax.vmap(look)(x)
    assert seen == ["no", "inline", "inline", "inline"]


def test_an_array_is_a_tensor_and_no_target():
    x = jnp.ones(3)
    assert backend.is_tensor(x)
    assert not backend.is_tensor(np.ones(3))
    assert backend.adapter(x) is None
    assert backend.ops(x).name == "jax"
    assert np.array_equal(backend.to_host(x), np.ones(3))
    assert not backend.to_host(x).flags.writeable
    with pytest.raises(TargetError, match="in place"):
        backend.storage(x)
    with pytest.raises(TraceError, match="traced"):
        jax.jit(backend.to_host)(x)


def test_arrays_and_tracers_have_the_entry_point_of_jax():
    from xweights.core.registry import backend_for

    assert backend_for(jnp.ones(3)).name == "jax"
    jax.jit(lambda x: pytest.fail("no entry point") if backend_for(x) is None else x)(jnp.ones(3))


def test_a_constant_never_shares_memory_with_the_callers_array():
    for offset in range(0, 128, 4):
        room = np.zeros(8192, np.uint8)
        start = -room.ctypes.data % 64 + offset
        source = room[start : start + 4096].view(np.float32)
        assert not np.shares_memory(np.asarray(OPS.constant(source, None)), source)
    turned = np.arange(12.0).reshape(3, 4).T
    assert np.array_equal(OPS.constant(turned, None), turned)
    spread = np.broadcast_to(np.array([True, False]), (50, 2))
    assert np.array_equal(OPS.constant(spread, None), spread)
