"""Matrix products by either library: the same up to rounding, however their operands lie in memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from winnow.simclr import products, small_maps, winograd
from winnow.simclr.convolutions import Conv2d

Layout = Callable[[Tensor], Tensor]

LAYOUTS: dict[str, Layout] = {
    "rows": lambda one: one.contiguous(),
    "columns": lambda one: one.mT.contiguous().mT,
    "rows with gaps": lambda one: torch.cat([one, one], -1)[..., : one.shape[-1]],
    "columns with gaps": lambda one: torch.cat([one.mT, one.mT], -1)[..., : one.shape[-2]].mT,
    "every second row": lambda one: one.repeat_interleave(2, -2)[..., ::2, :],
}


@pytest.fixture(autouse=True, params=[False, True], ids=["torch", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param and not products.has_onednn():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(products, "by_onednn", lambda: request.param)
    return "onednn" if request.param else "torch"


def operands(*batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    a, b = torch.randn(*batch, 37, 29, dtype=torch.float64), torch.randn(*batch, 29, 41, dtype=torch.float64)
    return a.to(dtype), b.to(dtype), a.to(dtype).double() @ b.to(dtype).double()


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize("of_a", LAYOUTS)
def test_products_are_those_of_float64(of_a: str, of_b: str, batch: tuple[int, ...]) -> None:
    a, b, exact = operands(*batch)
    a, b = LAYOUTS[of_a](a), LAYOUTS[of_b](b)
    assert (products.multiply(a, b) - exact).abs().max() < 2e-5
    wide = torch.full((*batch, 37, 2, 41), 7.0)
    out = wide[..., 0, :]
    assert products.multiply(a, b, out=out) is out
    assert (out - exact).abs().max() < 2e-5 and bool((wide[..., 1, :] == 7).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_made_dense_lies_as_it_did(layout: str) -> None:
    """Columns stay columns: what turns them into rows takes many times as long."""
    given = LAYOUTS[layout](operands()[0])
    found = products._dense(given)
    assert torch.equal(found, given)
    assert (found.mT if "columns" in layout else found).is_contiguous()


def test_float64_stays_float64() -> None:
    a, b, exact = operands(3, dtype=torch.float64)
    for found in (products.multiply(a, b), products.multiply(a[0], b[0])[None]):
        torch.testing.assert_close(found, exact[: len(found)], rtol=0, atol=1e-12)


def test_small_maps_are_convolved_with_either(library: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(32, 64, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(48, 64, 3, 3).mul(0.05).requires_grad_()
    seen = small_maps.windows((2, 2), (3, 3), (1, 1), (1, 1))
    assert seen is not None
    y, plain = small_maps.convolve(x, weight, seen), torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(y, plain, rtol=0, atol=2e-5)
    above = torch.randn_like(plain)
    found, wanted = (torch.autograd.grad(one, (x, weight), above) for one in (y, plain))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_128_channels_are_left_to_onednn_where_it_makes_the_products(library: str) -> None:
    taken = []
    for channels in (128, 256):
        x = torch.randn(winograd.LEAST_MAPS, channels, 4, 4).contiguous(memory_format=torch.channels_last)
        made = Conv2d(channels, channels, 3, padding=1, bias=False)
        taken.append("Winograd" in type(made(x).grad_fn).__name__)
    assert taken == [library == "torch", True]


@pytest.mark.parametrize(
    ("vendor", "family", "expected"),
    [("AuthenticAMD", 25, False), ("AuthenticAMD", 26, True), ("AuthenticAMD", 27, True), ("GenuineIntel", 26, False)],
)
def test_zen_5_is_told_by_its_family(vendor: str, family: int, expected: bool) -> None:
    lines = "processor\t: 0", f"vendor_id\t: {vendor}", f"cpu family\t: {family}", "model\t\t: 17", ""
    assert products.is_zen_5("\n".join(lines)) is expected


def test_a_processor_that_nothing_is_said_of_is_none() -> None:
    assert not products.is_zen_5("") and not products.is_zen_5("vendor_id\t: AuthenticAMD\n")
