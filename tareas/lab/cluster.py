"""RabbitMQ nodes on this machine that form a cluster: one cookie and one port mapper for all of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tareas.errors import NodeTrouble
from tareas.lab import guard
from tareas.lab.node import BOOT, Node
from tareas.lab.ports import Claim
from tareas.lab.programs import Programs


class Cluster:
    """As a context manager: started on entry, ended on exit."""

    def __init__(self, folder: str | Path, programs: Programs, size: int = 3, config: str = "") -> None:
        self.folder = Path(folder).absolute()
        self._epmd = Claim()
        names = [f"tareas-{number}" for number in range(1, size + 1)]
        members = ["cluster_formation.peer_discovery_backend = classic_config"]
        members += [f"cluster_formation.classic_config.nodes.{n} = {name}@localhost" for n, name in enumerate(names, 1)]
        settings = "\n".join([*members, config])
        self.nodes: Sequence[Node] = [
            Node(self.folder / name, programs, name, config=settings, home=self.folder, epmd=self._epmd.port)
            for name in names
        ]

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def urls(self) -> str:
        """Every node's URL, separated by commas."""
        return ",".join(node.url for node in self.nodes)

    @property
    def running(self) -> Iterator[Node]:
        return (node for node in self.nodes if node.running)

    def start(self) -> None:
        """Start every node and wait until the first sees all of them. Raises NodeTrouble when that takes too long."""
        first = self.nodes[0]
        if not first.has_data and first.programs.name.startswith("3."):
            # One first, for the others to join. When three boot at once on a busy machine, each may found its own
            # cluster (seen with 3.10). Since 4.0 they wait for each other.
            first.start(2 * BOOT)
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait(2 * BOOT)
        first.ctl("await_online_nodes", str(len(self.nodes)), deadline=2 * BOOT)

    def leader(self, queue: str) -> Node:
        """The running node that leads this quorum queue. Raises NodeTrouble when none does."""
        for node in self.running:
            listed = json.loads(node.ctl("list_queues", "name", "leader", "--formatter", "json"))
            leaders = {row["name"]: row["leader"] for row in listed}
            for candidate in self.nodes:
                if leaders.get(queue) == candidate.name and candidate.running:
                    return candidate
        raise NodeTrouble(f"no running node leads the queue {queue}")

    def close(self) -> None:
        """Kill every node: one that stops in order waits for the others, which have its quorum queues."""
        for node in self.nodes:
            node.kill()
            node.close()
        guard.stop_epmd(self._epmd.port)
        self._epmd.release()
