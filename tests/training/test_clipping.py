import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_ssl.backbones import ViTTrunk, vit_config
from hf_ssl.clipping import clip_per_parameter_


PARTS = ("q_proj", "k_proj", "v_proj")


class SplitAttention(nn.Module):
    """The projections as transformers has them."""

    def __init__(self, width=8, bias=True):
        super().__init__()
        for part in PARTS:
            self.add_module(part, nn.Linear(width, width, bias=bias))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x):
        return self.o_proj(self.q_proj(x) * self.k_proj(x).tanh() * self.v_proj(x))


class FusedAttention(nn.Module):
    """The same projections as the originals have them."""

    def __init__(self, split):
        super().__init__()
        parts = [getattr(split, part) for part in PARTS]
        self.qkv = nn.Linear(parts[0].in_features, 3 * parts[0].in_features)
        self.qkv.weight.data = torch.cat([part.weight.data for part in parts])
        self.qkv.bias.data = torch.cat([part.bias.data for part in parts])
        self.o_proj = nn.Linear(*split.o_proj.weight.shape)
        self.o_proj.load_state_dict(split.o_proj.state_dict())

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.o_proj(q * k.tanh() * v)


def clip_in_a_loop(grads, max_norm):
    """The originals' clipping, of tensors as they have them."""
    for grad in grads:
        factor = max_norm / (torch.linalg.vector_norm(grad) + 1e-6)
        if factor < 1:
            grad.mul_(factor)


def parameter(grad, dtype=None):
    result = nn.Parameter(torch.zeros_like(grad, dtype=dtype))
    result.grad = grad.to(result.dtype)
    return result


def global_norm(parameters):
    return torch.cat([p.grad.flatten().double() for p in parameters if p.grad is not None]).norm()


@pytest.mark.parametrize("max_norm", [1e-3, 0.3, 1e4])
def test_split_and_fused_attention(max_norm):
    torch.manual_seed(0)
    split = SplitAttention()
    fused = FusedAttention(split)
    x = torch.randn(16, 8)
    for module in (split, fused):
        module(x).square().mean().backward()
    before = global_norm(split.parameters())
    clip_in_a_loop([p.grad for p in fused.parameters()], max_norm)
    norm = clip_per_parameter_(split.named_parameters(), max_norm)
    for kind in ("weight", "bias"):
        joined = torch.cat([getattr(getattr(split, part), kind).grad for part in PARTS])
        torch.testing.assert_close(joined, getattr(fused.qkv, kind).grad, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(getattr(split.o_proj, kind).grad, getattr(fused.o_proj, kind).grad)
    assert norm.shape == () and norm.item() == pytest.approx(before.item(), rel=1e-5)


def test_vit_as_a_loop():
    """All parameters of an encoder; attention modules are not mixed up, nor weights and biases."""
    model = ViTTrunk(vit_config("vit-micro", image_size=8, patch_size=4))
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert len({name.rpartition(".")[0] for name in expected if "q_proj" in name}) == 4
    fused = {}
    for name in expected:
        fused.setdefault(name.replace("q_proj", "").replace("k_proj", "").replace("v_proj", ""), []).append(name)
    median = sorted(grad.norm().item() for grad in expected.values())[len(expected) // 2]
    for names in fused.values():
        joined = torch.cat([expected[name].flatten() for name in names])
        factor = min(1.0, median / (joined.norm().item() + 1e-6))
        for name in names:
            expected[name] *= factor
    assert sum(len(names) == 3 for names in fused.values()) == 8
    clip_per_parameter_(model.named_parameters(), median)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=name)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 5), max_size=3), st.floats(-6, 6)), min_size=1, max_size=8),
    st.floats(-3, 3),
    st.randoms(use_true_random=False),
)
def test_any_parameters(shapes, log_norm, random):
    generator = torch.Generator().manual_seed(random.randrange(1 << 30))
    named = [
        (f"{i}.{random.choice([*PARTS, 'fc'])}.weight", parameter(torch.randn(s, generator=generator) * 10**exponent))
        for i, (s, exponent) in enumerate(shapes)
    ]
    expected = [p.grad.clone() for _, p in named]
    before = global_norm(p for _, p in named)
    clip_in_a_loop(expected, 10**log_norm)
    norm = clip_per_parameter_(named, 10**log_norm)
    for (_, p), grad in zip(named, expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=0)
        assert p.grad.norm() <= 10**log_norm * (1 + 1e-5)
    assert norm.item() == pytest.approx(before.item(), rel=1e-5)


def test_recorded_norms():
    """
    Recorded from the authors' code, PW-Self's golden case `even_grid`: norms of the three parts of a fused gradient
    and of a LayerNorm's, clipped at 0.02.
    """
    parts = {"q_proj": 0.04243134858563082, "k_proj": 0.04003630028813144, "v_proj": 0.18366708290013836}
    named = {}
    for part, norm in parts.items():
        grad = torch.randn(32, 32, dtype=torch.float64)
        named[f"layers.0.attention.{part}.weight"] = parameter(grad * norm / grad.norm())
    grad = torch.randn(32)
    named["layers.0.layernorm_before.weight"] = parameter(grad * 0.01463186226477448 / grad.norm())
    attention = list(named.values())[:3]
    assert global_norm(attention).item() == pytest.approx(0.19270942380749734, rel=1e-6)
    clip_per_parameter_(named.items(), 0.02)
    assert global_norm(attention).item() == pytest.approx(0.019999895409852437, rel=1e-6)
    unclipped = named["layers.0.layernorm_before.weight"].grad
    assert unclipped.norm().item() == pytest.approx(0.01463186226477448, rel=1e-6)


def test_parts_without_gradient():
    """A frozen or unused part has no share in the joint norm."""
    split = SplitAttention(bias=False)
    split(torch.randn(4, 8)).sum().backward()
    split.k_proj.weight.grad = None
    expected = torch.cat([split.q_proj.weight.grad, split.v_proj.weight.grad])
    clip_in_a_loop([expected], 1e-2)
    clip_per_parameter_(split.named_parameters(), 1e-2)
    torch.testing.assert_close(torch.cat([split.q_proj.weight.grad, split.v_proj.weight.grad]), expected)
    assert split.k_proj.weight.grad is None


def test_only_projections_of_that_name_are_joined():
    names = ["q_proj.weight", "k_proj.weight", "my_v_proj.weight", "q_proj.weight.extra", "a.q_proj.bias"]
    named = [(name, parameter(torch.full((4,), 0.5))) for name in names]
    clip_per_parameter_(named, 1.0)
    norms = [p.grad.norm().item() for _, p in named]
    assert norms == pytest.approx([0.5**0.5, 0.5**0.5, 1, 1, 1], rel=1e-5)


def test_no_gradients():
    norm = clip_per_parameter_(nn.Linear(2, 2).named_parameters(), 1.0)
    assert norm.shape == () and norm == 0
    zero = parameter(torch.zeros(3))
    assert clip_per_parameter_([("w", zero)], 1.0) == 0
    assert torch.equal(zero.grad, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The norm of 16-bit gradients is added up in float32: 300² would overflow in float16, and bfloat16 has 8 bits."""
    grads = [torch.full((3000,), 300.0), torch.linspace(-1, 1, 3001)]
    named = [("half", parameter(grads[0], dtype)), ("single", parameter(grads[1]))]
    halved = named[0][1].grad.double()
    norm = clip_per_parameter_(named, 30.0)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(torch.cat([halved, grads[1].double()]).norm().item(), rel=1e-6)
    assert named[0][1].grad.dtype == dtype
    assert named[0][1].grad.double().norm().item() == pytest.approx(30, rel=1e-2)
    clip_in_a_loop(grads[1:], 30.0)
    torch.testing.assert_close(named[1][1].grad, grads[1])


def test_double_precision_is_kept():
    grad = torch.randn(50, dtype=torch.float64)
    named = [("a", parameter(grad.clone())), ("b", parameter(torch.ones(2)))]
    norm = clip_per_parameter_(named, 1e-3)
    expected = grad * (1e-3 / (grad.norm() + 1e-6))
    torch.testing.assert_close(named[0][1].grad, expected, rtol=1e-12, atol=0)
    assert norm.dtype == torch.float64


def test_nothing_is_read_from_the_device():
    """Tensors without data cannot be read, so a read would raise."""
    named = [(name, parameter(torch.empty(4, 4, device="meta"))) for name in ("q_proj.weight", "k_proj.weight", "w")]
    assert clip_per_parameter_(named, 1.0).device.type == "meta"


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_errors(max_norm):
    with pytest.raises(ValueError, match="max_norm=.* must be positive; to train without clipping"):
        clip_per_parameter_([], max_norm)
