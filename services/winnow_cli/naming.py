"""Experiments as people call them: by id, or by a name that one alone has."""

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

from winnow.client import ApiProblem, Client
from winnow.errors import InvalidInput, NotFound

ID = re.compile("[0-9a-f]{24}")
NAMED = 5
"""Experiments of one name that are listed, newest first."""


def ids_of(client: Client, called: Iterable[str]) -> list[str]:
    """The ids of several experiments, each once. Raises NotFound, InvalidInput."""
    return list(dict.fromkeys(id_of(client, one) for one in called))


def id_of(client: Client, called: str) -> str:
    """The id of an experiment. Raises NotFound, and InvalidInput where several have that name."""
    if ID.fullmatch(called):
        return called
    found = list(islice(client.experiments(name=called), NAMED + 1))
    if not found:
        raise NotFound("experiment", called)
    if len(found) > 1:
        which = ", ".join(f"{view['id']} ({view['status']})" for view in found[:NAMED])
        more = ", and more" if len(found) > NAMED else ""
        raise InvalidInput("ID", f"several experiments are called {called!r}; name one by its id: {which}{more}")
    return found[0]["id"]


def there(client: Client, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Those of them that were not removed meanwhile."""
    found: list[dict[str, Any]] = []
    for id in ids:
        try:
            found.append(client.experiment(id))
        except ApiProblem as problem:
            if not problem.is_not_found:
                raise
    return found
