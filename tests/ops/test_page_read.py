"""Reading pages where they lie equals the reference, not compiled and compiled."""

import pytest
import torch
from transformers import CompileConfig

from memtx.generate import AsProjected, freeze_for_inference
from memtx.memory import RoutedMemoryCrossAttention
from memtx.ops import page_read as module
from memtx.ops.page_read import attend, page_read, pages, reads_pages
from memtx.ops.routed_read import joint_read_reference
from memtx.ops.segments import Segments
from tests.huggingface.faces import MODELS, face_of
from tests.huggingface.test_static_cache import generate, prompts

# Not compiled, FlexAttention warns that it goes over everything.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def arguments(*, batch, heads, kv_heads, length):
    key, value = torch.randn(2, 12, 4, kv_heads, 16).unbind()
    choice = torch.stack([torch.randperm(12)[:3] for _ in range(batch * length)])
    choice = choice.view(batch, length, 3)
    weight = torch.randn(batch, length, 3).log_softmax(dim=-1)
    segment = torch.arange(length).expand(batch, -1)
    segments = Segments(segment=segment, real=segment >= 0, count=length, width=1, regular=True)
    return torch.randn(batch, length, heads, 16), key, value, choice, weight, segments


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
def test_a_page_read_is_the_joint_read(heads, kv_heads, monkeypatch):
    monkeypatch.setattr(module, "_compiled", lambda: attend)
    *given, segments = arguments(batch=3, heads=heads, kv_heads=kv_heads, length=1)
    with torch.no_grad():
        wanted = joint_read_reference(*given, segments)
        torch.testing.assert_close(page_read(*given), wanted)


def test_pages_are_what_rows_chose():
    choice = torch.tensor([[4, 1], [0, 2]])
    weight = torch.tensor([[-0.1, -0.2], [-0.3, -0.4]])
    counts, numbers, raised = pages(choice, weight, 5)
    assert counts.flatten().tolist() == [2, 2]
    assert torch.equal(numbers[:, 0, 0, :2], choice.int())
    least = -torch.inf
    wanted = [[least, -0.2, least, least, -0.1], [-0.3, least, -0.4, least, least]]
    torch.testing.assert_close(raised, torch.tensor(wanted))


def test_only_compiled_decoding_of_many_reads_pages(monkeypatch):
    query, key, _, _, weight, segments = arguments(batch=2, heads=2, kv_heads=2, length=1)
    least = weight.numel() * key[0].numel()
    monkeypatch.setattr(module, "MANY_COPIED", least)
    with torch.no_grad():
        assert not reads_pages(query, key, weight, segments)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert reads_pages(query, key, weight, segments)
        assert not reads_pages(query, key[:3], weight, segments)
        assert not reads_pages(query.half(), key.half(), weight, segments)
        longer = arguments(batch=2, heads=2, kv_heads=2, length=2)
        assert not reads_pages(longer[0], longer[1], longer[4], longer[5])
        monkeypatch.setattr(module, "MANY_COPIED", least + 1)
        assert not reads_pages(query, key, weight, segments)
        monkeypatch.setattr(module, "MANY_COPIED", least)
        monkeypatch.setattr(module, "FASTER_ON", ())
        assert not reads_pages(query, key, weight, segments)
        monkeypatch.setattr(module, "FASTER_ON", ("cpu",))
    assert not reads_pages(query, key, weight, segments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_page_read_goes_to_no_other_page():
    """Where others hold what is not a number."""
    *given, segments = arguments(batch=3, heads=4, kv_heads=2, length=1)
    _, key, value, choice, _ = given
    wanted = joint_read_reference(*given, segments)
    read = torch.ones(12, dtype=torch.bool).index_fill(0, choice.flatten(), False)
    assert read.any()
    key[read], value[read] = torch.nan, torch.nan
    with torch.no_grad():
        torch.testing.assert_close(page_read(*given), wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_goes_by_pages_to_the_same_tokens(monkeypatch):
    """Of a whole model in one graph, with its memory frozen, generating with a static cache."""
    monkeypatch.setattr(module, "MANY_COPIED", 0)
    known, reads = module._compiled, []
    monkeypatch.setattr(module, "_compiled", lambda: reads.append(1) or known())
    face, (ids, mask) = face_of(MODELS["routed by rolling"]()), prompts(4)
    wanted = generate(face, ids, mask, {})
    compiled = CompileConfig(fullgraph=True, mode="default", backend="aot_eager")
    compiled._compile_all_devices = True  # else a GPU alone
    torch._dynamo.reset()
    options = {"cache_implementation": "static", "compile_config": compiled}
    with freeze_for_inference(face, storage=AsProjected()):
        assert torch.equal(generate(face, ids, mask, options), wanted)
    layers = sum(isinstance(part, RoutedMemoryCrossAttention) for part in face.modules())
    assert len(reads) == 6 * layers  # of seven tokens the first comes with the prompt
