"""What the processes of a run exchange: gathered rows, the statistics of batch norm, and a clean end.

The functions that run in every process compare with the whole batch, which each of them can draw by itself."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_ssl.distributed import all_gather, close_process_group, world_size
from hf_ssl.models.batch_norm import SyncBatchNorm

from ..processes import run_ranks


def own_rows(x: Tensor, sizes: list[int]) -> Tensor:
    """This process's part of the whole batch, as a leaf."""
    return x.split(sizes)[dist.get_rank()].detach().clone()


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above 1."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1)).item()


def contrastive_loss(queries: Tensor, keys: Tensor, offset: int) -> Tensor:
    return F.cross_entropy(queries @ keys.T, offset + torch.arange(len(queries)))


def gather_in_every_process() -> None:
    state = PartialState(cpu=True)
    rank, size = state.process_index, state.num_processes
    assert world_size() == size
    rows = 3
    sizes = [rows] * size
    generator = torch.Generator().manual_seed(0)

    # Queries of this process against the keys of all; the losses differ in weight, so that no mean passes for the sum.
    queries = torch.randn(rows * size, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(rows * size, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    losses = [(r + 1) * contrastive_loss(queries[r * rows : (r + 1) * rows], keys, r * rows) for r in range(size)]
    sum(losses).backward()
    own_queries, own_keys = own_rows(queries, sizes).requires_grad_(), own_rows(keys, sizes).requires_grad_()
    gathered = all_gather(own_keys)
    assert torch.equal(gathered, keys)
    loss = (rank + 1) * contrastive_loss(own_queries, gathered, rank * rows)
    loss.backward()
    assert error(loss, losses[rank]) < 1e-12
    assert error(own_queries.grad, own_rows(queries.grad, sizes)) < 1e-12
    assert error(own_keys.grad, own_rows(keys.grad, sizes)) < 1e-12

    # Neither the rows nor the gradient that arrives (expanded, by sum) need to be contiguous.
    transposed = own_rows(keys, sizes).T.contiguous().requires_grad_()
    gathered = all_gather(transposed.T)
    assert torch.equal(gathered, keys)
    gathered.sum().backward()
    assert torch.equal(transposed.grad, torch.full((5, rows), float(size), dtype=torch.float64))

    assert not all_gather(own_keys.detach()).requires_grad
    with torch.no_grad():
        assert not all_gather(own_keys).requires_grad
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.float32, torch.bfloat16):
        whole = torch.randint(0, 2, (rows * size, 2, 4), generator=generator).to(dtype)
        assert torch.equal(all_gather(own_rows(whole, sizes)), whole)
    half = torch.full((2,), rank + 1.0, dtype=torch.bfloat16, requires_grad=True)
    (all_gather(half) * (rank + 1)).sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.tolist() == [size * (size + 1) / 2] * 2
    close_process_group()


def test_gather():
    run_ranks(gather_in_every_process, 3)


def compare_with_whole_batch(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    """Some random layer and sizes: two steps of training, then eval, against torch's layer in float64."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    channels, spatial = integer(1, 6), [(), (3,), (4, 5)][seed % 3]
    options = {
        "momentum": [0.1, None, 0.3][integer(0, 3)],
        "affine": integer(0, 4) > 0,
        "track_running_stats": integer(0, 4) > 0,
    }
    torch.manual_seed(seed)
    norm = SyncBatchNorm(channels, **options).to(dtype)
    reference = (nn.BatchNorm2d if len(spatial) == 2 else nn.BatchNorm1d)(channels, **options).double()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, -2, 2)
    reference.load_state_dict(norm.state_dict())

    for _ in range(2):
        # Over very few rows a variance may be tiny, and float32 says little about the gradient.
        sizes = [integer(4, 12), *(integer(1, 9) for _ in range(1, world_size()))]
        shape = (sum(sizes), channels, *spatial)
        x = (torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
        upstream = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) / x[:, 0].numel()
        own = own_rows(x, sizes).requires_grad_()
        output = norm(own)
        norm.zero_grad()
        output.backward(own_rows(upstream, sizes))
        x = x.double().requires_grad_()
        expected = reference(x)
        reference.zero_grad()
        expected.backward(upstream.double())

        assert output.dtype == dtype
        assert error(output, own_rows(expected, sizes)) < tolerance
        assert error(own.grad, own_rows(x.grad, sizes)) < tolerance
        for parameter, counterpart in zip(norm.parameters(), reference.parameters(), strict=True):
            dist.all_reduce(parameter.grad)
            assert error(parameter.grad, counterpart.grad) < tolerance
        for buffer, counterpart in zip(norm.buffers(), reference.buffers(), strict=True):
            assert error(buffer, counterpart) < tolerance
    assert [name for name, _ in norm.named_buffers()] == [name for name, _ in reference.named_buffers()]
    assert error(norm.eval()(x.to(dtype)), reference.eval()(x)) < tolerance


def batch_norm_in_every_process() -> None:
    state = PartialState(cpu=True)
    for seed in range(18):
        compare_with_whole_batch(seed, torch.float64, 1e-12)
        compare_with_whole_batch(seed, torch.float32, 1e-6)

    # At 1e8, the squares' size, float32 has steps of 8: E[x²] - E[x]² cannot see a variance of 1. What remains is the
    # rounding of the means, at most 5e-4 (half a step at 1e4) for the processes' own and as much for the merged one.
    sizes = [1000 + 100 * rank for rank in range(state.num_processes)]
    x = 1e4 + torch.randn(sum(sizes), 64, generator=torch.Generator().manual_seed(0))
    assert (x.square().mean(0) - x.mean(0).square() - 1).abs().min() > 0.1
    expected = nn.BatchNorm1d(64).double()(x.double())
    assert (SyncBatchNorm(64)(own_rows(x, sizes)) - own_rows(expected, sizes)).abs().max() < 1e-3

    norm = SyncBatchNorm(8)
    net = nn.Sequential(nn.Linear(4, 8), norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(torch.randn(5, 4))
        assert output.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32
    output.float().square().sum().backward()
    with torch.no_grad():
        means = all_gather(norm(torch.randn(5, 8))).mean(0)
    assert means.abs().max() < 1e-6 and norm.num_batches_tracked == 2
    with pytest.raises(ValueError, match="at least one value per channel"):
        norm(torch.randn(0, 8))
    with pytest.raises(ValueError, match=r"shape \(batch_size, 8, \.\.\.\)"):
        norm(torch.randn(5, 7))
    close_process_group()


@pytest.mark.parametrize("size", [2, 3])
def test_batch_norm_equals_the_whole_batch(size):
    run_ranks(batch_norm_in_every_process, size)


def make_net(norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), norm(8), nn.ReLU(), nn.Linear(8, 3)).double()


def train_in_every_process() -> None:
    PartialState(cpu=True)
    net, reference = make_net(SyncBatchNorm), make_net(nn.BatchNorm1d)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference_optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(own_rows(x, [8, 8])).square().mean().backward()
        reference_optimizer.zero_grad()
        reference(x).square().mean().backward()
        for parameter, counterpart in zip(net.parameters(), reference.parameters(), strict=True):
            assert error(parameter.grad, counterpart.grad) < 1e-12
        optimizer.step()
        reference_optimizer.step()
    for name, value in reference.state_dict().items():
        assert error(net.state_dict()[name], value) < 1e-12
    del model
    close_process_group()
    assert not dist.is_initialized()


def test_training_equals_one_process_with_the_whole_batch():
    """The gradients of DDP, every tensor after three steps, and an exit without abort (`run_ranks` looks at it)."""
    run_ranks(train_in_every_process, 2)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_one_process_is_torch(options):
    torch.manual_seed(0)
    norm, reference = SyncBatchNorm(5, **options), nn.BatchNorm1d(5, **options)
    for x in torch.randn(2, 7, 5):
        first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
        outputs = norm(first), reference(second)
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(*outputs) and torch.equal(first.grad, second.grad)
    assert list(norm.state_dict()) == list(reference.state_dict())
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in norm.state_dict().items())
    assert torch.equal(norm.eval()(x), reference.eval()(x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm.train()(x[:1])
    with pytest.raises(ValueError, match=r"shape \(batch_size, 5, \.\.\.\)"):
        norm(x[0])


def test_nothing_to_do_without_a_group():
    x = torch.randn(3, 2)
    assert world_size() == 1 and all_gather(x) is x
    close_process_group()
