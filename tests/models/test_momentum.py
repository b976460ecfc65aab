import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_ssl.backbones import ViTTrunk, vit_config
from hf_ssl.models.momentum import copy_to_teacher, update_teacher


def make_pair():
    """Teacher and student of different weights and statistics."""
    modules = []
    for seed in range(2):
        torch.manual_seed(seed)
        trunk = ViTTrunk(vit_config("vit-micro", image_size=8, patch_size=4, num_hidden_layers=2))
        module = nn.Sequential(trunk, nn.Linear(96, 8, bias=False), nn.BatchNorm1d(5))
        for p in module.parameters():
            nn.init.normal_(p)
        module(torch.randn(4, 3, 8, 8))
        modules.append(module)
    teacher, student = modules
    return teacher.requires_grad_(False), student


def states(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def update_in_a_loop(teacher, student, momentum):
    """The originals' update."""
    for k, q in zip(teacher.parameters(), student.parameters(), strict=True):
        k.data.mul_(momentum).add_((1 - momentum) * q.detach().data)


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 1))
def test_update_is_that_of_a_loop(momentum):
    teacher, student = make_pair()
    expected, before = copy.deepcopy(teacher), states(student)
    update_in_a_loop(expected, student, momentum)
    update_teacher(teacher, student, momentum)
    for name, p in teacher.named_parameters():
        # One rounding less: the product with the student is not rounded before it is added.
        torch.testing.assert_close(p, expected.get_parameter(name), rtol=0, atol=1e-6, msg=name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_rounding_is_that_of_the_originals():
    """At the momenta of training nearly all results are the same to the last bit; lerp_ changes a quarter of them."""
    torch.manual_seed(0)
    teacher, student = nn.Linear(300, 300), nn.Linear(300, 300)
    expected = copy.deepcopy(teacher)
    update_in_a_loop(expected, student, 0.996)
    update_teacher(teacher, student, 0.996)
    assert (teacher.weight == expected.weight).float().mean() > 0.98


def test_ends_are_exact():
    teacher, student = make_pair()
    before = states(teacher)
    update_teacher(teacher, student, 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    update_teacher(teacher, student, 0.0)
    for name, p in teacher.named_parameters():
        assert torch.equal(p, student.get_parameter(name)), name


def test_many_updates():
    """Against float64: rounding does not pile up."""
    torch.manual_seed(0)
    teacher, student = nn.Linear(30, 30), nn.Linear(30, 30)
    expected = teacher.weight.detach().double()
    for _ in range(500):
        update_teacher(teacher, student, 0.99)
        expected = 0.99 * expected + 0.01 * student.weight.detach().double()
    torch.testing.assert_close(teacher.weight.double(), expected, rtol=0, atol=1e-6)


def test_buffers_are_not_averaged():
    teacher, student = make_pair()
    before = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    assert not torch.equal(before["2.running_mean"], student.get_buffer("2.running_mean"))
    update_teacher(teacher, student, 0.5)
    assert len(before) == 3
    assert all(torch.equal(buffer, before[name]) for name, buffer in teacher.named_buffers())


def test_paired_by_name():
    """The order in which the parameters were registered is of no account."""
    teacher = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    student = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    update_teacher(teacher, student, 0.0)
    assert torch.equal(teacher["a"].weight, student["a"].weight)
    assert torch.equal(teacher["b"].weight, student["b"].weight)


def test_update_leaves_gradients_alone():
    teacher, student = make_pair()
    student(torch.randn(4, 3, 8, 8)).sum().backward()
    grads = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    update_teacher(teacher, student, 0.9)
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert all(map(torch.equal, grads, [p.grad for p in student.parameters() if p.grad is not None]))


def test_nothing_is_read_from_the_device():
    """Tensors without data cannot be read, so a read would raise."""
    update_teacher(nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta"), 0.9)


def test_copy():
    teacher, student = make_pair()
    teacher.requires_grad_(True)
    student[1].weight.requires_grad_(False)
    copy_to_teacher(teacher, student)
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert sum(not p.requires_grad for p in student.parameters()) == 1
    # A copy, not the same memory.
    teacher[1].weight.add_(1)
    assert not torch.equal(teacher[1].weight, student[1].weight)


def test_copy_of_buffers_that_are_not_saved():
    teacher, student = nn.Module(), nn.Module()
    for module, value in ((teacher, 0.0), (student, 1.0)):
        module.register_buffer("table", torch.full((2,), value), persistent=False)
    copy_to_teacher(teacher, student)
    assert torch.equal(teacher.table, torch.ones(2))


def test_errors():
    with pytest.raises(ValueError, match="The student has no 'bias'; build teacher and student from the same"):
        update_teacher(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)
    with pytest.raises(ValueError, match="The teacher has no 'bias'"):
        update_teacher(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match=r"'weight' has the shape \(2, 3\) in the teacher and \(2, 1\) in the st"):
        update_teacher(nn.Linear(3, 2), nn.Linear(1, 2), 0.5)
    with pytest.raises(ValueError, match="The teacher has no 'running_mean'"):
        copy_to_teacher(nn.LayerNorm(2), nn.BatchNorm1d(2))
    for momentum in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"momentum=.* must be in \[0, 1\]"):
            update_teacher(nn.Linear(2, 2), nn.Linear(2, 2), momentum)


def test_mismatch_changes_nothing():
    teacher = nn.Linear(3, 2)
    before = states(teacher)
    with pytest.raises(ValueError, match="has the shape"):
        update_teacher(teacher, nn.Linear(3, 4), 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in states(teacher).items())
