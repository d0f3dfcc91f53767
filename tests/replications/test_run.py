from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from counterpoise import CounterpoiseError, _papers
from counterpoise._errors import StoreError
from counterpoise.cli import main
from counterpoise.replications import Replication, _catalog, papers, replicate

from . import toy

TOY = _papers.Paper(43, "toy", "A Toy about Imbalance", "loss", "nothing", "0000.00000")


@pytest.fixture
def with_toy(monkeypatch):
    known = _papers._all()
    monkeypatch.setattr(_papers, "_all", lambda: (*known, TOY))
    monkeypatch.setitem(sys.modules, _catalog.module_name(TOY), toy)


# -- the catalog --------------------------------------------------------------------------------------------------------------------------


def test_forty_two_papers() -> None:
    every = papers()
    assert [paper.number for paper in every] == list(range(1, 43))
    assert len({paper.slug for paper in every}) == len({paper.title for paper in every}) == 42
    stages = {"data", "loss", "gradient", "update", "model", "weights", "decision", "diagnosis"}
    assert {stage for paper in every for stage in paper.stage.split(", ")} == stages


def test_queries() -> None:
    assert [paper.slug for paper in papers("AUPRC imbalance")] == ["auroc-auprc"]
    assert [paper.number for paper in papers("1710.05381")] == [15]
    assert papers("no such thing") == []
    assert _papers.paper_of("09").slug == _papers.paper_of("9").slug == "sampling-free"


def test_an_unknown_paper_gets_a_suggestion() -> None:
    with pytest.raises(CounterpoiseError, match=r"Did you mean 'smote'\?.*counterpoise papers"):
        replicate("smoet")


def test_a_paper_without_a_re_test_is_said_before_anything_runs(tmp_path, with_toy) -> None:
    unbuilt = next(paper.slug for paper in papers() if not _catalog.is_built(paper))
    with pytest.raises(CounterpoiseError, match=rf"paper: got '{unbuilt}'; expected a paper whose re-test is built"):
        replicate(["toy", unbuilt], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_published_record_is_of_a_built_paper_and_counts() -> None:
    for paper in papers():
        record = _catalog.published(paper)
        if record is not None:
            assert _catalog.is_built(paper) and not record.quick and record.slug == paper.slug
            claims = _catalog.module_of(paper).CLAIMS
            assert record.claims == tuple(claims), f"{paper.slug}: the criteria are not those of the run; run it again"


# -- running ------------------------------------------------------------------------------------------------------------------------------


def test_a_run_writes_record_figure_and_table(tmp_path, with_toy) -> None:
    found, errors = replicate("toy", out=tmp_path, jobs=2)
    assert not errors and [result.slug for result in found] == ["toy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["REPLICATIONS.md", "toy.json", "toy.svg", "work"]
    record = json.loads((tmp_path / "toy.json").read_text())
    assert record["verdict"] == "replicated" and record["seeds"] == [0, 1, 2, 3] and record["seconds"] > 0
    assert set(record["environment"]) >= {"python", "machine", "torch", "scikit-learn", "counterpoise"}
    assert ElementTree.parse(tmp_path / "toy.svg").getroot().tag.endswith("svg")
    page = (tmp_path / "REPLICATIONS.md").read_text()
    assert "| 43 | [toy](#43-toy): A Toy about Imbalance | loss | **replicated** |" in page
    assert r"| it grows with the seed | lower limit > 0 | **replicated** | by 1 \| or so. |" in page
    missing = sum(not _catalog.is_built(paper) for paper in _catalog.papers())
    assert "| 16 | equilibrium-propagation: " in page and page.count("not built yet") == missing and "![toy](toy.svg)" in page


def test_the_same_call_computes_nothing_again_and_gives_the_same_files(tmp_path, with_toy, monkeypatch) -> None:
    replicate("toy", out=tmp_path)
    before = (tmp_path / "toy.svg").read_bytes()
    monkeypatch.setenv("TOY_FAILS_AT", "2")  # any piece that ran now would say so
    found, errors = replicate("toy", out=tmp_path)
    assert len(found) == 1 and not errors and (tmp_path / "toy.svg").read_bytes() == before


def test_a_quick_run_says_so_everywhere(tmp_path, with_toy) -> None:
    found, _ = replicate("toy", out=tmp_path, quick=True)
    assert found[0].quick and found[0].seeds == (0, 1)
    assert json.loads((tmp_path / "toy.json").read_text())["quick"] is True
    assert (tmp_path / "REPLICATIONS.md").read_text().count("does not count") == 1


def test_seeds_of_ones_own(with_toy) -> None:
    assert replicate("toy", seeds=[7])[0][0].seeds == (7,)


def test_a_paper_that_cannot_be_run_does_not_stop_the_others(tmp_path, with_toy, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILS_AT", "0")
    found, errors = replicate(["toy"], out=tmp_path)
    assert found == [] and str(errors["toy"]) == "the set 'toys' is not there"


def test_an_unwritable_folder_is_said_first(tmp_path, with_toy) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="choose another folder"):
        replicate("toy", out=tmp_path / "file" / "out")


def test_a_damaged_record_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_papers, "files", lambda _: tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "toy.json").write_text("{}")
    with pytest.raises(CounterpoiseError, match="record of 'toy' in counterpoise is damaged"):
        _catalog.published(TOY)


# -- from the shell -----------------------------------------------------------------------------------------------------------------------


def test_replicate_in_the_shell(tmp_path, with_toy, capsys) -> None:
    assert main(["replicate", "toy", "--quick", "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "[1 of 1] toy: A Toy about Imbalance" in said and "its verdicts do not count" in said
    assert "replicated     by 1 | or so" in said and "Nobody gained." in said and "REPLICATIONS.md" in said
    assert (tmp_path / "out" / "quick" / "toy.json").is_file()  # beside the runs that count


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["replicate"], "name papers, or --all"),
        (["replicate", "toy", "--all"], "name papers, or --all"),
        (["replicate", "smoet"], "Did you mean 'smote'?"),
        (["replicate", "toy", "--jobs", "0"], "0 is not in the range"),
        (["papers", "no", "such", "thing"], "nothing matches 'no such thing'"),
    ],
)
def test_bad_input_is_one_line(arguments, line, with_toy, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert line in err and err.count("\n") == 1 and not out and not list(tmp_path.iterdir())


def test_a_missing_set_ends_with_exit_code_2(tmp_path, with_toy, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TOY_FAILS_AT", "0")
    assert main(["replicate", "toy", "--jobs", "1", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "counterpoise: error: 1 not run: the set 'toys' is not there\n"


def test_papers_in_the_shell(capsys) -> None:
    assert main(["papers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line[:2].isdigit() for line in lines) == 42
    assert any(line.split()[:3] == ["15", "imbalance-study", "data,"] for line in lines)
    assert main(["papers", "benign", "xor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line[:2].isdigit()] == [["41", "benign-overfitting", "diagnosis"]]


def test_the_record_of_a_run_can_be_read_again(tmp_path, with_toy) -> None:
    (result,), _ = replicate("toy", out=tmp_path)
    assert Replication.from_json((tmp_path / "toy.json").read_text()) == result
