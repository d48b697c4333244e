"""How Postgres finds the rows that lists show: by an index that has their order, whichever page it is."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session
from store.conftest import add_experiment

from winnow.store import Database, datasets, events, experiments, picks, rounds
from winnow.store.tables import Dataset

SAMPLES, EXPERIMENTS, ROUNDS, PICKS = 20_000, 600, 20, 500


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = Database(postgres_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def filled(database: Database, dataset: Dataset) -> Dataset:
    """Enough rows for an index to be worth it, copied from one of each."""
    round = add_experiment(database, dataset)
    copies = {"samples": SAMPLES, "experiments": EXPERIMENTS, "rounds": ROUNDS, "picks": PICKS}
    copied = {"dataset": dataset.id, "experiment": round.experiment_id, **copies}
    with database.begin() as session:
        for table, id, key in (("experiment", "experiment", "id"), ("round", "experiment", "experiment_id")):
            columns = session.scalars(
                text("SELECT column_name FROM information_schema.columns WHERE table_name = :t"), {"t": table}
            ).all()
            session.execute(text(_copy(table, list(columns), key)), {**copied, "original": copied[id]})
        session.execute(
            text("""INSERT INTO sample (dataset_id, idx, key, role, label, group_key)
                    SELECT :dataset, n, 'p' || n, CASE WHEN n % 50 = 0 THEN 'labelled' ELSE 'pool' END, 'a', NULL
                    FROM generate_series(100, :samples) AS n"""),
            copied,
        )
        session.execute(
            text("""INSERT INTO pick (experiment_id, sample_idx, round, rank, score)
                    SELECT experiment_id, 100 + number * :picks + r, number, r, 0.0
                    FROM round, generate_series(0, CAST(:picks AS int) - 1) AS r
                    WHERE experiment_id BETWEEN lpad('299', 24, '0') AND lpad('301', 24, '0')"""),
            copied,
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return dataset


def _copy(table: str, columns: list[str], key: str) -> str:
    """INSERT … SELECT that makes new experiments, or 20 rounds of each, of the one there is."""
    fresh = {
        ("experiment", "id"): "lpad(n::text, 24, '0')",
        ("experiment", "name"): "'e-' || n % 3",
        ("experiment", "status"): "CASE WHEN n % 3 = 0 THEN 'running' ELSE 'completed' END",
        ("round", "id"): "lpad((n * 100 + r)::text, 24, 'x')",
        ("round", "experiment_id"): "lpad(n::text, 24, '0')",
        ("round", "number"): "r",
        ("round", "report"): "jsonb_build_object('losses', repeat('0.01, ', 200))",
    }
    values = ", ".join(fresh.get((table, name), f'"{name}"') for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    many = "generate_series(1, CAST(:experiments AS int)) AS n"
    if table == "round":
        many += ", generate_series(0, CAST(:rounds AS int) - 1) AS r"
    return f"INSERT INTO {table} ({names}) SELECT {values} FROM {table}, {many} WHERE {key} = :original"


Reading = Callable[[Session, str], Any]
BEFORE = "000000000000000000000300"
PAGES: dict[str, Reading] = {
    "experiments, first": lambda session, _: experiments.page(session, before=None, limit=51),
    "ids of experiments": lambda session, _: experiments.page_of_ids(session, before=BEFORE, limit=51),
    "experiments, deep": lambda session, _: experiments.page(session, before=BEFORE, limit=51),
    "experiments of a status": lambda session, _: experiments.page_of_ids(
        session, before=BEFORE, limit=51, status="running"
    ),
    "experiments of a name": lambda session, _: experiments.page_of_ids(session, before=None, limit=51, name="e-1"),
    "samples, deep": lambda session, dataset: datasets.samples_page(
        session, dataset, after=15_000, limit=101, role=None
    ),
    "samples of a role": lambda session, dataset: datasets.samples_page(
        session, dataset, after=15_000, limit=101, role="labelled"
    ),
    "rounds": lambda session, _: rounds.page(session, BEFORE, after=5, limit=101),
    "picks": lambda session, dataset: picks.page(session, BEFORE, dataset, 5, after=100, limit=100),
    "pool": lambda session, dataset: datasets.keys_page(session, dataset, "pool", after=15_000, limit=100),
    "picks, counted": lambda session, _: picks.count(session, BEFORE, 5),
    "experiments with their rounds": lambda session, _: rounds.with_recent(
        session, [f"{n:024d}" for n in range(1, 51)]
    ),
    "experiment with its rounds": lambda session, _: rounds.with_recent(session, [BEFORE]),
    "glances": lambda session, _: events.glances(session, [f"{n:024d}" for n in range(1, 51)]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_read_off_an_index(database: Database, filled: Dataset, name: str) -> None:
    plan = explain(database, lambda session: PAGES[name](session, filled.id))
    scanned = [node for node in plan if node["Node Type"] == "Seq Scan" and node["Relation Name"] != "dataset"]
    assert not scanned, f"reads a whole table: {scanned}"
    assert any("Index" in node["Node Type"] for node in plan)
    assert not [node for node in plan if node["Node Type"] == "Sort"], "collects and sorts what an index has in order"


def explain(database: Database, read: Callable[[Session], Any]) -> list[dict[str, Any]]:
    """The nodes of the plans of all statements that `read` sends."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    with database.read() as session:
        read(session)
    event.remove(database.engine, "before_cursor_execute", note)
    assert sent
    nodes: list[dict[str, Any]] = []
    with database.engine.connect() as connection:
        for statement, parameters in sent:
            (answer,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).one()
            nodes += _flatten(answer[0]["Plan"])
    return nodes


def _flatten(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(inner for child in node.get("Plans", []) for inner in _flatten(child))]
