from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("phe")

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

import counterpoise.federated._mod as module
from counterpoise._errors import CounterpoiseError, InputError, MissingExtraError
from counterpoise.federated import PaillierKeyHolder, SlotCodec, edgedetect_mod
from counterpoise.federated._local_grid import LocalGrid
from tests.federated.apps import app_of, arrays, drawn, strategy


def question(message_type: str) -> Message:
    LocalGrid(app_of(), 1)  # says who we are
    return Message(RecordDict({"arrays": arrays()}), dst_node_id=1000, message_type=message_type)


@pytest.mark.parametrize("message_type", ["evaluate", "query", "query.statistics"])
def test_only_training_is_touched(message_type) -> None:
    asked = question(message_type)
    answer = Message(RecordDict({"arrays": arrays()}), reply_to=asked)
    context = Context(1, 1000, {}, RecordDict(), {})
    assert edgedetect_mod(asked, context, lambda msg, context: answer) is answer
    with pytest.raises(InputError, match="training instructions of another strategy"):
        edgedetect_mod(question("train"), context, lambda msg, context: answer)


def test_the_error_of_an_app_is_passed_on() -> None:
    app = ClientApp(mods=[edgedetect_mod])

    @app.train()
    def _(msg: Message, context: Context) -> Message:
        return Message(Error(code=7, reason="no data today"), reply_to=msg)

    grid = LocalGrid(app, 4)
    result = strategy(4).start(grid, arrays(), num_rounds=1)
    assert [one.error.reason for one in grid.arrived if one.has_error()] == ["no data today"] * 4
    assert result.train_metrics_clientapp[1]["failed"] == 4


def test_the_reason_of_a_failure_is_one_line_of_the_log(caplog) -> None:
    def train(weights, client, server_round):
        raise RuntimeError("no data\nWARNING :  all is well" + 100_000 * "!")

    with pytest.raises(
        CounterpoiseError, match=r"1 rounds in a row made no step; why the last one, 1, did not: 0 votes; 3 are needed\. no data WARN"
    ):
        strategy(4, patience=1).start(LocalGrid(app_of(train), 4), arrays(), num_rounds=2)
    told = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert len(told) == 4 and all("\n" not in line and len(line) < 600 for line in told)


def test_jobs_come_from_the_configuration_of_the_node(monkeypatch) -> None:
    seen = []

    class Watched(module.PaillierAggregator):
        def __init__(self, *given, **options) -> None:
            seen.append(options["jobs"])
            super().__init__(*given, **(options | {"jobs": 1}))

    monkeypatch.setattr(module, "PaillierAggregator", Watched)
    grid = LocalGrid(app_of(), 3)
    grid.contexts[1001].node_config["edgedetect-jobs"] = 3
    strategy(3).start(grid, arrays(), num_rounds=1)
    assert sorted(seen) == [1, 1, 3]


def test_powers_are_computed_while_the_app_trains(monkeypatch) -> None:
    pooled = []

    class Watched(module.PaillierAggregator):
        def encrypt(self, signs):
            pooled.append(self.pooled)
            return super().encrypt(signs)

    monkeypatch.setattr(module, "PaillierAggregator", Watched)
    strategy(3).start(LocalGrid(app_of(), 3), arrays(), num_rounds=1)
    assert pooled == [SlotCodec(3, 256).blocks(19)] * 3


def test_an_app_may_change_the_arrays_it_was_given() -> None:
    def in_place(weights, client, server_round):
        new = drawn(weights, client, server_round)
        for name, value in weights.items():
            value[...] = new[name]
        return weights

    found = [strategy(threshold="zero").start(LocalGrid(app_of(train), 5), arrays(), num_rounds=2).arrays for train in (drawn, in_place)]
    for name, array in found[0].items():
        assert np.array_equal(array.numpy(), found[1][name].numpy()), name


def test_without_phe_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "phe.paillier", None)
    with pytest.raises(MissingExtraError, match=r"Encryption of votes needs the package 'phe': pip install 'counterpoise\[he\]'"):
        PaillierKeyHolder(SlotCodec(3))


def test_without_flower_the_extra_is_named() -> None:
    script = "import sys; sys.modules['flwr.app'] = None; from counterpoise.federated import edgedetect_mod"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("Federated training needs the package 'flwr': pip install 'counterpoise[federated]'")
