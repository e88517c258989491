"""Weights & Biases, offline: what lies on disk, read back by the library's own reader."""

import json

import pytest

from memtx.train import WeightsAndBiases


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def logger_of(folder):
    return WeightsAndBiases(
        project="memtx", name="teach", folder=folder, mode="offline", config={"steps": 5}
    )


def log(folder, *, begin, steps):
    logger = logger_of(folder)
    logger.begin(step=begin)
    for step in steps:
        logger.log({"step": step, "loss": 1.0 / step})
    logger.close()
    logger.close()


def runs(folder):
    """Run id, name, configuration and history of each file, in the order of writing."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    # The service writes behind the end of a run; it has written all when it ends itself.
    wandb.teardown()
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        store, run, history = DataStore(), None, []
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                run = record.run
            if record.HasField("history"):
                items = {(i.key or i.nested_key[0]): i.value_json for i in record.history.item}
                history.append((int(items["_step"]), float(items["loss"])))
        store._fp.close()
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        found.append((run.run_id, run.project, run.display_name, config["steps"], history))
    return found


def test_a_run_and_its_resumption_are_one_run(tmp_path, capfd):
    folder = tmp_path / "a" / "wandb-files"
    log(folder, begin=0, steps=[1, 2, 4])
    log(folder, begin=2, steps=[4, 5])
    (name, *first), (again, *second) = runs(folder)
    assert first == ["memtx", "teach", 5, [(1, 1.0), (2, 0.5), (4, 0.25)]]
    assert second == ["memtx", "teach", 5, [(4, 0.25), (5, 0.2)]]
    assert again == name
    log(folder, begin=0, steps=[1])
    assert runs(folder)[-1][0] != name  # a fresh run is another
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_record_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"WeightsAndBiases: a record needs a run .* got step=3;"):
        logger_of(tmp_path).log({"step": 3})


def test_another_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mode must be one of online, offline, got mode='off';"):
        WeightsAndBiases(project="p", name="n", folder=tmp_path, mode="off", config={})


def test_a_folder_that_cannot_be_made_is_found_out_at_once(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OSError, match=r"WeightsAndBiases: the place to write must be a folder"):
        logger_of(tmp_path / "file" / "below")
