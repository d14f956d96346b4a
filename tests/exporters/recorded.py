"""Names of targets that cannot be imported on a machine without the libraries of a GPU, recorded as facts."""

# Fields of Megatron-Bridge 0.6.2 on megatron-core 0.19.2 by section of its ConfigContainer, "" for its own: from the
# classes of megatron/bridge/training/config.py, models/gpt_provider.py and those of megatron.core that they extend.
BRIDGE_FIELDS = {
    "": "comm_overlap mixed_precision",
    "checkpoint": "ckpt_format",
    "dataset": "seq_length",
    "ddp": (
        "check_for_nan_in_grad data_parallel_sharding_strategy delay_wgrad_compute grad_reduce_in_fp32 "
        "megatron_fsdp_main_grads_dtype "
        "fp8_param_gather megatron_fsdp_main_params_dtype num_distributed_optimizer_instances overlap_grad_reduce "
        "overlap_param_gather reuse_grad_buf_for_mxfp8_param_ag use_distributed_optimizer use_megatron_fsdp"
    ),
    "dist": "use_megatron_fsdp use_tp_pp_dp_mapping",
    "model": (
        "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split activation_func "
        "activation_func_fp8_input_store add_bias_linear add_qkv_bias apply_rope_fusion attention_backend "
        "attention_dropout attention_output_gate batch_p2p_comm bf16 bias_activation_fusion bias_dropout_fusion "
        "context_parallel_size cp_comm_type cpu_offloading cpu_offloading_num_layers cross_entropy_fusion_impl "
        "cross_entropy_loss_fusion cuda_graph_impl delay_wgrad_compute expert_model_parallel_size "
        "expert_tensor_parallel_size ffn_hidden_size fp16 fp4 fp4_recipe fp8 fp8_param fp8_recipe gated_linear_unit "
        "hidden_dropout hidden_size hybrid_layer_pattern init_model_with_meta_device kv_channels "
        "moe_expert_capacity_factor moe_ffn_hidden_size moe_flex_dispatcher_backend moe_grouped_gemm "
        "moe_pad_expert_input_to_capacity "
        "moe_router_group_topk moe_router_num_groups moe_router_topk moe_shared_expert_gate "
        "moe_shared_expert_intermediate_size moe_shared_expert_overlap moe_token_dispatcher_type mtp_num_layers "
        "normalization num_attention_heads num_layers num_layers_in_first_pipeline_stage "
        "num_layers_in_last_pipeline_stage num_moe_experts num_query_groups overlap_moe_expert_parallel_comm "
        "overlap_p2p_comm params_dtype persist_layer_norm pipeline_dtype pipeline_model_parallel_layout "
        "pipeline_model_parallel_size position_embedding_type qk_layernorm recompute_granularity recompute_method "
        "recompute_modules recompute_num_layers seq_length sequence_parallel share_embeddings_and_output_weights "
        "softmax_type tensor_model_parallel_size tp_comm_overlap use_te_rng_tracker "
        "virtual_pipeline_model_parallel_size window_attn_skip_freq window_size"
    ),
    "optimizer": (
        "bf16 exp_avg_dtype exp_avg_sq_dtype fp16 fp8_recipe main_grads_dtype main_params_dtype optimizer "
        "optimizer_cpu_offload optimizer_offload_fraction overlap_param_gather params_dtype "
        "reuse_grad_buf_for_mxfp8_param_ag "
        "use_distributed_optimizer use_precision_aware_optimizer"
    ),
    "rerun_state_machine": "check_for_nan_in_loss",
    "scheduler": "lr_warmup_iters",
    "tokenizer": "vocab_size",
    "train": "global_batch_size micro_batch_size train_iters",
}
# Recipes that Megatron-Bridge 0.6.2 exports (src/megatron/bridge/recipes/*/*.py), of models of the catalogue; those of
# Nemotron, and their hybrid_layer_pattern, as its main branch of summer 2026 has them.
BRIDGE_RECIPES = (
    "deepseek_v2_lite_pretrain_config deepseek_v2_pretrain_config deepseek_v3_pretrain_config "
    "gemma2_27b_pretrain_config gemma2_2b_pretrain_config gemma2_9b_pretrain_config glm45_355b_pretrain_config "
    "glm45_air_106b_pretrain_config gpt3_175b_pretrain_config gpt_oss_120b_pretrain_config "
    "gpt_oss_20b_pretrain_config kimi_k2_pretrain_config llama2_7b_pretrain_config llama31_405b_pretrain_config "
    "llama31_70b_pretrain_config llama31_8b_pretrain_config llama32_1b_pretrain_config llama32_3b_pretrain_config "
    "llama3_70b_pretrain_config llama3_8b_pretrain_config moonlight_16b_pretrain_config olmoe_7b_pretrain_config "
    "nemotron_3_nano_pretrain_config nemotron_3_super_pretrain_config nemotron_3_ultra_pretrain_config "
    "nemotron_nano_12b_v2_pretrain_config nemotron_nano_9b_v2_pretrain_config nemotronh_47b_pretrain_config "
    "nemotronh_56b_pretrain_config nemotronh_8b_pretrain_config "
    "qwen25_14b_pretrain_config qwen25_1p5b_pretrain_config qwen25_32b_pretrain_config "
    "qwen25_500m_pretrain_config qwen25_72b_pretrain_config qwen25_7b_pretrain_config qwen2_1p5b_pretrain_config "
    "qwen2_500m_pretrain_config qwen2_72b_pretrain_config qwen2_7b_pretrain_config qwen3_14b_pretrain_config "
    "qwen3_1p7b_pretrain_config qwen3_235b_a22b_pretrain_config qwen3_30b_a3b_pretrain_config "
    "qwen3_32b_pretrain_config qwen3_4b_pretrain_config qwen3_600m_pretrain_config qwen3_8b_pretrain_config "
    "qwen3_next_80b_a3b_pretrain_config vanilla_gpt_pretrain_config"
)
# Fields of nanotron's configuration, those without a default before the bar: src/nanotron/config/config.py at commit
# 00708b80, parallelism_config.py at 19f88fbe and models_config.py at 025f3141.
NANOTRON_FIELDS = {
    "": (
        "general parallelism model | tokenizer checkpoints logging tokens optimizer data_stages profiler lighteval "
        "s3_upload"
    ),
    "general": "project | run seed step consumed_train_samples benchmark_csv_path ignore_sanity_checks",
    "parallelism": (
        "dp pp tp | pp_engine tp_mode tp_linear_async_communication recompute_layer moe_layer_recompute "
        "tp_recompute_allgather expert_parallel_size context_parallel_size"
    ),
    "tokens": (
        "sequence_length train_steps micro_batch_size batch_accumulation_per_replica | "
        "val_check_interval limit_val_batches limit_test_batches"
    ),
    "model": "model_config init_method | dtype make_vocab_size_divisible_by ddp_bucket_cap_mb",
    "model.init_method": "std | scaling_method",
    "optimizer": (
        "optimizer_factory zero_stage weight_decay clip_grad accumulate_grad_in_fp32 learning_rate_scheduler | "
        "weight_decay_exclude_named_params"
    ),
    "optimizer.optimizer_factory": "| name adam_eps adam_beta1 adam_beta2 torch_adam_is_fused",
    "optimizer.learning_rate_scheduler": (
        "learning_rate | lr_warmup_steps lr_warmup_style lr_decay_style lr_decay_steps lr_decay_starting_step "
        "min_decay_lr"
    ),
    "checkpoints": (
        "checkpoints_path checkpoint_interval | save_initial_state save_final_state resume_checkpoint_path "
        "load_lr_scheduler load_optimizer checkpoints_path_is_shared_file_system"
    ),
    "logging": "| log_level log_level_replica iteration_step_info_interval",
    "data_stages": "name start_training_step data |",
    "data_stages.data": "dataset seed | num_loading_workers",
}
NANOTRON_LLAMA = (
    "bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size is_llama_config "
    "max_position_embeddings num_attention_heads num_hidden_layers attention_bias num_key_value_heads pad_token_id "
    "pretraining_tp rms_norm_eps rope_scaling rope_theta rope_interleaved tie_word_embeddings use_cache vocab_size "
    "_attn_implementation z_loss_enabled z_loss_coefficient"
)
NANOTRON_QWEN = (
    f"{NANOTRON_LLAMA.replace('is_llama_config', 'is_qwen2_config')} flex_attention_mask sliding_window_size "
    "no_rope_layer _fused_rotary_emb _fused_rms_norm _use_qkv_packed _use_doc_masking moe_config"
)
NANOTRON_ATTENTION = "flash_attention_2 flex_attention sdpa ring_flash_triton ring"  # src/nanotron/nn/attention.py
