"""A run's folder: claimed only where nothing is lost, locked while in use, and read even where a line is half written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import frostline as fl
from frostline import api
from frostline.errors import RunError
from frostline.recipe import Recipe
from frostline.train import loop
from frostline.train.interrupt import Interrupted
from frostline.train.run import Run, create_run, in_use, open_run, truncate_metrics
from tests.train.small import cnn, first_rows, plan, stopping


def recipe(out):
    return Recipe(out=None if out is None else str(out))


@pytest.fixture
def data(digits):
    return first_rows(digits, 48)


def everything_in(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


class TestClaiming:
    """``out`` is new or empty, or nothing happens."""

    def test_new_empty_and_nested(self, tmp_path):
        assert create_run(recipe(tmp_path / "新" / "b"), "x").folder.is_dir()
        (tmp_path / "empty").mkdir()
        assert create_run(recipe(tmp_path / "empty"), "x").folder == tmp_path / "empty"

    def test_default_names_count_up(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert [str(create_run(recipe(None), "vgg16-dogs").folder) for _ in range(2)] == ["runs/vgg16-dogs-1", "runs/vgg16-dogs-2"]
        assert str(create_run(recipe(None), "other").folder) == "runs/other-1"
        Path("runs/vgg16-dogs-1").rmdir()
        assert str(create_run(recipe(None), "vgg16-dogs").folder) == "runs/vgg16-dogs-1"

    def test_default_names_say_model_and_data(self, data, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        plans = [fl.plan(cnn(data), data, epochs=1, channels_last="off") for _ in range(2)]
        found = [str(fl.train(made, quiet=True).folder) for made in plans]
        assert found == ["runs/cnn-image-classification-1", "runs/cnn-image-classification-2"]

    def test_another_runs_folder(self, data, tmp_path):
        made, other = (plan(cnn(data), data, tmp_path / "run", epochs=1) for _ in range(2))
        fl.train(made, quiet=True)
        before = everything_in(tmp_path / "run")
        with pytest.raises(RunError, match=r"holds another run; nothing was written.*--resume .*run\) or choose another with --out"):
            fl.train(other, quiet=True)
        assert everything_in(tmp_path / "run") == before

    def test_a_folder_with_other_things(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "猫.jpg").write_bytes(b"x")
        with pytest.raises(RunError, match=r"is not empty and holds no run; nothing was written\. You can choose another with --out"):
            create_run(recipe(tmp_path / "photos"), "x")
        assert everything_in(tmp_path / "photos") == {Path("猫.jpg"): b"x"}

    @pytest.mark.parametrize("below", [False, True])
    def test_a_file(self, tmp_path, below):
        (tmp_path / "file").write_text("keep")
        out = tmp_path / "file" / "run" if below else tmp_path / "file"
        with pytest.raises(RunError, match=r"(is a file, expected a folder that is new or empty|cannot be made: Not a directory).*--out"):
            create_run(recipe(out), "x")
        assert (tmp_path / "file").read_text() == "keep"


class TestTheLock:
    """One process writes at a time."""

    def test_within_one_process(self, tmp_path):
        run = create_run(recipe(tmp_path / "run"), "x")
        advice = r"is in use by another process\. Wait for it, stop it, or choose another folder with --out"
        with in_use(run), pytest.raises(RunError, match=advice), in_use(run):
            pass
        with in_use(run):
            pass

    def test_another_process_holds_it_and_dies(self, data, tmp_path, monkeypatch):
        folder = tmp_path / "run"
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(loop, "stop_on_interrupt", stopping(1))
            fl.train(plan(cnn(data), data, folder), quiet=True)
        hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
        process = subprocess.Popen([sys.executable, "-c", hold, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"held\n"
        before = everything_in(folder)
        with pytest.raises(RunError, match="in use by another process"):
            api.resume(folder, quiet=True)
        assert everything_in(folder) == before
        process.kill()
        process.communicate()
        assert len(api.resume(folder, quiet=True).history) == 2


class TestReading:
    """What the folder says."""

    @pytest.fixture
    def run(self, data, tmp_path):
        return fl.train(plan(cnn(data), data, tmp_path / "run"), quiet=True)

    def test_everything_is_there(self, run, data):
        assert run.recipe.train.epochs == 2 and run.recipe.model.name == "cnn" and run.recipe.out is None
        assert run.data.fingerprint == data.fingerprint == run.plan["data"]
        assert set(run.cost) == {"predicted", "actual", "whole_run"} and run.cost["whole_run"] is True
        assert [epoch["epoch"] for epoch in run.history] == [1, 2] and len(run.records()) == 2 * 2 + 2
        assert {"loss", "accuracy", "val_loss", "val_accuracy", "seconds", "rows_per_second", "lr", "step"} <= set(run.history[0])
        assert str(run).startswith(f"run {run.folder}: 2 epochs, loss ") and "val_accuracy" in str(run)

    def test_a_finished_run_is_not_resumed(self, run):
        before = everything_in(run.folder)
        with pytest.raises(RunError, match=r"is finished, expected a run that was stopped.*frostline evaluate"):
            api.resume(run.folder)
        assert everything_in(run.folder) == before

    def test_half_a_line_at_the_end(self, run):
        lines = run.records()
        with open(run.folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 5, "loss": 1.')
        assert run.records() == lines and open_run(run.folder).history == run.history

    def test_half_a_line_in_the_middle(self, run):
        path = run.folder / "metrics.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
        with pytest.raises(RunError, match=r"metrics\.jsonl:2: not JSON .*delete that line"):
            run.records()

    def test_what_is_written_again_is_cut(self, run):
        truncate_metrics(run, 3, 1)
        assert [(r["step"], r.get("epoch")) for r in run.records()] == [(1, None), (2, None), (2, 1), (3, None)]
        truncate_metrics(run, 2, 0)
        assert [(r["step"], r.get("epoch")) for r in run.records()] == [(1, None), (2, None)]

    def test_no_run(self, tmp_path):
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(RunError, match=r"is not a run's folder: it has no recipe\.yaml and plan\.json.*frostline train DATA --out"):
                open_run(folder)
        with pytest.raises(RunError, match=r"plan\.json' cannot be read .*Is .* a run's folder\?"):
            _ = Run(tmp_path).plan
        assert Run(tmp_path).cost == {} and Run(tmp_path).records() == [] and str(Run(tmp_path)) == f"run {tmp_path}: 0 epochs"
