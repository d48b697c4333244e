"""What stays ready between rounds: when it is made anew, within which limits, and what is noted of it."""

from typing import Any

import pytest
import torch
from library.arrays import ArrayImages, tissue

from winnow.domain import ExperimentSpec
from winnow.errors import BeginAnew
from winnow.simclr import Limits, Rig, Team


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    return tissue(2, 32)[0]


def spec(**simclr: Any) -> ExperimentSpec:
    named = {"name": "t", "dataset": "t", "positive_class": "TUM", "budget": 5}
    return ExperimentSpec.model_validate({**named, "simclr": {"batch_size": 8, **simclr}})


class Pair(Team):
    """Two processes, of which this one does not ask for the other."""

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        return network


def test_a_compiler_that_gives_up_in_one_of_several_processes_gives_up_in_all(images: ArrayImages) -> None:
    """Those that compile and those that do not meet in another order."""
    alone, member = (Rig(team=team, compiled="on") for team in (Team(), Pair(0, 2)))
    for rig in (alone, member):
        rig.prepare(spec(), images, 0, None, count=22)
    alone._give_up_compiling("no compiler")
    assert alone.notes == ["no compiler"]
    with pytest.raises(BeginAnew) as raised:
        member._give_up_compiling("no compiler")
    assert raised.value.limits == {"patches": None, "chunk": None, "uncompiled": "no compiler"}
    member.prepare(spec(), images, 0, None, count=22, limits=Limits(**raised.value.limits))
    assert member.notes == ["no compiler (in one of 2 processes, so in none of them)"]
    assert member.step._fast is member.step._as_is and alone.step._fast is not alone.step._as_is


def test_after_memory_ran_out_nothing_is_replayed_as_a_cuda_graph(
    images: ArrayImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph keeps what memory it used, and one whose first run was cut off is recorded before it was whole."""
    graphs: list[bool] = []
    monkeypatch.setattr(
        torch, "compile", lambda plain, *, options, **_: (graphs.append(options["triton.cudagraphs"]), plain)[1]
    )
    rig, wanted = Rig(compiled="on"), spec(batch_size=22)
    rig.prepare(wanted, images, 0, None, count=22)
    rig._keep_to(Limits(patches=64), wanted.simclr)
    rig._keep_to(Limits(patches=32), wanted.simclr)
    rig._keep_to(Limits(patches=32, chunk=16), wanted.simclr)
    assert graphs == [True, False, False, False, False, False], "network and views, three times"
    assert rig.notes == [
        "out of memory: on the device may lie 32 patches",
        "out of memory: batches of 22 now pass in chunks of 16",
    ]


def test_a_round_without_a_full_batch_compiles_no_views_whatever_is_made_anew(images: ArrayImages) -> None:
    rig, wanted = Rig(compiled="on"), spec(batch_size=22)
    rig.prepare(wanted, images, 0, None, count=21)
    assert not rig.step.has_full
    rig._keep_to(Limits(chunk=16), wanted.simclr)
    assert not rig.step.has_full
    rig.prepare(wanted, images, 0, None, count=22)
    assert rig.step.has_full


def test_another_learning_rate_builds_nothing_anew_and_notes_end_with_their_round(images: ArrayImages) -> None:
    rig = Rig(compiled="on")
    rig.prepare(spec(batch_size=22), images, 0, None, count=20)
    (few,), step = rig.notes, rig.step
    assert few == "20 images make no full batch of 22: they run as one of 20, without torch.compile"
    plain = Rig(compiled="off")
    plain.prepare(spec(batch_size=22), images, 0, None, count=20)
    assert plain.notes == ["20 images make no full batch of 22: they run as one of 20"]
    rig.prepare(spec(batch_size=22, learning_rate=1e-2, epochs=7), images, 1, None, count=22)
    assert rig.step is step and not rig.notes
    rig.prepare(spec(batch_size=20), images, 1, None, count=22)
    assert rig.step is not step
