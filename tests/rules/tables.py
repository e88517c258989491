"""What the rules allow by name. An entry that nothing uses any more fails the tests.

Keys are `path:Class.method`, or `path` alone where a rule looks at whole files.
"""

from tests.rules.source import Table

# Arguments that may be None by default: absence changes behaviour at a user's entry point.
ENTRY_POINTS: Table = {
    "src/memtx/adapters/adapter.py:MemoryAdapter.forward": [
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
    ],
    "src/memtx/adapters/checkpointing.py:activation_checkpointing_enable": [
        "activation_checkpointing_kwargs",
        "every_n_layers",
        "offload",
    ],
    "src/memtx/adapters/checkpointing.py:gradient_checkpointing_enable": [
        "gradient_checkpointing_kwargs",
        "every_n_layers",
        "offload",
    ],
    "src/memtx/adapters/insertion.py:Insertion.forward": ["context"],
    "src/memtx/adapters/sharing.py:from_pretrained": [
        "base",
        "subfolder",
        "revision",
        "token",
        "cache_dir",
        "force_download",
        "local_files_only",
    ],
    "src/memtx/adapters/sharing.py:push_to_hub": [
        "subfolder",
        "revision",
        "commit_message",
        "private",
        "token",
        "create_pr",
        "training",
        "license",
        "base_model",
    ],
    "src/memtx/adapters/sharing.py:save_pretrained": ["training", "license", "base_model"],
    "src/memtx/adapters/memory_library.py:MemoryLibrary.forward": [
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
        "memories",
    ],
    "src/memtx/adapters/memory_library.py:MemoryLibrary.generate": ["memories"],
    "src/memtx/blocks.py:MemoryBlock.forward": ["context"],
    "src/memtx/blocks.py:Residual.branch": ["context"],
    "src/memtx/blocks.py:Residual.forward": ["context"],
    "src/memtx/data/edits.py:read_edits": ["num_edits"],
    "src/memtx/data/facts.py:read_facts": ["num_facts"],
    "src/memtx/data/questions.py:read_questions": ["num_questions"],
    "src/memtx/evaluate/editing.py:editing": ["memories"],
    "src/memtx/evaluate/harness/model.py:MemtxLM.create_from_arg_obj": ["additional_config"],
    "src/memtx/evaluate/harness/model.py:MemtxLM.create_from_arg_string": ["additional_config"],
    "src/memtx/evaluate/multiple_choice.py:multiple_choice": ["memories"],
    "src/memtx/evaluate/recall.py:recall": ["memories"],
    "src/memtx/huggingface.py:MemtxForCausalLM.__init__": ["model"],
    "src/memtx/memory/cross_attention.py:MemoryCrossAttention.forward": ["context"],
    "src/memtx/memory/routed_attention.py:RoutedMemoryCrossAttention.forward": ["context"],
    "src/memtx/memory/router.py:ChapterRouter.forward": ["context"],
    "src/memtx/models/face.py:Face.forward": [
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
        "past_key_values",
        "inputs_embeds",
        "use_cache",
        "logits_to_keep",
    ],
    "src/memtx/models/face.py:Face.prepare_inputs_for_generation": ["inputs_embeds"],
    "src/memtx/models/face.py:MemtxConfig.__init__": ["spec"],
    "src/memtx/models/output.py:LanguageModelOutput": [
        "loss",
        "logits",
        "past_key_values",
        "router_losses",
    ],
    "src/memtx/models/tensor_lm.py:TensorMemoryLM.forward": [
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
        "past_key_values",
        "inputs_embeds",
        "use_cache",
        "logits_to_keep",
    ],
    "src/memtx/models/transformer.py:MemoryTransformer.forward": [
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
        "past_key_values",
        "inputs_embeds",
        "use_cache",
        "logits_to_keep",
    ],
    "src/memtx/spec/describe.py:build": ["base"],
    "src/memtx/tensor/attention.py:LinearMemoryAttention.forward": ["context"],
    "src/memtx/tensor/block.py:TensorMemoryBlock.forward": ["context"],
    "src/memtx/tensor/single.py:DecayingTensorMemory.reset": ["device"],
    "src/memtx/tensor/single.py:TensorMemory.reset": ["device"],
    "src/memtx/train/bank_optimizer.py:_ByRows.step": ["closure"],
    "src/memtx/transformer/feed_forward.py:FeedForward.forward": ["context"],
    "src/memtx/transformer/self_attention.py:SelfAttention.forward": ["context"],
    "src/memtx/transformer/swiglu.py:SwiGLU.forward": ["context"],
}

# *args and **kwargs that pass a third party's call through.
PASS_THROUGH: Table = {
    "src/memtx/adapters/adapter.py:MemoryAdapter.forward": ["kwargs"],
    "benchmarks/step_profile.py:Watched.generate": ["given"],
    "benchmarks/warm_rivals.py:try_a_share.made": ["others", "named"],
    "src/memtx/adapters/adapter.py:MemoryAdapter.generate": ["args", "kwargs"],
    "src/memtx/adapters/checkpointing.py:_Checkpoint.__call__": ["args"],
    "src/memtx/adapters/memory_library.py:MemoryLibrary.forward": ["kwargs"],
    "src/memtx/adapters/memory_library.py:MemoryLibrary.generate": ["args", "kwargs"],
    "src/memtx/evaluate/harness/model.py:MemtxLM.__init__": ["kwargs"],
    "src/memtx/evaluate/harness/model.py:MemtxLM._loglikelihood_tokens": ["kwargs"],
    "src/memtx/huggingface.py:MemtxForCausalLM._upload_modified_files": ["args", "kwargs"],
    "src/memtx/huggingface.py:MemtxForCausalLM.from_pretrained": ["args", "kwargs"],
    "src/memtx/huggingface.py:MemtxForCausalLM.save_pretrained": ["args", "kwargs"],
    # torch calls these with its own defaults.
    "src/memtx/memory/mapped.py:MappedMemoryBank.requires_grad_": ["args", "kwargs"],
    "src/memtx/memory/offloaded.py:OffloadedMemoryBank._apply": ["args", "kwargs"],
    "src/memtx/models/face.py:Face.generate": ["args", "kwargs"],
    "src/memtx/models/face.py:Face.forward": ["kwargs"],
    "src/memtx/models/face.py:Face.prepare_inputs_for_generation": ["kwargs"],
    "src/memtx/models/face.py:MemtxConfig.__init__": ["kwargs"],
    "src/memtx/models/transformer.py:MemoryTransformer.generate": ["args", "kwargs"],
    # Autograd tells a function's tensors from its other arguments by their place.
    "src/memtx/ops/linear_losses.py:_GradientsInForward.forward": ["tensors"],
    "src/memtx/models/tensor_lm.py:TensorMemoryLM.generate": ["args", "kwargs"],
    "src/memtx/ops/chapter_attention.py:_ChapterAttention.backward": ["outputs"],
    "src/memtx/ops/sorted_read.py:_IndependentRead.backward": ["gradients"],
    "src/memtx/ops/sorted_read.py:_JointRead.backward": ["gradients"],
    "src/memtx/ops/tensor_function.py:ChunkedTensorMemory.backward": ["gradients"],
    "src/memtx/tensor/cache.py:StateLayer.update": ["args", "kwargs"],
}

# Constructor parameters that are positional because their source writes them so.
POSITIONAL: Table = {
    "src/memtx/huggingface.py:MemtxForCausalLM": ["config"],
    "src/memtx/models/face.py:MemtxConfig": ["spec"],
    "src/memtx/models/output.py:LanguageModelOutput": [
        "loss",
        "logits",
        "past_key_values",
        "router_losses",
    ],
    "src/memtx/tensor/multi_head.py:MultiHeadMemory": ["memories"],
    "src/memtx/tensor/single.py:DecayingTensorMemory": ["config"],
    "src/memtx/tensor/single.py:TensorMemory": ["config"],
}

# Base classes beside nn.Module, Protocol, Enum, NamedTuple and errors.
INHERITANCE: Table = {
    "src/memtx/evaluate/harness/model.py:MemtxLM": ["HFLM"],
    "src/memtx/huggingface.py:MemtxForCausalLM": ["Face"],
    "src/memtx/models/face.py:Face": ["PreTrainedModel", "GenerationMixin"],
    "src/memtx/models/face.py:Generator": ["Face"],
    "src/memtx/models/face.py:MemtxConfig": ["PreTrainedConfig"],
    "src/memtx/models/output.py:LanguageModelOutput": ["ModelOutput"],
    "src/memtx/ops/chapter_attention.py:_ChapterAttention": ["torch.autograd.Function"],
    "src/memtx/ops/linear_losses.py:_GradientsInForward": ["torch.autograd.Function"],
    "src/memtx/ops/sorted_read.py:_IndependentRead": ["torch.autograd.Function"],
    "src/memtx/ops/sorted_read.py:_JointRead": ["torch.autograd.Function"],
    "src/memtx/ops/tensor_function.py:ChunkedTensorMemory": ["torch.autograd.Function"],
    "src/memtx/tensor/cache.py:StateLayer": ["CacheLayerMixin"],
    "src/memtx/train/bank_optimizer.py:_ByRows": ["torch.optim.Optimizer"],
}

# Heavy libraries imported when a module of src loads.
HEAVY_IMPORTS: Table = {
    "src/memtx/evaluate/harness/__main__.py": ["lm_eval"],
    "src/memtx/evaluate/harness/model.py": ["lm_eval"],
    "src/memtx/huggingface.py": ["transformers"],
    "src/memtx/models/face.py": ["transformers"],
    "src/memtx/models/output.py": ["transformers"],
    "src/memtx/tensor/cache.py": ["transformers"],
}

# Files that may name something outside of the repository, and what.
OUTSIDE: Table = {".ci/run": ["a folder outside of the repository"]}
