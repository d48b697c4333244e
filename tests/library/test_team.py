"""Two processes of half a minibatch each train as one process does with the whole of it."""

from pathlib import Path

import pytest
import torch
from library.team_member import train
from torch import nn

from winnow.simclr.team import SharedBatchNorm, Team


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = train(tmp_path / "one", processes=1), train(tmp_path / "two", processes=2)
    assert (one["size"], two["size"]) == (1, 2)
    assert len(one["losses"]) == len(two["losses"]) == 20
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["visits"] == one["visits"]
    assert two["picks"] == one["picks"]


def test_processes_whose_shares_differ_take_as_many_chunks(tmp_path: Path) -> None:
    """They wait for each other in each chunk's BatchNorms. Of 21 images one process has 11, more than a chunk, and the
    other 10: their chunks, of 6 and 5, then of 5 and 5, are together those of one process that takes 11 at most.
    """
    one = train(tmp_path / "one", processes=1, simclr={"batch_size": 21, "chunk": 11, "epochs": 2})
    two = train(tmp_path / "two", processes=2, simclr={"batch_size": 21, "chunk": 10, "epochs": 2})
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["picks"] == one["picks"]


def test_image_visits_that_are_not_one_for_each_process_are_given_up(tmp_path: Path) -> None:
    """Of 22 visits 20 are a batch and 2 are left for three processes; the experiment must not wait for them."""
    found = train(tmp_path / "three", processes=3, visits=22)
    assert (len(found["losses"]), found["visits"]) == (1, 22)
    assert any("given up" in note for note in found["notes"])


def both_norms(channels: int) -> tuple[nn.BatchNorm2d, SharedBatchNorm]:
    plain = nn.BatchNorm2d(channels).train()
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
        plain.bias.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(2))
    return plain, SharedBatchNorm(plain, Team()).train()


def test_shared_batch_norm_of_one_process_is_batch_norm() -> None:
    plain, shared = (norm.double() for norm in both_norms(4))
    x = torch.randn(9, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    slope = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found: list[list[torch.Tensor]] = []
    for norm in (plain, shared):
        given = x.clone().requires_grad_()
        made = norm(given)
        gradients = torch.autograd.grad(made, [given, norm.weight, norm.bias], slope)
        found.append([made, *gradients, norm.running_mean, norm.running_var])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(*found, strict=True))


def test_statistics_of_bf16_are_taken_in_float32() -> None:
    """As torch's own BatchNorm takes them; in bf16 a count of 32,769 would be 32,768, and a sum off by a hundredth."""
    x = (torch.randn(9, 4, 60, 61, generator=torch.Generator().manual_seed(0)) + 3).to(torch.bfloat16)
    plain, shared = both_norms(4)
    made, expected = shared(x), plain(x)
    assert made.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(made, expected, atol=0.03)
    assert torch.allclose(shared.running_mean, plain.running_mean, rtol=1e-5)
    assert torch.allclose(shared.running_var, plain.running_var, rtol=1e-5)


def test_the_gradient_of_bf16_is_summed_in_float32() -> None:
    plain, shared = both_norms(4)
    plain.double()
    given, slope = (torch.randn(64, 4, 60, 61, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (0, 1))
    found = [
        torch.autograd.grad(norm(x.requires_grad_()), [x, norm.weight, norm.bias], slope.to(x.dtype))
        for norm, x in ((plain, given.double()), (shared, given.clone()))
    ]
    for part, (expected, made) in enumerate(zip(*found, strict=True)):
        off = torch.linalg.vector_norm(made - expected) / torch.linalg.vector_norm(expected)
        assert off < (3e-3 if part == 0 else 1e-5)  # the first is itself rounded to bf16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_batch_norm_keeps_one_map_for_the_gradient_as_batch_norm_does(dtype: torch.dtype) -> None:
    x = torch.rand(8, 4, 32, 32, requires_grad=True).to(dtype)
    for norm in both_norms(4):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one, sizes=sizes: sizes.append(one.nbytes), lambda _: _):
            norm(x)
        assert x.nbytes < sum(sizes) < x.nbytes + 200
