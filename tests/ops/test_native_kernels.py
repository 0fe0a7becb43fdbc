"""Every native kernel against plain numpy, on odd sizes, with every instruction set that this CPU has; and bit for bit
against itself: whatever the batch, the rows in a call, the threads and the repeat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf.quants
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from shoal.ops import native, quantised

if not native.available:
    pytest.skip(
        native.missing_reason, allow_module_level=True
    )  # test_native_build.py fails where it must not be

core = native.core
QUANTISED = ["Q8", "Q4", "Q4M"]
SHAPES = [
    (1, 1, 1),
    (16, 64, 4),
    (50, 100, 5),
    (33, 577, 13),
    (40, 96, 16),
    (100, 576, 40),
]  # rows, cols, tokens


@pytest.fixture(params=core.available_kernels())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = core.kernels()
    core.use_kernels(request.param)
    yield request.param
    core.use_kernels(before)


def numbers(*shape: int, seed: int = 0, even: bool = False) -> Any:
    """Random floats; uneven: rows differ by factors of up to 100."""
    rng = np.random.default_rng([seed, *shape])
    spread = 1.0 if even else 10.0 ** rng.uniform(-1, 1, (*shape[:-1], 1))
    return (rng.standard_normal(shape) * spread).astype(np.float32)


def packed(kind: str, rows: int, cols: int) -> Any:
    return core.pack(core.Format[kind], numbers(rows, cols)).reshape(-1)


def close(got: Any, wanted: Any, relative: float) -> None:
    """Equal to a share of the largest number of the row."""
    error = np.abs(got - wanted).max(-1)
    assert (error <= relative * np.abs(wanted).max(-1) + 1e-30).all(), error.max()


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize(("rows", "cols", "tokens"), SHAPES)
def test_quantised_products(isa: str, kind: Any, rows: int, cols: int, tokens: int) -> None:
    data, x = packed(kind, rows, cols), numbers(tokens, cols, seed=1)
    plain = quantised.matmul(quantised.read_packed(kind, data, rows, cols), x)
    got = core.matmul(core.Format[kind], rows, cols, data, x)
    close(got, plain, 1e-6)


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize(("rows", "cols", "tokens"), SHAPES)
def test_quantised_products_are_the_same_bits_everywhere(
    kind: str, rows: int, cols: int, tokens: int
) -> None:
    """All instruction sets, one token at a time or all at once, one thread or several."""
    data, x, form = packed(kind, rows, cols), numbers(tokens, cols, seed=1), core.Format[kind]
    pool, before, results = core.Pool(3), core.kernels(), []
    for name in core.available_kernels():
        core.use_kernels(name)
        results += [core.matmul(form, rows, cols, data, x, pool, threads) for threads in (1, 2, 3, 2)]
        results.append(
            np.concatenate([core.matmul(form, rows, cols, data, x[i : i + 1]) for i in range(tokens)])
        )
    core.use_kernels(before)
    assert all(np.array_equal(result, results[0]) for result in results)


def test_extreme_weights_do_not_overflow(isa: str) -> None:
    """-128 and 127 against activations at their limits: AVX2 adds up pairs of such products in 16 bits."""
    rows, cols = 16, 128
    for value in (-128, 127):
        q = np.full((rows, cols), value, np.int8)
        data = core.pack_groups(core.Format.Q8, q, np.full((rows, cols // 32), 0x3C00, np.uint16)).reshape(-1)
        for sign in (1, -1):
            x = np.full((20, cols), sign, np.float32)
            got = core.matmul(core.Format.Q8, rows, cols, data, x)
            close(got, np.full((20, rows), sign * value * cols, np.float32), 1e-6)


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
@pytest.mark.parametrize(("rows", "cols", "tokens"), SHAPES)
def test_float_products(isa: str, kind: str, rows: int, cols: int, tokens: int) -> None:
    form, w, x = core.Format[kind], numbers(rows, cols), numbers(tokens, cols, seed=1)
    data = core.pack(form, w).reshape(-1)
    back = core.unpack(form, rows, cols, data)
    close(back, w, {"F32": 0, "BF16": 2**-8, "F16": 2**-11}[kind])
    got = core.matmul(form, rows, cols, data, x)
    close(got, x.astype(np.float64) @ back.T.astype(np.float64), 3e-6)
    pool = core.Pool(2)
    assert np.array_equal(got, core.matmul(form, rows, cols, data, x, pool, 2))
    single = np.concatenate([core.matmul(form, rows, cols, data, x[i : i + 1]) for i in range(tokens)])
    assert np.array_equal(got, single)


@pytest.mark.parametrize(("kind", "stored"), [("Q8", "Q8_0"), ("Q4", "Q4_0"), ("Q4M", "Q4_1")])
def test_gguf_blocks_are_taken_over_without_loss(kind: Any, stored: str) -> None:
    rows, cols = 21, 160
    kinds = GGMLQuantizationType[stored]
    blocks = gguf.quants.quantize(numbers(rows, cols), kinds).reshape(rows, cols // 32, -1)
    wanted = gguf.quants.dequantize(blocks.reshape(rows, -1), kinds)
    head = 4 if stored == "Q4_1" else 2
    halves = np.ascontiguousarray(blocks[..., :head]).view(np.uint16)
    q = blocks[..., head:]
    q = q if kind == "Q8" else np.concatenate([q & 15, q >> 4], -1)
    scale, minimum = (np.ascontiguousarray(halves[..., i % halves.shape[-1]]) for i in (0, 1))
    data = core.pack_groups(
        core.Format[kind], q.reshape(rows, cols).view(np.int8), scale, minimum if kind == "Q4M" else None
    ).reshape(-1)
    assert np.array_equal(core.unpack(core.Format[kind], rows, cols, data), wanted)
    assert np.array_equal(quantised.read_packed(kind, data, rows, cols).floats()[:, :cols], wanted)


@pytest.mark.parametrize(("kind", "stored"), [("Q8", "Q8_0"), ("Q4", "Q4_0"), ("Q4M", "Q4_1")])
def test_our_quantising_is_no_worse_than_ggufs(kind: str, stored: str) -> None:
    rows = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    theirs = gguf.quants.dequantize(
        gguf.quants.quantize(rows, GGMLQuantizationType[stored]), GGMLQuantizationType[stored]
    )
    form = core.Format[kind]
    ours = core.unpack(form, 64, 256, core.pack(form, rows).reshape(-1))
    assert np.square(ours - rows).sum() <= np.square(theirs - rows).sum() * (1.001 if kind == "Q8" else 0.97)


def test_activations(isa: str) -> None:
    x = numbers(5, 100)
    x[1, :40], x[2, 3], x[3] = 0, 1e-38, np.float32(3e38)
    for got, wanted in zip(core.quantise(x), quantised.quantise(x), strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("positions", "queries", "heads", "kv_heads", "k_dim", "v_dim"),
    [
        (1, 1, 9, 3, 64, 64),
        (40, 40, 4, 2, 24, 20),
        (300, 7, 6, 2, 17, 33),
        (530, 2, 8, 1, 40, 32),
        (600, 300, 3, 3, 16, 16),
    ],
)
def test_attention(
    isa: str, positions: int, queries: int, heads: int, kv_heads: int, k_dim: int, v_dim: int
) -> None:
    """Also in the latent form (one key head, wider keys than values), and however the work is cut up."""
    k, v = numbers(positions, kv_heads, k_dim, even=True), numbers(positions, kv_heads, v_dim, seed=1)
    q = numbers(queries, heads, k_dim, seed=2, even=True)
    table = np.random.default_rng(0).permutation(64)[: -(-positions // 16)].tolist()
    args = (k, v, q, 16, table, 0.1)
    whole = core.attention(*args)
    close(whole, quantised.attention(k, v, q, 0.1), 2e-6)
    for split in (1, 3, 50, -1):
        assert np.array_equal(core.attention(*args, split), whole)
    last = core.attention(k, v, q[-1:], 16, table, 0.1)
    assert np.array_equal(last, whole[-1:])


def test_attention_after_an_overflow_stays_finite(isa: str) -> None:
    k, v, q = numbers(20, 1, 16), numbers(20, 1, 16, seed=1), numbers(1, 1, 16, seed=2)
    v[3] = 1e6
    assert np.isfinite(core.attention(k, v, q, 16, [0, 1], 0.1)).all()


@pytest.mark.parametrize("cols", [1, 15, 64, 577])
def test_rows_of_floats(isa: str, cols: int) -> None:
    x, weight = numbers(3, cols), numbers(cols, seed=1)
    close(core.rmsnorm(x, weight, 1e-5), quantised.rmsnorm(x, weight, 1e-5), 1e-6)
    gate, up = numbers(1, cols)[0], numbers(1, cols, seed=1)[0]
    gate[0] = -200
    got = core.silu_mul(gate, up)
    np.testing.assert_allclose(got, quantised.silu_mul(gate, up), rtol=1e-6, atol=1e-30)
    pairs = np.zeros(2 * (-(-cols // 16)) * 16, np.float32).reshape(-1, 2, 16)
    for i in range(cols):
        pairs[i // 16, :, i % 16] = gate[i], up[i]
    if cols % 16 == 0:
        assert np.array_equal(core.silu_mul(pairs.reshape(-1), up, blocks=True), got)
    total = gate.copy()
    core.axpy(total, 0.5, up)
    np.testing.assert_allclose(total, gate + 0.5 * up.astype(np.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head", "dim"), [(64, 64), (20, 14), (6, 2), (48, 40)])
def test_rope(isa: str, head: int, dim: int, interleaved: bool) -> None:
    x, angles = numbers(3, head), np.linspace(0, 3, dim // 2, dtype=np.float32)
    wanted = quantised.rope(x, np.cos(angles), np.sin(angles), interleaved)
    core.rope(x, np.cos(angles), np.sin(angles), interleaved)
    close(x, wanted, 1e-6)


@pytest.mark.parametrize("count", [1, 16, 100, 49152])
def test_softmax_and_argmax(isa: str, count: int) -> None:
    x = numbers(1, count)[0] * 10
    wide = x.astype(np.float64)
    log_sum = np.log(np.exp(wide - wide.max()).sum()) + wide.max()
    if count > 1:
        x[0] = -np.inf  # a forbidden token
        wide[0] = -np.inf
        log_sum = np.log(np.exp(wide - wide.max()).sum()) + wide.max()
    assert core.argmax(x) == int(x.argmax())
    assert abs(core.softmax(x) - log_sum) < 1e-5 * max(1, abs(log_sum))
    np.testing.assert_allclose(x, np.exp(wide - log_sum), rtol=2e-5, atol=1e-30)
    assert count == 1 or x[0] == 0


def test_argmax_takes_the_first_of_equals_and_no_nan(isa: str) -> None:
    x = np.zeros(70, np.float32)
    x[[20, 5, 66]] = 3
    x[[1, 15]] = np.nan
    assert core.argmax(x) == 5


def test_wrong_sizes_are_refused() -> None:
    data = packed("Q4", 16, 64)
    x = numbers(1, 64)
    for bad in (
        lambda: core.matmul(core.Format.Q4, 32, 64, data, x),
        lambda: core.matmul(core.Format.Q4, 16, 128, data, x),
        lambda: core.matmul(core.Format.Q4, 16, 64, data, numbers(1, 63)),
        lambda: core.pack_groups(core.Format.Q4, np.full((1, 32), 16, np.int8), np.zeros((1, 1), np.uint16)),
        lambda: core.attention(numbers(8, 1, 4), numbers(8, 1, 4), numbers(1, 1, 4), 16, [], 1.0),
        lambda: core.use_kernels("mmx"),
    ):
        with pytest.raises(ValueError):
            bad()
