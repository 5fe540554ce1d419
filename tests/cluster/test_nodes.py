"""The look at a cluster's nodes, with a Ray of notes."""

from types import SimpleNamespace

import pytest

from rayasd.cluster.nodes import Software, _judged
from rayasd.errors import UserError


class RayError(Exception):
    """Ray's."""


@pytest.mark.parametrize("alive", [True, False])
def test_a_node_that_is_lost_while_it_is_asked_is_no_reason_to_end(alive: bool):
    def get(answer: object) -> None:
        raise RayError("The node doesn't exist any more")

    nodes = [{"NodeManagerHostname": "n1", "Alive": True}, {"NodeManagerHostname": "n2", "Alive": alive}]
    ray = SimpleNamespace(get=get, nodes=lambda: nodes, exceptions=SimpleNamespace(RayError=RayError))
    if alive:
        with pytest.raises(UserError, match="n2 cannot run rayasd: The node doesn't exist any more"):
            _judged(ray, None, "n2", Software({}, ""))
    else:
        assert _judged(ray, None, "n2", Software({}, "")) == ["n2 was lost"]
