"""Our own products with weights in the layout that oneDNN has made."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler
from torch import nn

from ppl.lm.engine import linear, products
from ppl.lm.engine.building import built
from ppl.lm.engine.linear import PackedLinear
from ppl.lm.engine.products import Own

SIZES = [(960, 576), (64, 32), (1, 32), (33, 64), (130, 34), (100, 70), (65, 2)]  # outputs, inputs


def layer(outputs, inputs, bias=True, dtype=torch.bfloat16) -> nn.Linear:
    torch.manual_seed(outputs + inputs)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def has_own(half: bool) -> bool:
    try:
        return bool(products._program(half).most())
    except RuntimeError:
        return False


needs_half = pytest.mark.skipif(not has_own(True), reason="needs a processor with AVX512-BF16")
needs_any = pytest.mark.skipif(not has_own(False), reason="needs a processor with AVX512")
pytestmark = needs_compiler
DTYPES = [
    pytest.param(torch.bfloat16, marks=needs_half, id="bfloat16"),
    pytest.param(torch.float32, marks=needs_any, id="float32"),
]


def assert_is_the_product(y, x, plain):
    """To the rounding of the result: half of a last place, and what float32 leaves open."""
    ulp = 2**-8 if y.dtype == torch.bfloat16 else 2**-24
    bias = None if plain.bias is None else plain.bias.double()
    exact = nn.functional.linear(x.double(), plain.weight.double(), bias)
    sizes = nn.functional.linear(x.double().abs(), plain.weight.double().abs())
    assert ((y.double() - exact).abs() <= exact.abs() * ulp + sizes * 2**-20).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@torch.inference_mode()
def test_rows_are_products_whatever_is_beside_them(outputs, inputs, dtype, bias):
    plain = layer(outputs, inputs, bias, dtype)
    ours = PackedLinear(plain)
    if outputs == 1 and dtype == torch.float32:  # lies as it was
        assert ours.own is None
        return
    assert ours.own is not None
    x = torch.randn(150, inputs).to(dtype)
    alone = torch.cat([ours(x[i : i + 1]) for i in range(150)])
    assert_is_the_product(alone, x, plain)
    before = torch.get_num_threads()
    try:
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 16, 29, 33, 64, 150):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(ours(x[:rows]), alone[:rows]), (rows, threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("defines", [{}, {"VECTORS": 1}], ids=["", "without AMX"])
@pytest.mark.parametrize("width", [16, 32, 48, 64])
def test_tiles_of_every_width_are_read(width, defines, dtype):
    """oneDNN chooses by sizes and threads; here they are laid out by hand."""
    half = dtype == torch.bfloat16
    multiply = built("products.cpp", HALF=int(half), **defines).multiply
    multiply.argtypes = products._program(half).multiply.argtypes
    outputs, inputs, (filled, beside) = 101, 70, (96, 2) if half else (80, 1)
    plain = layer(outputs, inputs, dtype=dtype)
    tiles = -(-outputs // width)
    weight = torch.zeros(tiles * width, filled, dtype=dtype)
    weight[:outputs, :inputs] = plain.weight
    laid_out = weight.view(tiles, width, filled // beside, beside).transpose(1, 2).contiguous()
    x, bias = torch.randn(40, inputs).to(dtype), plain.bias.float()
    y = torch.empty(40, outputs, dtype=dtype)
    for threads in (1, 2, 5):
        y.zero_()
        sizes = 40, inputs, outputs, width, width * filled, threads
        memory = x.data_ptr(), laid_out.data_ptr(), bias.data_ptr(), y.data_ptr()
        multiply(*sizes, *memory)
        assert_is_the_product(y, x, plain)


@needs_half
@torch.inference_mode()
def test_what_is_not_finite_stays_so_and_ties_go_to_even():
    plain = layer(40, 32, bias=False)
    plain.weight.zero_()
    plain.weight[:, 0], plain.weight[:, 1] = 1.0, 2.0**-8
    ours = PackedLinear(plain)
    x = torch.zeros(5, 32).bfloat16()
    x[0, 0], x[1, 0], x[2, :2], x[3, 0] = torch.inf, torch.nan, 1.0, -torch.inf
    x[4, 0], x[4, 1] = 1 + 2**-7, 1.0  # halfway between two numbers, of which the upper is even
    y = ours(x)[:, 0]
    assert y[0] == torch.inf
    assert y[1].isnan()
    assert y[2] == 1.0  # and here the lower
    assert y[3] == -torch.inf
    assert y[4] == 1 + 2**-6


@needs_half
@torch.inference_mode()
def test_many_rows_are_left_to_the_library(monkeypatch):
    ours = PackedLinear(layer(64, 32))
    asked = []
    library = ours.by_library
    monkeypatch.setattr(ours, "by_library", lambda x: asked.append(len(x)) or library(x))
    monkeypatch.setattr(ours.own, "most", 4)
    for rows in (1, 4, 5, 16):
        assert_is_the_product(ours(x := torch.randn(rows, 32).bfloat16()), x, layer(64, 32))
    assert asked == [5, 16]
    assert ours.own_rows == 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [32, 36, 62, 100])
@torch.inference_mode()
def test_what_is_not_finite_stays_in_its_row(inputs, dtype):
    """Of any number of rows, and wherever oneDNN would fill up inputs."""
    ours = PackedLinear(layer(100, inputs, dtype=dtype))
    for rows in (3, 255, 256, 257, 300, 600):
        x = torch.randn(rows, inputs).to(dtype)
        x[1], x[rows * 2 // 3, -1] = torch.nan, torch.inf
        assert torch.equal(ours(x).isfinite().all(1), x.isfinite().all(1)), rows


@needs_half
@torch.inference_mode()
def test_there_is_one_copy_of_the_weight():
    ours = PackedLinear(layer(960, 576))
    kept = [t for t in vars(ours.own).values() if isinstance(t, torch.Tensor)]
    assert [t is ours._packed for t in kept if t.numel() > 960] == [True]
    (place,) = ours.memory
    assert place == (torch.ops.mkldnn.data_ptr(ours._packed), 960 * 576 * 2)
    assert torch.equal(ours.weight, layer(960, 576).weight)


@needs_half
@torch.inference_mode()
def test_products_that_are_not_right_are_not_ours(monkeypatch):
    plain, x = layer(70, 36), torch.randn(3, 36).bfloat16()
    monkeypatch.setattr(linear, "_trusted", {})
    with monkeypatch.context() as patch:
        patch.setattr(Own, "__call__", lambda self, x: 2 * x.new_ones(len(x), 70))
        wrong = PackedLinear(plain)
    assert wrong.own is None
    assert wrong.own_rows == 0
    assert_is_the_product(wrong(x), x, plain)
    assert PackedLinear(layer(70, 37)).own is None  # an odd number of inputs
    assert PackedLinear(layer(70, 36, dtype=torch.float16)).own is None
    packed = PackedLinear(plain)._packed
    for other in (layer(70, 36).weight.flip(1), layer(70, 36).weight.roll(1, 0)):
        with pytest.raises(RuntimeError, match="another way"):
            Own(packed, other, None)
    products._program.cache_clear()
    monkeypatch.setenv("CXX", "g+++")
    try:
        assert PackedLinear(plain).own is None
    finally:
        products._program.cache_clear()


@needs_half
def test_inputs_of_another_kind_are_refused():
    own = PackedLinear(layer(64, 32)).own
    assert own is not None
    elsewhere = torch.zeros(2, 32, device="meta").bfloat16()
    for x in (torch.zeros(2, 32), torch.zeros(2, 30).bfloat16(), elsewhere):
        with pytest.raises(RuntimeError, match=r"\[64, 32\] in torch.bfloat16 on a CPU was given"):
            own(x)
    assert own(torch.zeros(0, 32).bfloat16()).shape == (0, 64)
