"""ISL's memory bank, its neighbors, and how they are looked for; against dense sums, sets and loops."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_ssl.models.isl import memory_bank, mining
from hf_ssl.models.isl.memory_bank import MemoryBank, bank_blocks, bank_softmax
from hf_ssl.models.isl.mining import draw_triplets, hardest, nearest_rows, propose_links
from hf_ssl.models.isl.neighbors import NeighborSets
from hf_ssl.views import Draws

from ..device import DEVICE


# Similarities in a block: of the batches below, a row at a time, a few with a rest, and all rows.
BLOCKS = [1, 20, 10**9]


@pytest.fixture(params=BLOCKS)
def block(request, monkeypatch):
    for name in ("_BLOCK_ON_CPU", "_BLOCK"):
        monkeypatch.setattr(memory_bank, name, request.param)
    return request.param


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(random(*shape, seed=seed), dim=-1).to(dtype)


def dense_softmax(features, rows, temperature, references):
    """Logarithm of the denominator, and the divergence, of all similarities at a time."""
    z = features @ rows.T / temperature
    log_q = F.log_softmax(references @ rows.T / temperature, dim=1)
    kl = F.kl_div(log_q, F.log_softmax(z, dim=1), reduction="none", log_target=True).sum(1)
    return z.logsumexp(1), kl


# ---- the softmax over the bank ----


def test_blocks():
    rows = torch.arange(22.0).view(11, 2)
    for batch_size in (1, 3, 4, 10**7):
        parts = bank_blocks(rows, batch_size)
        assert torch.equal(torch.cat(parts), rows) and all(part.data_ptr() for part in parts)
    assert len(bank_blocks(rows, 10**7)) == 11, "a row at a time, where the batch is large"


@pytest.mark.parametrize(("size", "count", "dim"), [(5, 23, 6), (1, 1, 3), (4, 2, 1), (3, 8, 16)])
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_softmax_is_the_dense_one(block, size, count, dim, scale):
    """Values and gradients; rows that have no unit length too."""
    features, rows = unit(size, dim, seed=1).requires_grad_(), scale * random(count, dim, seed=2)
    references = unit(size, dim, seed=3)
    weights = random(2, size, seed=4)
    found = bank_softmax(features, rows, 0.3, references)
    expected = dense_softmax(features, rows, 0.3, references)
    gradients = []
    for values in (found, expected):
        assert values[0].shape == values[1].shape == (size,)
        gradients.append(torch.autograd.grad((weights * torch.stack(values)).sum(), features)[0])
    for actual, dense in zip((*found, gradients[0]), (*expected, gradients[1]), strict=True):
        torch.testing.assert_close(actual, dense, rtol=1e-10, atol=1e-10)
    alone, nothing = bank_softmax(features, rows, 0.3)
    torch.testing.assert_close(alone, found[0], rtol=1e-12, atol=0)
    assert not nothing.any()
    (gradient,) = torch.autograd.grad(alone.sum(), features)
    torch.testing.assert_close(gradient, (features @ rows.T / 0.3).softmax(1) @ rows / 0.3, rtol=1e-10, atol=1e-12)


def test_gradients_by_differences(block):
    features, rows = random(3, 4, seed=1).requires_grad_(), random(9, 4, seed=2)
    references = random(3, 4, seed=3)
    assert torch.autograd.gradcheck(lambda x: bank_softmax(x, rows, 0.5, references), features)
    assert torch.autograd.gradcheck(lambda x: bank_softmax(x, rows, 0.5)[0], features)


def test_divergence_of_equal_softmaxes(block):
    """Zero, where it has a minimum; elsewhere positive."""
    features, rows = unit(5, 6, seed=1).requires_grad_(), unit(30, 6, seed=2)
    _, kl = bank_softmax(features, rows, 0.1, features.detach())
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(kl.sum(), features)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
    assert (bank_softmax(features, rows, 0.1, unit(5, 6, seed=3))[1] > 1e-3).all()


@pytest.mark.parametrize(("temperature", "scale"), [(0.01, 1.0), (0.07, 30.0), (0.01, 100.0)])
def test_large_similarities(block, temperature, scale):
    """Exponentials of up to ±10,000, whichever block holds the largest."""
    features, references = unit(4, 8, seed=1), unit(4, 8, seed=2)
    rows = scale * unit(40, 8, seed=3)
    rows = rows[(rows @ features[0]).argsort()]
    for ordered in (rows, rows.flip(0)):
        for dtype in (torch.float64, torch.float32):
            tolerance = 20 * torch.finfo(dtype).eps
            given_features = features.to(dtype).requires_grad_()
            found = bank_softmax(given_features, ordered.to(dtype), temperature, references.to(dtype))
            leaf = features.clone().requires_grad_()
            expected = dense_softmax(leaf, ordered, temperature, references)
            size = (features @ ordered.T).abs().max().item() / temperature
            for actual, dense in zip(found, expected, strict=True):
                torch.testing.assert_close(actual.double(), dense, rtol=0, atol=tolerance * size)
            actual = torch.autograd.grad(sum(found).sum(), given_features)[0]
            dense = torch.autograd.grad(sum(expected).sum(), leaf)[0]
            # What is left of a large gradient is as inexact as the similarities, each of which is off by a little.
            torch.testing.assert_close(
                actual.double(), dense, rtol=0, atol=4 * tolerance * size * max(1.0, dense.abs().max().item())
            )


@pytest.mark.parametrize("blocks", [1, 10, 300])
def test_accuracy_in_float32(monkeypatch, blocks):
    """Nearly as good as that of all similarities at a time."""
    features, rows, references = unit(16, 32, seed=1), unit(3000, 32, seed=2), unit(16, 32, seed=3)
    monkeypatch.setattr(memory_bank, "_BLOCK_ON_CPU", 16 * 3000 // blocks)
    monkeypatch.setattr(memory_bank, "_BLOCK", 16 * 3000 // blocks)
    exact = features.clone().requires_grad_()
    expected = dense_softmax(exact, rows, 0.1, references)
    expected = (*expected, torch.autograd.grad(sum(expected).sum(), exact)[0])
    errors = []
    for softmax in (bank_softmax, dense_softmax):
        leaf = features.float().requires_grad_()
        found = softmax(leaf, rows.float(), 0.1, references.float())
        assert all(tensor.dtype == torch.float32 for tensor in found)
        found = (*found, torch.autograd.grad(sum(found).sum(), leaf)[0])
        errors.append([(a.double() - b).abs().max().item() for a, b in zip(found, expected, strict=True)])
    assert max(errors[0]) < 1e-5, errors
    assert blocks > 10 or all(own < 4 * dense + 1e-6 for own, dense in zip(*errors, strict=True)), errors


def test_bank_and_references_are_constants():
    features = unit(3, 4, seed=1).requires_grad_()
    rows, references = unit(7, 4, seed=2).requires_grad_(), unit(3, 4, seed=3).requires_grad_()
    sum(value.sum() for value in bank_softmax(features, rows, 0.1, references)).backward()
    assert features.grad.any() and rows.grad is None and references.grad is None


# ---- the bank ----


class Elsewhere(torch.Tensor):
    """Says that it lies on an accelerator."""

    device = SimpleNamespace(type="accelerator")


def with_spare_slots(neighbors):
    """The same, with lists as an accelerator makes them, which have empty slots."""
    neighbors.counts = lambda images: NeighborSets.counts(neighbors, images).as_subclass(Elsewhere)
    return neighbors


def linked_bank(num_images, dim, pairs, spare=False):
    bank = MemoryBank(num_images, dim).to(DEVICE)
    bank.rows = unit(num_images, dim)
    if pairs:
        bank.neighbors.add(*torch.tensor(sorted(pairs), device=DEVICE).T)
    if spare:
        with_spare_slots(bank.neighbors)
    return bank


@st.composite
def relations(draw, max_images=12):
    """A number of images, pairs of different ones, and a batch, in which images may come again."""
    num_images = draw(st.integers(2, max_images))
    images = st.integers(0, num_images - 1)
    pairs = draw(st.lists(st.tuples(images, images).filter(lambda pair: pair[0] != pair[1]), max_size=25))
    return num_images, pairs, draw(st.lists(images, min_size=1, max_size=6))


def sets_of(num_images, pairs):
    sets = [set() for _ in range(num_images)]
    for i, j in pairs:
        sets[i].add(j)
        sets[j].add(i)
    return sets


def test_rows_of_the_beginning():
    """Uniform in ±1/√(dim/3), so that their expected square is 1; not normalized; a function of the seed."""
    bank = MemoryBank(2000, 12, seed=3)
    assert len(bank) == 2000 and bank.rows.dtype == torch.float32 and len(bank.neighbors) == 0
    assert 0.499 < bank.rows.abs().max() <= 0.5
    assert bank.rows.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.01)
    assert abs(bank.rows.mean().item()) < 0.01
    assert bank.rows.square().sum(1).mean().item() == pytest.approx(1, rel=0.02)
    assert bank.rows.norm(dim=1).std() > 0.05 and not bank.is_filled()
    assert torch.equal(MemoryBank(2000, 12, seed=3).rows, bank.rows)
    assert not torch.equal(MemoryBank(2000, 12).rows, bank.rows)
    assert not bank.state_dict()


@settings(deadline=None, max_examples=50)
@given(relations(), st.sampled_from([0.05, 1.0]), st.booleans())
def test_own_log_probability(relation, temperature, spare):
    """Against a mask over all of the bank; and its gradient."""
    num_images, pairs, batch = relation
    sets, bank = sets_of(num_images, pairs), linked_bank(num_images, 5, pairs, spare)
    index = torch.tensor(batch, device=DEVICE)
    features = unit(len(batch), 5, seed=1).requires_grad_()
    found = bank.own_log_probability(index, features, temperature).as_subclass(torch.Tensor)
    mask = torch.tensor([[j == i or j in sets[i] for j in range(num_images)] for i in batch], device=DEVICE)
    dense = (features @ bank.rows.T / temperature).masked_fill(~mask, -math.inf).logsumexp(1)
    torch.testing.assert_close(found, dense, rtol=1e-11, atol=1e-11)
    gradients = [torch.autograd.grad(values.sin().sum(), features)[0] for values in (found, dense)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_own_log_probability_of_large_similarities():
    """A neighbor's may be far above the image's own, and far below."""
    bank = linked_bank(6, 2, [(0, 1), (0, 2), (3, 4)])
    bank.rows = torch.tensor([[1, 0], [300, 0], [-300, 0], [0, 500], [0, -500], [0, 1]], device=DEVICE).double()
    features = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64, device=DEVICE).requires_grad_()
    found = bank.own_log_probability(torch.tensor([0, 3], device=DEVICE), features, 0.01)
    assert found.tolist() == [30_000, 50_000]
    (gradient,) = torch.autograd.grad(found.sum(), features)
    assert gradient.tolist() == [[30_000, 0], [0, -50_000]]


@settings(deadline=None, max_examples=50)
@given(relations(), st.booleans(), st.booleans(), st.booleans())
def test_choice_of_a_neighbor(relation, most_similar, with_ties, spare):
    """Against the definition; of equal ones the first."""
    num_images, pairs, batch = relation
    sets, bank = sets_of(num_images, pairs), linked_bank(num_images, 3, pairs, spare)
    if with_ties:
        bank.rows = bank.rows.sign()
    expected = []
    for i in batch:
        similarity = {j: (bank.rows[i] * bank.rows[j]).sum().item() for j in sorted(sets[i])}
        best = (max if most_similar else min)(similarity.values(), default=None)
        expected.append(min((j for j, value in similarity.items() if value == best), default=i))
    assert bank.choose_neighbor(torch.tensor(batch, device=DEVICE), most_similar).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=10), st.sampled_from([0.0, 0.4, 0.9]))
def test_update(images, momentum):
    """Rows of the batch only; an image that comes twice, with one feature, moves once."""
    bank, features = MemoryBank(10, 4, seed=1), unit(10, 4, seed=2)
    bank.to(DEVICE)
    before = bank.rows.clone()
    index = torch.tensor(images, device=DEVICE)
    bank.update(index, features[index], momentum)
    for image in range(10):
        if image in images:
            mixed = momentum * before[image].double() + (1 - momentum) * features[image]
            torch.testing.assert_close(bank.rows[image].double(), F.normalize(mixed, dim=0), rtol=0, atol=1e-6)
            assert bank.rows[image].norm().item() == pytest.approx(1, abs=1e-6)
        else:
            assert torch.equal(bank.rows[image], before[image])
    assert bank.is_filled() == (len(set(images)) == 10)
    assert bank.rows.dtype == torch.float32


def test_update_is_no_part_of_the_graph():
    bank, features = MemoryBank(4, 3).to(DEVICE), unit(2, 3, dtype=torch.float32).requires_grad_()
    bank.update(torch.tensor([0, 2], device=DEVICE), features, 0.5)
    assert not bank.rows.requires_grad


# ---- sets of neighbors ----


class Counting(Draws):
    """Draws whose whole numbers are counted from `start`, and from 0 again where they are too high."""

    start = 0

    def integers(self, name, *shape, high):
        numbers = self.start + torch.arange(math.prod(shape), device=self.keys.device).view(shape)
        return numbers.expand(len(self.keys), *shape) % torch.as_tensor(high, device=self.keys.device).clamp(min=1)


def draws_for(batch, kind=Draws):
    places = torch.arange(len(batch), device=DEVICE)
    return kind(Draws.for_samples(0, torch.zeros_like(places), places).keys)


def check_sets(neighbors, sets, batch):
    num_images = len(sets)
    expected = [i * num_images + j for i, others in enumerate(sets) for j in sorted(others)]
    assert neighbors.links.tolist() == expected, "sorted, each once, both directions"
    assert len(neighbors) == len(expected) and neighbors.links.dtype == torch.int64
    assert neighbors.offsets.tolist() == [sum(map(len, sets[:i])) for i in range(num_images + 1)]
    index = torch.tensor(batch, device=DEVICE)
    assert neighbors.counts(index).tolist() == [len(sets[i]) for i in batch]
    places, others, used = neighbors.of(index)
    if "counts" in vars(neighbors):
        assert len(used) == len(batch) * max(map(len, sets)), "as many as the longest list needs for each"
    assert bool(((others >= 0) & (others < num_images)).all())
    assert bool(((places >= 0) & (places < len(batch))).all())
    found = list(zip(places[used].tolist(), others[used].tolist(), strict=True))
    assert found == [(place, j) for place, i in enumerate(batch) for j in sorted(sets[i])]


@settings(deadline=None, max_examples=60)
@given(relations(), st.lists(st.integers(0, 25), max_size=3), st.booleans())
def test_sets_grow_as_sets_do(relation, cuts, spare):
    """Pairs are added in several calls, in which they and earlier ones may come again, in either direction."""
    num_images, pairs, batch = relation
    neighbors, sets = NeighborSets(num_images).to(DEVICE), sets_of(num_images, [])
    if spare:
        with_spare_slots(neighbors)
    check_sets(neighbors, sets, batch)
    bounds = [0, *sorted(min(cut, len(pairs)) for cut in cuts), len(pairs)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        before = sum(map(len, sets))
        sets = [mine | added for mine, added in zip(sets, sets_of(num_images, pairs[start:end]), strict=True)]
        images = torch.tensor([pair[0] for pair in pairs[start:end]], dtype=torch.int64, device=DEVICE)
        others = torch.tensor([pair[1] for pair in pairs[start:end]], dtype=torch.int64, device=DEVICE)
        assert neighbors.add(images, others) == sum(map(len, sets)) - before
        check_sets(neighbors, sets, batch)
        assert neighbors.add(others, images) == 0
        check_sets(neighbors, sets, batch)


@settings(deadline=None, max_examples=30)
@given(relations())
def test_links_make_the_sets_again(relation):
    num_images, pairs, batch = relation
    bank, again = linked_bank(num_images, 3, pairs), NeighborSets(num_images).to(DEVICE)
    again.add(torch.tensor([0], device=DEVICE), torch.tensor([1], device=DEVICE))
    again.set_links(bank.neighbors.links.cpu())
    check_sets(again, sets_of(num_images, pairs), batch)
    again.set_links(torch.empty(0, dtype=torch.int64))
    check_sets(again, sets_of(num_images, []), batch)
    assert not again.state_dict()


@settings(deadline=None, max_examples=60)
@given(relations(), st.booleans())
@example((5, [(0, j) for j in range(1, 5)], [0, 1, 0]), False)
@example((2, [(0, 1)], [1, 0]), True)
def test_others_are_the_complement(relation, spare):
    """The n-th number that is drawn stands for the n-th image that is left; so the choice is as uniform as numbers are."""
    num_images, pairs, batch = relation
    sets, bank = sets_of(num_images, pairs), linked_bank(num_images, 3, pairs, spare)
    index = torch.tensor(batch, device=DEVICE)
    found = bank.neighbors.draw_others(index, draws_for(batch, kind=Counting), num_images)
    assert found.shape == (len(batch), num_images) and found.dtype == torch.int64
    for i, drawn in zip(batch, found.tolist(), strict=True):
        left = [j for j in range(num_images) if j != i and j not in sets[i]] or [i]
        assert drawn == [left[n % len(left)] for n in range(num_images)]
    drawn = bank.neighbors.draw_others(index, draws_for(batch), 50)
    for i, row in zip(batch, drawn.tolist(), strict=True):
        assert set(row) <= (set(range(num_images)) - sets[i] - {i} or {i})


@settings(deadline=None, max_examples=40)
@given(relations(), st.booleans())
def test_drawn_neighbors(relation, spare):
    """As above; an image without neighbors stands for itself."""
    num_images, pairs, batch = relation
    sets, bank = sets_of(num_images, pairs), linked_bank(num_images, 3, pairs, spare)
    index = torch.tensor(batch, device=DEVICE)
    found = bank.neighbors.draw_neighbor(index, draws_for(batch)).tolist()
    assert all(j in sets[i] or (not sets[i] and j == i) for i, j in zip(batch, found, strict=True))
    draws = draws_for(batch, kind=Counting)
    for draws.start in range(4):
        found = bank.neighbors.draw_neighbor(index, draws).tolist()
        assert found == [sorted(sets[i])[draws.start % len(sets[i])] if sets[i] else i for i in batch]


def test_frequencies():
    """Of others and of neighbors, by Pearson's test; each image has draws of its own."""
    pairs = [(0, 3), (0, 4), (0, 9), (5, 1), (5, 2), (11, 10), (11, 6)]
    bank, sets = linked_bank(12, 3, pairs), sets_of(12, pairs)
    batch = [0, 5, 11, 7] * 1000
    index, draws = torch.tensor(batch, device=DEVICE), draws_for(batch)
    drawn = bank.neighbors.draw_others(index, draws, 6).view(1000, 4, 6).cpu()
    chosen = bank.neighbors.draw_neighbor(index, draws).view(1000, 4).cpu()
    for place, i in enumerate(batch[:4]):
        left = sorted(set(range(12)) - sets[i] - {i})
        counts = drawn[:, place].flatten().bincount(minlength=12)
        assert counts.sum() == counts[left].sum() == 6000
        assert stats.chisquare(counts[left].numpy()).pvalue > 1e-4
        if sets[i]:
            counts = chosen[:, place].bincount(minlength=12)[sorted(sets[i])]
            assert counts.sum() == 1000 and stats.chisquare(counts.numpy()).pvalue > 1e-4
        assert len(drawn[:, place].unique(dim=0)) > 950, "of every row its own"
    again = bank.neighbors.draw_others(index[5:9], Draws(draws.keys[5:9]), 6)
    assert torch.equal(again.cpu(), drawn.flatten(0, 1)[5:9]), "whatever batch an image comes in"


# ---- mining ----


@pytest.mark.parametrize("count", [1, 4, 37, 60])
@pytest.mark.parametrize("with_own", [False, True])
def test_nearest_rows(block, count, with_own):
    """Against a product with all rows; the own row's counts as -1, wherever it lies."""
    rows, queries = random(37, 5, seed=1), random(6, 5, seed=2)
    own = torch.tensor([0, 36, 17, 3, 20, 36], device=DEVICE) if with_own else None
    products = queries @ rows.T
    if with_own:
        products[torch.arange(6), own] = -1.0
    expected = products.topk(min(count, 37))
    found = nearest_rows(queries, rows, count, own)
    torch.testing.assert_close(found[0], expected.values, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[1], expected.indices)


@pytest.mark.parametrize(("num_rows", "count"), [(50, 7), (32, 1), (33, 1), (400, 5), (160, 5), (161, 5)])
@pytest.mark.parametrize("numbers", [1, 100, 10**9])
def test_hardest(monkeypatch, num_rows, count, numbers):
    """On both sides of where a product with all rows is faster, and in several parts."""
    for name in ("_DRAWN_ON_CPU", "_DRAWN"):
        monkeypatch.setattr(mining, name, numbers)
    anchor, rows = random(9, 4, seed=1), random(num_rows, 4, seed=2)
    generator = torch.Generator().manual_seed(3)
    candidates = torch.randint(num_rows, (9, count), generator=generator).to(DEVICE)
    expected = [
        max(drawn, key=lambda j: (anchor[i] * rows[j]).sum().item()) for i, drawn in enumerate(candidates.tolist())
    ]
    found = hardest(anchor, rows, candidates)
    assert found.tolist() == expected and found.dtype == torch.int64


@pytest.mark.parametrize("from_neighbors", [False, True])
def test_triplets(from_neighbors):
    pairs = [(0, 3), (0, 4), (5, 1), (2, 9)]
    bank, sets = linked_bank(12, 3, pairs), sets_of(12, pairs)
    batch = [4, 0, 7, 5]
    index, anchor = torch.tensor(batch, device=DEVICE), unit(4, 3, seed=5)
    triplets = draw_triplets(bank, anchor, index, draws_for(batch), 400, from_neighbors)
    assert triplets.anchor is anchor and list(triplets)[0] is anchor and len(list(triplets)) == 3
    for place, i in enumerate(batch):
        left = sorted(set(range(12)) - sets[i] - {i})  # of 400 draws none is missing
        negative = max(left, key=lambda j: (anchor[place] @ bank.rows[j]).item())
        assert torch.equal(triplets.negative[place], bank.rows[negative])
        positives = sets[i] if from_neighbors and sets[i] else {i}
        assert any(torch.equal(triplets.positive[place], bank.rows[j]) for j in positives)
    assert torch.equal(list(triplets)[1], triplets.positive) and torch.equal(list(triplets)[2], triplets.negative)


def slow_links(rows, proxies, scores, index, score_threshold, similarity_threshold, count):
    """For each image the rows that become its neighbors, and all that are considered, as they are written."""
    kept, considered = [], []
    for proxy, score, own in zip(proxies.tolist(), scores.tolist(), index.tolist(), strict=True):
        similarity = [sum(p * x for p, x in zip(proxy, row, strict=True)) for row in rows.tolist()]
        similarity[own] = -1.0
        nearest = sorted(range(len(similarity)), key=lambda j: -similarity[j])[:count]
        radius = similarity_threshold + (1 - score) * (1 - similarity_threshold)
        considered.append(nearest)
        kept.append([j for j in nearest if similarity[j] > radius] if score > score_threshold else [])
    return kept, considered


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize(("score_threshold", "similarity_threshold"), [(0.5, 0.3), (0.0, 0.0), (0.3, 0.6), (0.9, 0.9)])
def test_links(block, count, score_threshold, similarity_threshold):
    rows, proxies = unit(30, 3, seed=1), unit(20, 3, seed=2)
    scores = torch.rand(20, generator=torch.Generator().manual_seed(3)).to(proxies)
    index = torch.arange(5, 25, device=DEVICE)
    found = propose_links(rows, proxies, scores, index, score_threshold, similarity_threshold, count)
    expected, considered = slow_links(rows, proxies, scores, index, score_threshold, similarity_threshold, count)
    assert found.neighbors.tolist() == considered
    kept = [
        [j for j, k in zip(*pair, strict=True) if k]
        for pair in zip(found.neighbors.tolist(), found.kept.tolist(), strict=True)
    ]
    assert kept == expected
    assert score_threshold == 0.9 or any(kept)
    accepted = scores > score_threshold
    assert bool((found.radius[~accepted] == -1).all()) and not found.kept[~accepted].any()
    radius = similarity_threshold + (1 - scores) * (1 - similarity_threshold)
    torch.testing.assert_close(found.radius[accepted], radius[accepted])
    assert not (found.neighbors == index[:, None])[found.kept].any()


def test_thresholds_are_exceeded_or_not():
    """Numbers that are exact in floating point: equality is not enough, the next number is."""
    rows = torch.tensor([[0.625, 0], [0, 0.5], [0, 0]], device=DEVICE)
    proxies = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0]], device=DEVICE)
    proxies[1, 0] += 2.0**-20
    index = torch.full((4,), 2, device=DEVICE)
    scores = torch.tensor([0.75, 0.75, 0.5, 1.0], device=DEVICE)
    links = propose_links(rows, proxies, scores, index, 0.5, 0.5, 2)
    assert links.radius.tolist() == [0.625, 0.625, -1, 0.5]
    assert links.kept.any(1).tolist() == [False, True, False, False]
    scores = scores.nextafter(scores.new_tensor(2.0))
    links = propose_links(rows, proxies, scores, index, 0.5, 0.25, 2)
    assert links.kept.any(1).tolist() == [True, True, False, True]
    rows = rows.double()  # of radius 0.25 + (1 - score) 0.75 = 0.625 at score 0.5
    links = propose_links(rows, proxies.double(), torch.full((4,), 0.5).to(rows), index, 0.25, 0.25, 2)
    assert links.radius.tolist() == [0.625] * 4 and links.kept.any(1).tolist() == [False, True, False, False]


def test_own_row_is_never_linked():
    """Even if it is the only one near the proxy, and if everything else is accepted."""
    rows = unit(4, 3)
    links = propose_links(rows, rows, torch.ones(4).to(rows), torch.arange(4, device=DEVICE), 0.0, 0.0, 4)
    own = links.neighbors == torch.arange(4, device=DEVICE)[:, None]
    assert own.sum() == 4 and not links.kept[own].any() and (links.similarity[own] == -1).all()
