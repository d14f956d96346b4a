"""StackSpec: what a training framework adds to, and hides from, the sum of kernel and link prices.

Every field is physically meaningful and either cited or fitted (``costmodels.calibration``) on
end-to-end measurements, cross-validated by source; the packaged YAML says which, with residuals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Fields that say how much longer kernels and messages take than their prices; ``step_time_scale`` is of whole steps.
TIME_SCALES = (
    "gemm_time_scale",
    "fp8_time_scale",
    "fp4_time_scale",
    "blackwell_16bit_time_scale",
    "hopper_16bit_time_scale",
    "volta_gemm_time_scale",
    "attention_time_scale",
    "hopper_attention_time_scale",
    "memory_time_scale",
    "collective_time_scale",
    "scale_out_time_scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSpec:
    """One framework stack, of one era.

    Attributes:
        name: Catalogue name, e.g. ``megatron-core``.
        framework: Whose rules decide legality: ``megatron``, ``deepspeed``, ``fsdp``, ``nanotron`` or ``huggingface``.
        description: What runs under this name.
        shares_time_with: Stack whose fitted times this one has too, for its kernels are the same; empty: its own.
        step_time_scale: Measured over predicted step time of one's own runs, whatever the cause; 1 as packaged,
            set by ``planner calibrate --runs``.
        gemm_time_scale: Measured over fitted GEMM time (library version, quantisation kernels).
        fp8_time_scale: The same for 8-bit linear layers, quantisation included.
        fp4_time_scale: The same for 4-bit linear layers.
        blackwell_16bit_time_scale: The same for 16-bit linear layers on Blackwell, on top of
            ``gemm_time_scale``: benchmarks run in bursts, training at the power limit.
        hopper_16bit_time_scale: The same on Hopper. Stacks without such runs have what the others' tell
            (``planner.validate.refit``).
        volta_gemm_time_scale: The same for linear layers on Volta, on top of it: the kernel fit rests on
            127 DeepBench rows, each the best of several algorithms.
        attention_time_scale: The same for attention kernels.
        hopper_attention_time_scale: The same on Hopper, on top of it: FlashAttention-2 reaches half
            the rate of FlashAttention-3 or cuDNN there (arXiv:2407.08608, figure 5).
        attention_library: Library of the fused attention kernel, ``flash_2`` or ``cudnn``; empty where it is not known
            or has not been measured: the calibrated roofline prices it then.
        blackwell_attention_library: The same on data-centre Blackwell; empty: no difference.
        fused_attention: Devices it has one on: ``all``, of NVIDIA's those from ``ampere`` on, or ``none``.
        widest_fused_head: Widest head that it takes, of others the scores lie in memory; 0: any.
        own_attention: Attention with sinks or capped logits is fused, which Hugging Face's model code runs op by op.
        memory_time_scale: The same for bandwidth-bound kernels.
        collective_time_scale: The same for collectives within a scale-up domain.
        scale_out_time_scale: The same for those that cross domains, where training shares the network with itself.
        scale_out_group_bytes_per_s: Bus bandwidth a group that crosses domains reaches at most, whatever adapters its
            machines have; 0 for no such limit.
        norm: Whose norms and what goes with them (residuals, dropout, biases, splits): ``fused``, ``patched``,
            ``compiled``, ``eager`` or ``module`` code (``costmodels.lowering.elementwise``).
        rotary: Whose rotary embedding: ``fused``, ``compiled`` or ``eager``.
        activation: Whose activation functions: ``fused``, ``compiled`` or ``eager``.
        softmax: Whose softmax where attention is not fused: ``fused``, ``triangular``, ``compiled`` or ``eager``.
        multiplies_embedding: The embedding of tokens is a product of their one-hot vectors, which are written out, with
            the table, and so is the gradient of the table; otherwise rows are gathered and scattered.
        loss: Whose cross-entropy: ``fused``, ``compiled``, ``eager``, ``module``, ``copied`` or ``sharded``.
        update: How the optimizer runs: ``fused``, one kernel over many tensors that keeps 16-bit copies up to date;
            ``cast``, the same with gradients and weights cast apart; ``foreach``, a kernel per operation.
        grouped_experts: Experts run in one grouped kernel rather than one after the other.
        sorts_arrivals: Tokens are sent in the order of ranks and, on a rank with several experts, copied once more into
            the order of these, and back.
        expert_streams: Streams that experts' products take turns on, a kernel each; 0: one kernel runs them all.
        expert_library: Library of that one kernel in 16 bits, ``cutlass`` being what torch._grouped_mm runs, and
            ``cutlass_or_triton`` a kernel of Triton's on generations of devices on which that is a loop; empty
            where it is not known or has not been measured: prices learned from inference engines stand in, as they do
            on generations of devices on which its kernel has not been measured.
        shards_weights: Whether weights may be sharded (ZeRO 3): its code may read them past what gathers them.
        linear_loss_tokens: Tokens of a sequence beyond which loss and output layer are one unless told otherwise; 0:
            they never are unasked.
        routing: Whose code brings tokens into the order of their experts and back: ``fused``, ``indexed``,
            ``scattered`` or ``looped`` (``costmodels.lowering.routing``).
        transformers_models: Hugging Face's model code runs, which for some models has another mixture of experts
            (``MoESpec.all_run_by_transformers``).
        fixed_capacity: Experts take a fixed number of tokens each, and drop or pad the rest: nobody waits to learn how
            many arrive; ``expert_layer_s`` and ``expert_issue_s`` fall away.
        sends_tokens_once: A token goes once to every rank that holds one of its experts, over the network once to every
            node; else once to every expert.
        consecutive_experts: A token's experts are neighbours, as benchmarks deal them out: it goes to as few ranks and
            nodes as can be.
        captures_iterations: Whole iterations are captured as CUDA graphs: nothing that the host issues takes time, and
            nobody waits to learn how many tokens arrive.
        expert_dispatch: How tokens get to their experts: ``permuted`` into their order, ``masked``, multiplied by a
            mask over the places of all experts, or ``fused``, found by the kernel that multiplies them (engines).
        recompute_stops_early: Recomputing a whole layer ends once everything is there that its backward pass needs: its
            last product, whose result nothing needs, does not run again (PyTorch's checkpoint without reentrant
            autograd, since its pull request 96866, in PyTorch 2.1); otherwise all of the forward pass does.
        selective: What selective recomputation repeats unless modules are named: the attention ``core`` (Megatron-LM)
            or, with torchtitan, all but every other one of the layer's ``products`` (``memory.saved_products``).
        clips_gradients: All gradients are multiplied by the factor that clips them, whatever it is
            (``torch.nn.utils.clip_grad_norm_``); otherwise a kernel does so that reads them anyway, or none.
        adapters: Whose adapters: ``linear`` layers in 16 bits, PEFT's ``module``, in fp32 under autocast, or
            ``in_place``, functions of a whole MLP that work on what they are given (Unsloth).
        joint_adapters: Queries, keys and values have one adapter together where all three are adapted, because one
            product makes them (their parameters are counted apart all the same).
        repeats_key_values: Key and value heads are copied, one per query head, before attention sees them.
        gathers_quantised: Tensor-parallel ranks gather inputs in the format of products (Transformer Engine).
        separate_products: Queries, keys and values, and gate and up, come from products of their own, and not from one
            product together: tensor parallelism sums their inputs' gradients one by one and, unless sequences are
            split, copies the input for each.
        strided_heads: The products of unfused attention read queries, keys and values where the product before them put
            these, side by side head by head; otherwise from copies, or a kernel of their own reads them.
        scatters_boundaries: A tensor that every tensor-parallel rank holds whole crosses to the next pipeline stage in
            parts, one per rank, and is gathered there; otherwise every rank sends all of it. Sequence parallelism
            leaves it in parts anyway.
        switched_on_by: Options that turn this stack on where users of the one it shares times with leave them off.
        free_layout: Any number of layers may be given to every chunk of a pipeline
            (``--pipeline-model-parallel-layout``); otherwise Megatron-LM's chunks hold equally many, but for the ends.
        own_optimizer: The optimizer is not that of the framework whose layouts the stack has: rules of the framework on
            optimizers, the formats of what they update and where that is do not hold.
        kernel_launch_s: Host time to issue one kernel; a layer never runs faster than its launches.
        checkpoint_s: Host time of a checkpoint per micro-batch and layer that is recomputed from its input, beside
            launching its kernels again: PyTorch's, in Python, keeps tensors by hooks unless autograd is reentrant.
        checkpoint_kernel_s: The same per kernel of the layer's forward pass.
        blocking_launches: The host waits for every kernel and collective to end before it issues the next
            (``CUDA_LAUNCH_BLOCKING=1``): nothing hides the time it takes to issue them.
        collective_launch_s: Host time to issue one collective, framework bookkeeping included.
        gradient_message_bytes: Gradients reduced per collective call where replicas keep all of them (the buckets
            of PyTorch DDP); 0 when a reduction is one call. Sharded optimizers reduce in one call.
        sums_whole: Highest ZeRO stage, 0 to 2, that sums all gradients on every rank (an all-reduce) before each
            updates its shard, instead of scattering sums.
        reduces_last: FSDP leaves gradients of all micro-batches but the last whole on every rank, where they add up,
            and scatters the sums of all once per step (``no_sync``; fully_shard's ``set_requires_gradient_sync``).
        reduce_dtype: Format FSDP scatters sums of gradients in, and holds whole ones in until then, whatever that of
            the shards that stay (``reduce_dtype`` of its ``MixedPrecisionPolicy``); empty: theirs, and whole
            ones are as autograd makes them.
        reduces_to_owners: ZeRO stage 2 reduces every gradient to the rank that keeps it, instead of scattering sums.
        gather_messages_per_layer: Calls per layer in which ZeRO stages 1 and 2 gather the parameters that the optimizer
            updated; 0 when one call gathers all.
        broadcasts_from_owners: ZeRO stages 1 and 2 give whole matrices to ranks, which broadcast what they updated one
            after the other, all of a rank's at once; ``gather_messages_per_layer`` is how many matrices a layer has.
            Otherwise every rank updates its share of all, and one gathering brings it to the others.
        gathered_modules_per_layer: Calls per dense layer in which ZeRO-3 gathers parameters, a module each; 0 when it
            gathers a layer at once. Gradients are reduced layer by layer.
        leaf_experts: ZeRO-3 gathers the experts of a layer, each of them modules, at once (a DeepSpeed leaf module).
        module_hooks_s: Host time per pass through such a module under ZeRO-3, its own and its surroundings' hooks: they
            look up what is to be fetched, fetch and release it, and hand over gradients. Through a layer, also under
            ZeRO-2, where layers are gathered at once (FSDP).
        dtensor_module_s: Host time per pass through a linear layer or norm that is tensor-parallel: what operations on
            DTensors take beyond those on plain tensors, hooks and what is between modules included.
        expert_layer_s: Host time per pass of a micro-batch through a layer with experts that nothing hides.
        expert_issue_s: Host time per pass through a layer's experts that a busy device hides, beside launching kernels:
            what Python does to route, permute and hand out tokens. It cannot run ahead of counts that it waits for.
        captures_routing: Attention, router and what prepares an exchange are CUDA graphs: no ``expert_issue_s``.
        microbatch_overhead_s: Host time per micro-batch and stage that nothing hides.
        step_overhead_s: Time per step outside forward, backward and optimizer (data, logging, sync).
        tensor_parallel_overlap: Share of tensor-parallel communication hidden under compute.
        tensor_overlap_needs_nvlink: Whether it does so only where faster links than PCIe join the whole group.
        data_parallel_overlap: Share of gradient and parameter traffic hidden when overlap is on.
        expert_parallel_overlap: Share of expert all-to-all hidden under compute.
        straggler_fraction_per_doubling: Slow-down per doubling of the GPU count beyond one node.
        context_bytes: CUDA context, library workspaces and communicators per process.
        communicator_bytes: Extra device memory per communicator group.
        temporary_fraction: Temporaries alive at the peak that no formula counts (workspaces, casts, masks), as a
            share of the dynamic (activation) part.
        fragmentation_fraction: Allocator reserve as a share of the dynamic part, never given back.
        cache_fraction: Free blocks the allocator keeps besides, as a share of the same part, and returns
            before it runs out of memory.
        varied_cache_fraction: The same where micro-batches differ in length, and tensors with them.
        records_streams: Tensors that collectives worked on are marked as used by the stream of these, so that their
            blocks wait until the host sees the collective finished (``record_stream``; PyTorch until spring 2025).
        waiting_tensors: Tensors of sequence parallelism that wait so, because the host runs ahead of the device.
        gradient_dtype: Default format gradients are accumulated in.
        fp16_gradient_dtype: The same where the weights are fp16; empty: no difference.
        logits_fp32_copies: fp32 copies of the logits alive at the loss.
        sharded_logits_fp32_copies: The same where tensor parallelism splits the vocabulary; 0: no difference.
        gathers_logits: Tensor parallelism gathers the logits, so that every rank has the loss of the whole vocabulary.
        fused_norm: Norms keep their input only; otherwise an fp32 copy and the normalised tensor.
        fused_gate: A gated MLP keeps gate and up only; otherwise also the activated gate.
        activation_in_place: Gradients of an activation function are written over its inputs.
        autograd_gradients: What becomes of autograd's 16-bit gradients where they are accumulated in
            fp32: ``fused`` into the accumulation (Megatron-LM), ``freed`` after every micro-batch (nanotron)
            or ``kept`` (DeepSpeed's BF16_Optimizer).
        keeps_input_gradients: Under ZeRO-3 and with frozen weights, gradients of the inputs of recomputed layers stay
            until the backward pass is over: FSDP1's hooks on those of reentrant autograd.
        transient_gradients: Gradients are freed by the optimizer step and come into being as the backward pass
            reaches them, so that a step of one micro-batch never holds them beside all its activations (PyTorch's
            ``zero_grad(set_to_none=True)``, FSDP's reduced shards, XLA's liveness analysis).
        joint_projection: One linear layer gives queries, keys and values (LitGPT): their tensor stays whole as long as
            values are a view of it, and an adapter on some of them keeps what it adds to these.
        keeps_quantised_inputs: Micro-batches whose inputs a frozen 4-bit linear layer holds, without needing them, and
            as no saved tensor: until the graph goes; 2 in loops that hold on to it until the next loss is known.
        casts_unquantised: QLoRA trains in fp32 what is not quantised, and so the residual stream: PEFT's
            ``prepare_model_for_kbit_training`` casts it, and layers of bitsandbytes answer in the format of their
            input. Plans that shard weights do not (``costmodels.autocast.sharding_stack``).
        autocast_weights: Where a master copy is asked for and nothing is sharded, the weights are that copy and 16-bit
            products run under autocast: casts of the weights live from the forward to the backward pass, and the
            residual stream is fp32 (PyTorch's ``autocast``; Hugging Face's Trainer with ``bf16=True``). Plans that
            shard hold 16-bit weights (``costmodels.autocast.sharding_stack``).
        shards_master_weights: The only weights that stay are shards of the master copy, gathered in 16 bits for use, as
            under the framework ``fsdp``: FSDP1 under Hugging Face's Trainer.
        quantises_head, quantises_experts: 4-bit weights include the output head, and those of routed experts.
        narrow_weights: Weights in 8 bits are ``kept`` beside those in 16, ``whole`` beside shards, or ``live`` instead.
        unpacks_weights: A frozen 4-bit weight is made 16 bits wide by PyTorch's own kernels, one per operation, and
            stays so from its forward to its backward product; otherwise one kernel restores it for each of them.
        four_bit_weight_bytes: Bytes per 4-bit weight with its constants; 0: these are quantised again (QLoRA).
        weighs_expert_outputs: Outputs of experts are weighted by their probabilities, which keeps them; otherwise the
            inputs of their last matrix are.
        score_bytes: Bytes per element of the attention scores that unfused attention keeps after its softmax in 16
            bits, without dropout: 6 where that is spelled out, in fp32, and cast (``costmodels.eager_attention``); 0
            for those of the model's format.
        master_gradients: What becomes of the optimizer's fp32 copy of gradients accumulated in 16 bits: ``kept``,
            alive in its ``step`` only, or ``none`` (XLA, which fuses the cast into the update).
        gradient_bucket_copies: Copies of all gradients, as stored, that reduction buckets always hold (nanotron: 1).
        replica_bucket_copies: The same of PyTorch's DDP where replicas are whole: 1 without gradient_as_bucket_view.
        bucket_bytes: Fixed reduction and gathering buckets of a sharded optimizer (DeepSpeed).
        unsharded_units: Layers gathered at once under ZeRO-3: the one in use and those prefetched.
        optimizer_temporaries: Copies of a moment that an unfused optimizer has in its step (multi-tensor Adam: 1).
        flat_temporaries: What the optimizer needs for its step is one tensor of all parameters (DeepSpeed), which fits
            none of the blocks that activations leave: the allocator holds both while there is room.
        reserve_bytes: Allocator reserve that does not grow with the activations.
        static_memory: All buffers are assigned before anything runs (XLA), so that nothing is fragmented or cached.
        memory_residual_log_std: Standard deviation of log(measured / predicted) peak memory in cross-validation.
        memory_publisher_log_std: What a publisher nobody has seen adds to that (variances add) in intervals. Chances of
            running out of memory take it for one user in ten (``planner.answer.memory_law``).
        residual_log_std: Standard deviation of log(measured / predicted) of the next run.
        publisher_log_std: The part of it that a publisher nobody has seen adds to what cross-validation shows
            (variances add): how it runs, times and counts. 0 in cross-validation, and once its own runs are known.
        within_log_std: What is left of it among runs of one user, once their mean is known, what a publisher adds
            to that included; 0 when unknown.
        settled_log_std: What prices left open and a user's own runs settled, on the devices of ``settled_on``:
            the standard deviation of the log price that plans had which are as well known as those runs.
        settled_on: Names of those devices.
        fitted_on: What the fitted values rest on.
        sources: Field name to citation, for the values that are cited.
    """

    name: str
    framework: str
    description: str
    shares_time_with: str = ""
    step_time_scale: float = 1.0
    gemm_time_scale: float = 1.0
    fp8_time_scale: float = 1.0
    fp4_time_scale: float = 1.0
    blackwell_16bit_time_scale: float = 1.0
    hopper_16bit_time_scale: float = 1.0
    volta_gemm_time_scale: float = 1.0
    attention_time_scale: float = 1.0
    hopper_attention_time_scale: float = 1.0
    attention_library: str = ""
    blackwell_attention_library: str = ""
    fused_attention: str = "all"
    widest_fused_head: int = 0
    own_attention: bool = False
    memory_time_scale: float = 1.0
    collective_time_scale: float = 1.0
    scale_out_time_scale: float = 1.0
    scale_out_group_bytes_per_s: float = 0.0
    norm: str = "fused"
    rotary: str = "fused"
    activation: str = "fused"
    softmax: str = "fused"
    loss: str = "sharded"
    update: str = "fused"
    grouped_experts: bool = True
    sorts_arrivals: bool = False
    expert_streams: int = 0
    expert_library: str = ""
    shards_weights: bool = True
    linear_loss_tokens: int = 0
    routing: str = "fused"
    transformers_models: bool = False
    fixed_capacity: bool = False
    sends_tokens_once: bool = False
    consecutive_experts: bool = False
    captures_iterations: bool = False
    expert_dispatch: str = "permuted"
    recompute_stops_early: bool = False
    selective: str = "core"
    clips_gradients: bool = False
    adapters: str = "linear"
    joint_adapters: bool = False
    repeats_key_values: bool = False
    gathers_quantised: bool = False
    separate_products: bool = False
    strided_heads: bool = False
    scatters_boundaries: bool = False
    switched_on_by: str = ""
    free_layout: bool = False
    own_optimizer: bool = False
    multiplies_embedding: bool = False
    kernel_launch_s: float = 0.0
    checkpoint_s: float = 0.0
    checkpoint_kernel_s: float = 0.0
    blocking_launches: bool = False
    collective_launch_s: float = 0.0
    gradient_message_bytes: float = 0.0
    sums_whole: int = 0
    reduces_last: bool = False
    reduce_dtype: str = ""
    reduces_to_owners: bool = False
    gather_messages_per_layer: float = 0.0
    broadcasts_from_owners: bool = False
    gathered_modules_per_layer: float = 0.0
    leaf_experts: bool = False
    module_hooks_s: float = 0.0
    dtensor_module_s: float = 0.0
    expert_layer_s: float = 0.0
    expert_issue_s: float = 0.0
    captures_routing: bool = False
    microbatch_overhead_s: float = 0.0
    step_overhead_s: float = 0.0
    tensor_parallel_overlap: float = 0.0
    tensor_overlap_needs_nvlink: bool = False
    data_parallel_overlap: float = 0.0
    expert_parallel_overlap: float = 0.0
    straggler_fraction_per_doubling: float = 0.0
    context_bytes: float = 0.0
    communicator_bytes: float = 0.0
    temporary_fraction: float = 0.0
    fragmentation_fraction: float = 0.0
    gradient_dtype: str = "fp32"
    fp16_gradient_dtype: str = ""
    logits_fp32_copies: float = 1.0
    sharded_logits_fp32_copies: float = 0.0
    gathers_logits: bool = False
    fused_norm: bool = True
    fused_gate: bool = True
    activation_in_place: bool = False
    autograd_gradients: str = "fused"
    keeps_input_gradients: bool = False
    transient_gradients: bool = False
    static_memory: bool = False
    joint_projection: bool = False
    keeps_quantised_inputs: int = 0
    casts_unquantised: bool = False
    autocast_weights: bool = False
    shards_master_weights: bool = False
    quantises_head: bool = False
    quantises_experts: bool = True
    narrow_weights: str = ""
    unpacks_weights: bool = False
    four_bit_weight_bytes: float = 0.0
    weighs_expert_outputs: bool = True
    score_bytes: float = 0.0
    master_gradients: str = "kept"
    gradient_bucket_copies: float = 0.0
    replica_bucket_copies: float = 0.0
    bucket_bytes: float = 0.0
    unsharded_units: float = 2.0
    optimizer_temporaries: float = 0.0
    flat_temporaries: bool = False
    cache_fraction: float = 0.0
    varied_cache_fraction: float = 0.0
    records_streams: bool = False
    waiting_tensors: float = 0.0
    reserve_bytes: float = 0.0
    memory_residual_log_std: float = 0.0
    memory_publisher_log_std: float = 0.0
    residual_log_std: float = 0.0
    publisher_log_std: float = 0.0
    within_log_std: float = 0.0
    settled_log_std: float = 0.0
    settled_on: tuple[str, ...] = ()
    fitted_on: str = ""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def shards_parameters_from(self) -> int:
        """The ZeRO stage from which a rank holds its shard of the parameters, and of their gradients, in a step.

        PyTorch's FSDP shards both at stage 2 (fully_shard's ``reshard_after_forward=False``), where others shard
        gradients and the optimizer alone.
        """
        return 2 if self.framework == "fsdp" else 3

    def without_cache(self) -> "StackSpec":
        """The stack with an allocator that keeps no more than it must: no free blocks, none that wait for a stream."""
        return replace(self, cache_fraction=0.0, varied_cache_fraction=0.0, waiting_tensors=0.0, flat_temporaries=False)

    def joins_loss(self, sequence_length: int) -> bool:
        """Whether loss and output layer are one, unasked, for sequences of so many tokens."""
        return 0 < self.linear_loss_tokens < sequence_length

    def gradient_format(self, precision: str) -> str:
        """Default format gradients of a model of that precision are accumulated in."""
        return (self.fp16_gradient_dtype if precision == "fp16" else "") or self.gradient_dtype

    def with_memory(self, values: Mapping[str, float]) -> "StackSpec":
        """The stack with fitted memory parameters; lengths that vary never need less cache than equal ones.

        Blocks fit tensors of many sizes no better than tensors of one, whatever a fit of few such runs says. The fit
        itself is free of this: where it holds, a run says nothing of the smaller of both.

        Args:
            values: Field to value.
        """
        fitted = replace(self, **values)  # type: ignore[arg-type]
        return replace(fitted, varied_cache_fraction=max(fitted.varied_cache_fraction, fitted.cache_fraction))
