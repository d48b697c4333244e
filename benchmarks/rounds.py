"""How long nothing is trained between two rounds, through the whole stack: coordinator, sampler and trainer.

    python benchmarks/rounds.py --candidates 10000 --budget 1000

Starts an embedded stack in a temporary directory, draws synthetic tissue and runs one k-center experiment. The cycle of
a round is the time between two claims; what is neither loading nor training of it is the gap, and what of the gap is
neither embedding, proxy, evaluation nor picking is idle: processes, bells and looks at the database.
"""

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from winnow.client import Client
from winnow_cli.stack import Stack

PHASES = ("load", "train", "checkpoint", "embed", "proxy", "evaluate", "pick")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), [], None, say=lambda text: print(text, file=sys.stderr))
        try:
            stack.start()
            with Client(stack.url) as client:
                report(run(client, options))
        finally:
            stack.stop()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def run(client: Client, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rounds of one experiment, each with the time of its claim."""
    patches = options.candidates + options.rounds * options.budget + 1500
    source = {"kind": "synthetic", "synthetic": {"patches": patches, "slides": 20}}
    draws = [{"role": "test", "count": 500}, {"count": 200}]
    client.create_dataset({"name": "tissue", "image_size": options.size, "sources": [source], "draws": draws})
    *_, dataset = client.wait_for_dataset("tissue")
    assert dataset["status"] == "ready", dataset["error"]
    id = client.create_experiment(
        {
            "name": "rounds",
            "dataset": "tissue",
            "arm": "k_center",
            "positive_class": "TUM",
            "budget": options.budget,
            "rounds": options.rounds,
            "candidates": options.candidates,
            "floors": False,
            "simclr": {"epochs": 1, "precision": options.precision},
        }
    )["id"]
    claimed = {event.data["round"]: event.data["at"] for event in client.events(id) if event.type == "round.training"}
    return [{**row, "claimed": claimed[row["number"]]} for row in client.rounds(id)]


def report(rounds: list[dict[str, Any]]) -> None:
    """A line a round. The first one also starts the training process: it is shown, and is not the rule."""
    print("round  " + "".join(f"{phase:>10}" for phase in PHASES) + f"{'gap':>10}{'idle':>10}  seconds")
    for row, after in pairwise(rounds):
        spent = [row["seconds"].get(phase, 0.0) for phase in PHASES]
        gap = after["claimed"] - row["claimed"] - sum(spent[:2])
        print(f"{row['number']:5}  " + "".join(f"{part:10.2f}" for part in [*spent, gap, gap - sum(spent[2:])]))


if __name__ == "__main__":
    main()
