"""Two real processes under torchrun, over gloo, against one process with all the rows of a step."""

import json
import warnings
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from memtx import save
from memtx.train import FullyShardedDataParallel, LayersAsUnits, SingleProcess
from tests.train import sharded_models as models
from tests.train import sharded_worker as worker
from tests.train.processes import launch

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
EXACT = [job for job in worker.JOBS if job[0] != "bf16"]
ROUTED = ("routed shared bank", "routed adapter")
TIMES = ("tokens_per_second", "step_seconds", "data_seconds")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder that the processes left behind."""
    folder = tmp_path_factory.mktemp("sharded")
    done = launch("tests.train.sharded_worker", folder=folder, arguments=[], num_processes=2)
    assert done.returncode == 0, done.stderr
    return folder


def found_by(folder, rank):
    return json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))


@cache
def alone(name):
    """Records, first gradients and the trainer of one process with all the rows."""
    single = SingleProcess(device=torch.device("cpu"))
    trainer, noting = models.trainer(name, parallelism=single, accumulation=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return trainer.run(), noting.noted, trainer


def check_records(given, wanted):
    """Every number of every step but the times: losses, terms, norm before clipping, measures."""
    assert len(given) == len(wanted) == models.STEPS
    assert "generated" in wanted[1]
    for one, other in zip(given, wanted, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - set(TIMES):
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("way", "name"), EXACT)
def test_losses_norms_and_measures_are_those_of_one_process(together, way, name, rank):
    found = found_by(together / way / name, rank)
    assert found["kind"] == ("DataParallel" if way == "ddp" else "FullyShardedDataParallel")
    check_records(found["records"], alone(name)[0])


@pytest.mark.parametrize(("way", "name"), EXACT)
def test_gradients_are_those_of_one_process(together, way, name):
    wanted = alone(name)[1]
    for rank in (0, 1):
        given = load_file(together / way / name / f"gradients-{rank}.safetensors")
        assert given.keys() == wanted.keys()
        for key, gradient in wanted.items():
            torch.testing.assert_close(given[key], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_what_is_compared_is_not_zero(name):
    """Gradients are clipped to a norm of 0.5: 1e-5 of it is little, and a lost bank is not."""
    gradients = alone(name)[1]
    norm = torch.stack([each.norm() for each in gradients.values()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
    banks = [each for key, each in gradients.items() if key.startswith("banks.")]
    assert all(each.norm() > 2e-3 for each in banks)
    assert bool(banks) == (name != "tensor memory")
    scorers = [each for key, each in gradients.items() if "scorer" in key]
    assert bool(scorers) == (name in ROUTED)
    assert all(each.norm() > 2e-3 for each in scorers)


@pytest.mark.parametrize(("way", "name"), worker.JOBS)
def test_every_parameter_is_sharded_and_most_in_two(together, way, name):
    ranks = [found_by(together / way / name, rank)["parts"] for rank in (0, 1)]
    model = alone(name)[2].objective.model
    wanted = {key: each.numel() for key, each in model.named_parameters()} if way != "ddp" else {}
    assert {key: whole for key, (_, whole) in ranks[0].items()} == wanted
    for key, whole in wanted.items():
        assert ranks[0][key][0] + ranks[1][key][0] == whole
        assert ranks[0][key][0] < whole or model.get_parameter(key).shape[0] == 1


@pytest.mark.parametrize("name", ["dense shared bank", "adapter"])
def test_accumulation_adds_up_before_it_is_sent(together, name):
    found = found_by(together / "accumulated" / name, 0)
    check_records(found["records"], alone(name)[0])
    given = load_file(together / "accumulated" / name / "gradients-0.safetensors")
    for key, gradient in alone(name)[1].items():
        torch.testing.assert_close(given[key], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", worker.SOME_MODELS)
def test_mixed_precision_is_near_and_keeps_float32_parts(together, name):
    found = found_by(together / "bf16" / name, 0)
    losses = [record["loss"] for record in alone(name)[0]]
    assert [record["loss"] for record in found["records"]] == pytest.approx(losses, rel=3e-2)
    assert found["records"][0]["loss"] != losses[0]
    trained = load_file(together / "bf16" / name / "trained-0.safetensors")
    assert {each.dtype for each in trained.values() if each.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(("way", "name"), worker.JOBS)
def test_the_trained_model_is_saved_as_one_process_saves_it(together, tmp_path, way, name):
    """The numbers that both processes hold, put into a model of one process: equal bytes."""
    folder = together / way / name
    first, second = (load_file(folder / f"trained-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(each, second[key]) for key, each in first.items())
    model = models.MODELS[name]()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(first[key])
    save(model, tmp_path / "alone")
    files = {path.name: path.read_bytes() for path in (tmp_path / "alone").rglob("*.*")}
    assert files == {path.name: path.read_bytes() for path in (folder / "saved").rglob("*.*")}
    assert files


def test_only_the_first_process_needs_the_numbers(together):
    for rank in (0, 1):
        found = found_by(together, rank)
        assert found["same"]
        assert found["tied"]


def test_a_float32_memory_trains_on_a_bfloat16_base(together):
    found = found_by(together, 0)
    assert found["dtypes"] == ["torch.bfloat16", "torch.float32"]
    assert found["losses"][1] < found["losses"][0]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("way", worker.EVERY)
def test_a_sum_that_is_not_finite_changes_no_part_of_a_parameter(together, way, rank):
    found = json.loads((together / f"broken-{rank}.json").read_text(encoding="utf-8"))[way]
    assert "must stay finite, got step=2, loss=nan," in found["message"]
    assert "batches=['facts 3 (process 1, sha1 " in found["message"]
    # Nobody waited: the third step was under way.
    assert found["calls"] == 3
    assert found["same"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_is_sharded_once(together, rank):
    found = json.loads((together / f"refused-{rank}.json").read_text(encoding="utf-8"))
    assert found["again"]
    text = "FullyShardedDataParallel: a model can be sharded once, got sharded already=['model.lay"
    assert found["twice"].startswith(text)


def test_unlike_dtypes_in_one_unit_are_refused(together):
    found = json.loads((together / "refused-0.json").read_text(encoding="utf-8"))
    assert "must have one dtype, got unit='Objective', dtypes={" in found["dtypes"]
    assert "'torch.bfloat16': 'model.banks.0.tokens'" in found["dtypes"]


def test_without_a_process_group_it_is_refused():
    expected = "^FullyShardedDataParallel: there must be a process group, got initialized=False; "
    with pytest.raises(ValueError, match=expected):
        FullyShardedDataParallel(
            device=torch.device("cpu"),
            units=LayersAsUnits(),
            param_dtype=None,
            reduce_dtype=None,
            reshard_after_forward=True,
        )
