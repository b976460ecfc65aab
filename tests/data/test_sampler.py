import torch

from hf_ssl.data import EpochSampler


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_index_once_with_its_epoch_as_python_ints():
    keys = epoch_of(EpochSampler(50, seed=3), 4)
    assert {epoch for epoch, _ in keys} == {4}
    assert sorted(index for _, index in keys) == list(range(50))
    assert all(type(epoch) is int and type(index) is int for epoch, index in keys)


def test_order_is_a_pure_function_of_seed_and_epoch():
    expected = epoch_of(EpochSampler(50, seed=3), 2)
    sampler = EpochSampler(50, seed=3)
    epoch_of(sampler, 7)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert epoch_of(sampler, 2) == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_and_epochs_give_different_orders():
    orders = {tuple(i for _, i in epoch_of(EpochSampler(50, seed), epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_without_shuffling():
    assert epoch_of(EpochSampler(3, seed=0, shuffle=False), 5) == [(5, 0), (5, 1), (5, 2)]


def test_length():
    assert len(EpochSampler(17, seed=0)) == 17
