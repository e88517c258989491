"""Routers in training: what is said of them, and dead chapters that live again."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from memtx.train import AdamW, Callback, Remedy, ReviveDead, RouterHealth
from tests.routing import CHAPTERS, TOKENS
from tests.train import collapsed, tiny
from tests.train.processes import launch

WARNED = r"RouterHealth: at step \d+ dead chapters by router are \{.*\}, entropies below"


def test_load_entropy_and_dead_chapters_are_logged_when_it_is_time():
    model = collapsed.model()
    watch = collapsed.health(model, remedies=[])
    assert isinstance(watch, Callback)
    with pytest.warns(UserWarning, match=WARNED):
        records = collapsed.trainer(model, callbacks=[watch], steps=4).run()
    assert ["router/dead" in record for record in records] == [False, True, False, True]
    names = [f"insertions.{n}.sublayers.0.sublayer" for n in (0, 1)]
    for record in records[1::2]:
        # Of each of the two routers.
        assert record["router/dead"] == 2 * len(collapsed.DEAD)
        loads = [record[f"router/{name}/max_load"] for name in names]
        entropies = [record[f"router/{name}/entropy"] for name in names]
        assert [record[f"router/{name}/dead"] for name in names] == [2.0, 2.0]
        assert record["router/max_load"] == max(loads) <= 1.0
        assert record["router/entropy"] == min(entropies)
        assert all(0.0 < each < 1.0 for each in entropies)
        assert all(each >= 1 / (CHAPTERS - 1) for each in loads)
        assert "router/revived" not in record


def test_dead_chapters_live_again_and_without_the_remedy_they_do_not():
    model = collapsed.model()
    before = tiny.memory_of(model)
    remedy = ReviveDead(noise=0.1, seed=3)
    assert isinstance(remedy, Remedy)
    watch = collapsed.health(model, remedies=[remedy])
    with pytest.warns(UserWarning, match="revived 4"):
        records = collapsed.trainer(model, callbacks=[watch], steps=6).run()
    assert [record.get("router/dead") for record in records[1::2]] == [4.0, 0.0, 0.0]
    assert records[1]["router/revived"] == 4.0
    after = tiny.memory_of(model)
    moved = (after["banks.0.tokens"] - before["banks.0.tokens"]).abs().amax(dim=-1)
    moved = moved.view(CHAPTERS, TOKENS).amin(dim=-1)
    # A copy moves far, six steps of slow learning do not.
    assert all(moved[chapter] > 0.1 for chapter in collapsed.DEAD)
    assert all(
        moved[chapter] < 0.01 for chapter in range(CHAPTERS) if chapter not in collapsed.DEAD
    )


class Spy:
    """A remedy that keeps what the run is like before and after another."""

    def __init__(self, remedy):
        self.remedy = remedy

    def treat(self, run, readers, usages):
        self.usages = usages
        held = dict(run.objective.model.named_memory_parameters())
        self.before = {name: tensor.detach().clone() for name, tensor in held.items()}
        count = self.remedy.treat(run, readers, usages)
        self.after = {name: tensor.detach().clone() for name, tensor in held.items()}
        self.moments = {name: run.optimizer.state[tensor] for name, tensor in held.items()}
        return count


def test_only_rows_of_dead_chapters_change_and_their_moments_become_zero():
    model = collapsed.model()
    spy = Spy(ReviveDead(noise=0.1, seed=3))
    watch = collapsed.health(model, remedies=[spy])
    with pytest.warns(UserWarning, match=WARNED):
        collapsed.trainer(model, callbacks=[watch], steps=2).run()
    rows = {"banks.0.tokens": [c * TOKENS + t for c in collapsed.DEAD for t in range(TOKENS)]}
    for number, usage in enumerate(spy.usages.values()):
        name = f"insertions.{number}.sublayers.0.sublayer.router.scorer.weight"
        # The shared chapter has no row.
        rows[name] = [chapter - 1 for chapter in collapsed.DEAD]
        busiest = int(usage.selections.argmax()) - 1
        kept, copy = spy.after[name][busiest], spy.after[name][collapsed.DEAD[0] - 1]
        assert torch.equal(kept, spy.before[name][busiest])
        assert 0.0 < (copy - kept).std() < 0.3 * kept.std()
    for name, before in spy.before.items():
        changed = (spy.after[name] != before).flatten(1).any(dim=1) if before.ndim > 1 else None
        if name in rows:
            assert changed.nonzero().flatten().tolist() == rows[name]
            for kind in ("exp_avg", "exp_avg_sq"):
                moment = spy.moments[name][kind]
                assert not moment[rows[name]].any()
                assert moment.any()
        else:
            assert torch.equal(spy.after[name], before)


def test_a_bank_that_is_frozen_keeps_its_tokens():
    model = collapsed.model()
    model.banks.requires_grad_(False)
    before = tiny.memory_of(model)["banks.0.tokens"]
    watch = collapsed.health(model, remedies=[ReviveDead(noise=0.1, seed=3)])
    with pytest.warns(UserWarning, match="revived 4"):
        collapsed.trainer(model, callbacks=[watch], steps=2).run()
    assert torch.equal(tiny.memory_of(model)["banks.0.tokens"], before)


def test_a_chapter_that_one_router_reads_keeps_its_tokens():
    model = collapsed.model()
    with torch.no_grad():
        two = collapsed.readers(model)[1]
        two.router.scorer.weight[6:] = two.router.scorer.weight[:2]
    spy = Spy(ReviveDead(noise=0.1, seed=3))
    watch = collapsed.health(model, remedies=[spy])
    with pytest.warns(UserWarning, match="revived 2"):
        collapsed.trainer(model, callbacks=[watch], steps=2).run()
    assert torch.equal(spy.before["banks.0.tokens"], spy.after["banks.0.tokens"])


@pytest.fixture(scope="module")
def revived(tmp_path_factory):
    """What two processes left, each with a whole copy, and each with a part."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("copied", "sharded")}
    for kind, folder in folders.items():
        done = launch("tests.train.collapsed", folder=folder, arguments=[kind], num_processes=2)
        assert done.returncode == 0, done.stderr
        # The first process warns, and no other.
        assert done.stderr.count("RouterHealth: at step 2 dead") == 1
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copied", "sharded"])
def test_two_processes_revive_alike(revived, kind):
    memories = [load_file(revived[kind] / f"memory-{rank}.safetensors") for rank in (0, 1)]
    assert tiny.same(*memories)
    texts = [(revived[kind] / f"records-{rank}.json").read_text("utf-8") for rank in (0, 1)]
    found = [
        {key: value for key, value in json.loads(text)[1].items() if key.startswith("router/")}
        for text in texts
    ]
    assert found[0] == found[1]
    assert found[0]["router/revived"] == 4.0
    assert json.loads(texts[0])[3]["router/dead"] == 0.0


def test_a_sharded_memory_is_revived_as_a_whole_one(revived):
    copied, sharded = (
        load_file(revived[kind] / "memory-0.safetensors") for kind in ("copied", "sharded")
    )
    assert copied.keys() == sharded.keys()
    for name, tensor in copied.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_resumed_window_goes_on_where_it_was():
    model = collapsed.model()
    watch = collapsed.health(model, remedies=[])
    collapsed.trainer(model, callbacks=[watch], steps=1).run()
    state = json.loads(json.dumps(watch.state_dict()))
    again = collapsed.health(collapsed.model(), remedies=[])
    again.load_state_dict(state)
    assert again.state_dict() == watch.state_dict() == state
    assert all(sum(sums) > 0 for sums in state.values())


def test_the_state_of_other_routers_is_refused():
    watch = collapsed.health(collapsed.model(), remedies=[])
    message = r"RouterHealth: the state must be that of the same routers, got state=\{'x': 1\}, "
    with pytest.raises(ValueError, match=message):
        watch.load_state_dict({"x": [1.0]})


def test_few_choices_are_carried_on_before_anything_is_called_dead():
    model = collapsed.model()
    watch = RouterHealth(model=model, every=1, min_choices=1e3, min_entropy=0.0, remedies=[])
    records = collapsed.trainer(model, callbacks=[watch], steps=2).run()
    assert not any("router/dead" in record for record in records)
    small = sum(map(sum, watch.state_dict().values()))
    collapsed.trainer(model, callbacks=[watch], steps=2).run()
    assert sum(map(sum, watch.state_dict().values())) > small


def test_what_is_measured_between_steps_does_not_count():
    model = collapsed.model()
    watch = collapsed.health(model, remedies=[])
    with torch.no_grad():
        model.eval()(input_ids=torch.ones(1, 4, dtype=torch.long))
        assert not any(map(sum, watch.state_dict().values()))
        model.train()(input_ids=torch.ones(1, 4, dtype=torch.long))
        assert all(map(sum, watch.state_dict().values()))
        state = watch.state_dict()
        watch.close()
        model.train()(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert watch.state_dict() == state


def test_low_entropy_is_warned_of():
    model = collapsed.model()
    with torch.no_grad():
        for reader in collapsed.readers(model):
            reader.router.scorer.weight *= 100.0
    watch = RouterHealth(model=model, every=1, min_choices=0.1, min_entropy=0.99, remedies=[])
    with pytest.warns(UserWarning, match=r"entropies below 0\.99 are \{'insertions\.0"):
        collapsed.trainer(model, callbacks=[watch], steps=1).run()


def test_a_model_without_routers_is_refused():
    model = tiny.adapter(model=tiny.base(seed=0))
    message = "RouterHealth: the model must have a RoutedMemoryCrossAttention .* got model='MemoryA"
    with pytest.raises(ValueError, match=message):
        RouterHealth(model=model, every=1, min_choices=1.0, min_entropy=0.0, remedies=[])


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"every": 0}, "got every=0;"),
        ({"min_choices": 0.0}, "got min_choices=0.0, min_entropy=0.5;"),
        ({"min_entropy": 1.0}, "got min_choices=1.0, min_entropy=1.0;"),
    ],
)
def test_numbers_outside_their_range_are_refused(change, got):
    arguments = {"every": 1, "min_choices": 1.0, "min_entropy": 0.5, "remedies": []} | change
    with pytest.raises(ValueError, match=f"RouterHealth: .*{got}"):
        RouterHealth(model=collapsed.model(), **arguments)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan])
def test_a_revival_without_noise_is_refused(noise):
    with pytest.raises(ValueError, match=f"ReviveDead: noise must .* got noise={noise};"):
        ReviveDead(noise=noise, seed=0)


def test_moments_that_are_codes_are_refused():
    class Coded:
        """AdamW whose moments become codes, as those of 8 bits are."""

        def make(self, groups):
            optimizer = AdamW(betas=(0.9, 0.95), eps=1e-8).make(groups)
            for parameter in groups[0].parameters():
                codes = torch.zeros(parameter.shape, dtype=torch.uint8)
                optimizer.state[parameter] = {"state1": codes}
            optimizer.step = lambda: None
            return optimizer

    model = collapsed.model()
    watch = collapsed.health(model, remedies=[ReviveDead(noise=0.1, seed=0)])
    trainer = collapsed.trainer(model, callbacks=[watch], steps=2)
    with pytest.raises(ValueError, match=r"ReviveDead: the moments .* got moment='state1', dtype"):
        replace(trainer, optimizer=Coded()).run()
