"""Packed and joined linear layers are the layers they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppl.lm.engine.linear import Joined, JoinedPart, PackedLinear, pack_linears
from ppl.lm.engine.quantised import Int8Linear


class Block(nn.Module):
    """Three layers of one input, one of another, one that is asked twice."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, n, bias=bias) for n in (16, 8, 8))
        self.out = nn.Linear(16, 16, bias=not bias)
        self.twice = nn.Linear(16, 16, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.q(x) + torch.cat([self.v(x), self.k(x)], -1)
        return self.twice(self.out(torch.tanh(y))) + self.twice(x)


def block(bias: bool, dtype: torch.dtype) -> Block:
    torch.manual_seed(0)
    return Block(bias).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_packed_model_computes_what_it_computed(bias, dtype):
    model, plain = block(bias, dtype), block(bias, dtype)
    xs = [torch.randn(n, 16).to(dtype) for n in (1, 4, 33)]
    assert pack_linears(model, lambda: model(xs[0])) == 5
    joined = [name for name, m in model.named_children() if isinstance(m, JoinedPart)]
    assert joined == ["q", "k", "v"]
    assert isinstance(model.out, PackedLinear)
    assert isinstance(model.twice, PackedLinear)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for x in [*xs, xs[0]]:
        torch.testing.assert_close(model(x), plain(x), rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_joined_layers_answer_for_the_input_they_are_given():
    model, plain = block(True, torch.float32), block(True, torch.float32)
    pack_linears(model, lambda: model(torch.randn(2, 16)))
    first, second = torch.randn(3, 16), torch.randn(3, 16)
    asked = [("q", first), ("k", second), ("v", first), ("v", first), ("q", second), ("k", first)]
    for name, x in asked:
        ours, theirs = getattr(model, name)(x), getattr(plain, name)(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_an_input_that_is_changed_in_place_is_not_one_input():
    class Changing(Block):
        def forward(self, x):
            h = torch.tanh(x)
            y = self.q(h)
            h.mul_(2.0)
            return y + torch.cat([self.k(h), self.v(h)], -1)

    model, plain = Changing(False).eval(), Changing(False).eval()
    plain.load_state_dict(model.state_dict())
    pack_linears(model, lambda: model(torch.randn(2, 16)))
    x = torch.randn(3, 16)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)


def test_joined_layers_may_be_asked_by_several_threads():
    """As where a model is called while its engine runs. Another gets in whenever a tensor goes."""

    class Input:
        def __init__(self, number, last=lambda: None):
            self.number, self.last = number, last

        def __del__(self):
            self.last()

    def doubled(x):
        return torch.tensor([[x.number, -x.number]])

    joined, theirs, found = Joined(doubled, [1, 1]), Input(3.0), []
    joined.part(0, Input(1.0, lambda: found.append(float(joined.part(0, theirs)))))
    ours = Input(2.0)
    assert float(joined.part(0, ours)) == 2  # the first one goes, and they ask
    assert found == [3]
    assert float(joined.part(1, theirs)) == -3
    assert float(joined.part(1, ours)) == -2


@torch.inference_mode()
def test_what_was_computed_is_not_kept():
    model = block(False, torch.float32)
    pack_linears(model, lambda: model(torch.randn(2, 16)))
    model(torch.randn(2, 16))
    assert model.q.joined._given is None


@pytest.mark.parametrize("laid_out", [PackedLinear, Int8Linear])
def test_a_gradient_that_would_lack_a_layer_is_refused(laid_out):
    try:
        layer = laid_out(nn.Linear(64, 64).requires_grad_(False))
    except RuntimeError:
        pytest.skip("needs a C++ compiler")
    x = torch.randn(2, 64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no gradient.*pack=False"):
        layer(x)
    with torch.no_grad():
        assert layer(x).shape == (2, 64)
    assert layer(x.detach()).shape == (2, 64)


def test_layers_of_another_kind_stay_plain():
    model = block(True, torch.float64)
    assert pack_linears(model, lambda: model(torch.randn(2, 16, dtype=torch.float64))) == 0
    assert type(model.q) is nn.Linear
