"""What the examples and the README promise can be read."""

from pathlib import Path

import pytest

from winnow.domain import Arm, ExperimentSpec
from winnow_cli import files

PAPER = (Arm.ENTROPY, Arm.MARGIN, Arm.LEAST_CONFIDENCE, Arm.K_CENTER, Arm.RANDOM, Arm.FULL)
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_parses(path: Path) -> None:
    document = files.read(path)
    if "sources" in document:
        assert files.dataset(document, str(path)).name == document["name"]
    else:
        arms, seeds = document["arms"], document["seeds"]
        assert len(files.experiments(document, str(path))) == len(arms) * len(seeds)


def test_the_papers_example_is_the_paper() -> None:
    specs = files.experiments(files.read(EXAMPLES / "nct-crc-he.yaml"), "")
    assert {spec.arm for spec in specs} == set(PAPER)
    for spec in specs:
        named = {"name": spec.name, "dataset": "nct-crc-he", "arm": spec.arm, "seed": spec.seed}
        assert spec == ExperimentSpec.model_validate({**named, "positive_class": "TUM"}), "only defaults differ"
