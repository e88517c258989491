"""A run that goes on with other settings is told of them, whatever they are."""

import re
import warnings
from dataclasses import replace

import pytest

from memtx.train import AdamW, BFloat16Autocast, Resume, RunCheckpoints, WarmupConstant
from memtx.train.composition import changes, settings
from tests.data import streams
from tests.train import tiny
from tests.train.test_checkpoints import at
from tests.train.test_survival_damage import begun

STEPS = 4


@pytest.fixture(scope="module")
def made():
    return tiny.trainer(model=tiny.adapter(model=tiny.base(seed=0)), steps=STEPS)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """The folder of a run that saved at its end; nothing here writes into it."""
    folder = tmp_path_factory.mktemp("saved")
    replace(made, checkpoints=[RunCheckpoints(folder=folder, every=STEPS, keep=1)]).run()
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"accumulation": 3}, [r"settings\.accumulation: 1 then, 3 now"]),
        ({"clip_norm": 0.5}, [r"settings\.clip_norm: inf then, 0\.5 now"]),
        (
            {"precision": BFloat16Autocast()},
            [r"settings\.precision\.class: 'FullPrecision' then, 'BFloat16Autocast' now"],
        ),
        (
            {"schedule": WarmupConstant(warmup_steps=1)},
            [
                r"settings\.schedule\.class: 'WarmupCosine' then, 'WarmupConstant' now",
                r"settings\.schedule\.warmup_steps: 0 then, 1 now",
                r"settings\.schedule\.floor: 1\.0 then, 'nothing' now",
            ],
        ),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else "",
)
def test_other_settings_are_told_and_taken(folder, made, changes, told):
    with pytest.warns(UserWarning, match="should have the settings it was saved with") as found:
        assert begun(replace(made, **changes), Resume(folder=folder)) == 4
    (message,) = (str(each.message) for each in found)
    assert all(re.search(each, message) for each in told)


def test_the_same_rows_cut_up_otherwise_are_not_told_of():
    one = {"processes": 2, "accumulation": 1, "batch_size": {"text": 2}, "steps": 4}
    other = {"processes": 1, "accumulation": 4, "batch_size": {"text": 1}, "steps": 4}
    assert changes(one, other) == []
    assert changes(one, {**other, "steps": 5}) == ["settings.steps: 4 then, 5 now"]
    assert changes(one, {**other, "accumulation": 2}) == [
        "settings.accumulation: 1 then, 2 now",
        "settings.batch_size.text: 2 then, 1 now",
        "settings.processes: 2 then, 1 now",
    ]
    # Of a stream that does not say how large its batches are, these are counted.
    one, other = ({**each, "batch_size": {}} for each in (one, other))
    assert changes(one, {**other, "accumulation": 2}) == []
    assert len(changes(one, other)) == 2


def test_the_same_settings_are_not_told_of(folder, made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert begun(made, Resume(folder=folder)) == 4


def test_rows_of_a_batch_by_number_are_refused_and_those_of_a_stream_told(folder, made):
    # The number of a batch would be that of other rows; documents are counted one by one.
    other = replace(made, streams={"facts": tiny.fact_batches(batch_size=1)})
    with (
        pytest.warns(UserWarning, match=r"settings\.batch_size\.facts: 2 then, 1 now"),
        pytest.raises(ValueError, match="Batches: .*batch_size"),
    ):
        replace(other, start=Resume(folder=folder)).run()
    text = streams.pipeline(streams.token_rows(count=9, longest=9), num_workers=0)
    run = replace(at(made.objective.model, step=0), streams={"text": text})
    assert settings(run)["batch_size"] == {"text": 2}
    assert settings(run)["processes"] == 1


def test_of_many_differences_some_are_told_and_the_others_counted(folder, made):
    changed = replace(
        made,
        groups=[replace(made.groups[0], learning_rate=0.5, weight_decay=0.1)],
        optimizer=AdamW(betas=(0.5, 0.6), eps=1e-3),
        schedule=WarmupConstant(warmup_steps=1),
        precision=BFloat16Autocast(),
        clip_norm=1.0,
    )
    with pytest.warns(UserWarning, match=r"settings\.precision.*, 'and [34] more'\]"):
        assert begun(changed, Resume(folder=folder)) == 4
