"""Flower's engine in one process, without Ray and network: for tests, and for measuring what strategies and clients send."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from counterpoise._extras import require

if TYPE_CHECKING:
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common import serde
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
else:
    app = require("flwr.app", "federated", "Federated training")
    Context, Error, Message, RecordDict = app.Context, app.Error, app.Message, app.RecordDict
    serde = require("flwr.common.serde", "federated")
    ProtoMessage = require("flwr.proto.message_pb2", "federated").Message
    Grid = require("flwr.serverapp", "federated").Grid
    Run = require("flwr.supercore.run", "federated").Run
    TaskIdentity = require("flwr.supercore.task_identity", "federated").TaskIdentity

__all__ = ["LocalGrid"]

Wire = Callable[[Message, Message], list[Message]]


def honest(question: Message, answer: Message) -> list[Message]:
    return [answer]


class LocalGrid(Grid):
    """Calls the app of every node, one after the other; every message is bytes on the way.

    ``wire(question, answer)`` is what arrives at the server of an answer: the place for losses and attacks. ``arrived`` has every message
    that the server got; ``sent`` and ``received`` are its bytes.
    """

    def __init__(self, app: ClientApp, clients: int, wire: Wire = honest, first: int = 1000) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.app = app
        self.wire = wire
        self.contexts = {
            first + i: Context(1, first + i, {"partition-id": i, "num-partitions": clients}, RecordDict(), {}) for i in range(clients)
        }
        self.arrived: list[Message] = []
        self.sent = self.received = 0
        self._run = Run.create_empty(1)
        self._replies: dict[str, list[Message]] = {}
        self._count = 0

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return set(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = name = str(self._count)
            ids.append(name)
            if message.metadata.dst_node_id in self.contexts:
                question, size = over_the_wire(message)
                self.sent += size
                self._replies[name] = self._answers(question)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [answer for name in message_ids for answer in self._replies.pop(name, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answers(self, question: Message) -> list[Message]:
        given, _ = over_the_wire(question)
        try:
            answer = self.app(given, self.contexts[question.metadata.dst_node_id])
        except Exception as error:
            answer = Message(Error(code=0, reason=str(error)), reply_to=question)
        arrived = [over_the_wire(one) for one in self.wire(question, answer)]
        self.received += sum(size for _, size in arrived)
        self.arrived += [one for one, _ in arrived]
        return [one for one, _ in arrived]


def over_the_wire(message: Message) -> tuple[Message, int]:
    """A copy that was bytes, and how many."""
    raw = serde.message_to_proto(message).SerializeToString()
    return serde.message_from_proto(ProtoMessage.FromString(raw)), len(raw)
