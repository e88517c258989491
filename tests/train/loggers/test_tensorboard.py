"""Numbers for TensorBoard, read back by its own reader."""

import subprocess
import sys

from memtx.train import TensorBoard


def log(folder, *, begin, steps, loss):
    logger = TensorBoard(folder=folder)
    logger.begin(step=begin)
    for step in steps:
        logger.log({"step": step, "loss": loss, "facts/LoadBalanceLoss(0.01)": 1.0})
    logger.close()
    logger.close()


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    assert sorted(reader.Tags()["scalars"]) == ["facts/LoadBalanceLoss(0.01)", "loss"]
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_every_number_but_the_step_is_a_scalar_at_its_step(tmp_path):
    log(tmp_path / "a" / "b", begin=0, steps=[1, 2], loss=0.5)
    assert scalars(tmp_path / "a" / "b", "loss") == [(1, 0.5), (2, 0.5)]


def test_a_resumed_run_shows_each_step_once(tmp_path):
    log(tmp_path, begin=0, steps=[1, 2, 3, 4], loss=1.0)
    log(tmp_path, begin=2, steps=[3, 4, 5], loss=2.0)
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_a_new_run_hides_the_one_before(tmp_path):
    log(tmp_path, begin=0, steps=[1, 2], loss=1.0)
    log(tmp_path, begin=0, steps=[1], loss=2.0)
    assert scalars(tmp_path, "loss") == [(1, 2.0)]


def test_the_library_is_imported_only_where_it_is_used():
    code = (
        "import sys, memtx.train; "
        "print([n for n in ('tensorboard', 'wandb', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
