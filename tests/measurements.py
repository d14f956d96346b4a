"""Small files of measurements in the formats of other tools, made up for the tests."""

from typing import Any

NCCL = """# nccl-tests version 2.17.8 nccl-headers=22902 nccl-library=22902
# Collective test starting: all_gather_perf
# nThread 1 nGpus 1 minBytes 1024 maxBytes 2048 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid 11 on host-a device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid 12 on host-a device  1 [0000:43:00] NVIDIA H100 80GB HBM3
#  Rank  2 Group  0 Pid 13 on host-b device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  3 Group  0 Pid 14 on host-b device  1 [0000:43:00] NVIDIA H100 80GB HBM3
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
        1024            64     float    none      -1    12.50    0.08    0.06       0    11.50    0.09    0.07       0
        2048           128     float    none      -1    14.00    0.15    0.11       3    13.00    0.16    0.12     N/A
# Avg bus bandwidth    : 0.1
# Collective test starting: hypercube_perf
# nThread 1 nGpus 1 minBytes 1024 maxBytes 2048 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 graph: 0
#  Rank  0 Group  0 Pid 11 on host-a device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid 12 on host-a device  1 [0000:43:00] NVIDIA H100 80GB HBM3
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
        1024            64     float    none      -1    12.50    0.08    0.06       0    11.50    0.09    0.07       0
"""
OLD_NCCL = """# nThread 1 nGpus 2 minBytes 8 maxBytes 8 step: 2(factor) warmup iters: 5 iters: 30 validation: 1
# Using devices
#   Rank  0 Pid  9 on  node device  0 [0x07] NVIDIA A100-SXM4-80GB
#   Rank  1 Pid  9 on  node device  1 [0x0f] NVIDIA A100-SXM4-80GB
#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error
           8             2   float     sum    9.500    0.00    0.00  0e+00    9.250    0.00    0.00  0e+00
"""
VIDUR_MLP = (
    "time_stats.mlp_up_proj.median,time_stats.mlp_up_proj.std,time_stats.input_layernorm.median,"
    "time_stats.mlp_act.median,time_stats.attn_pre_proj.median,time_stats.attn_rope.median,time_stats.add.median,"
    "n_head,n_kv_head,n_embd,n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers\n"
    "0.5,0.01,0.02,0.04,0.3,0.0004,0.03,32,8,4096,14336,128256,True,1024,2\n"
)
VIDUR_ATTENTION = (
    "time_stats.attn_prefill.median,time_stats.attn_decode.median,n_embd,n_q_head,n_kv_head,block_size,"
    "num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size,is_prefill,attention_backend\n"
    "0.2,,4096,32,8,16,2,1,512,1536,True,FLASHINFER\n"
    ",0.1,4096,32,8,16,2,64,0,2047,False,FLASHINFER\n"
)
VIDUR_REDUCE = (
    ",time_stats.all_reduce.median,time_stats.all_reduce.std,rank,num_workers,size,collective,devices_per_node\n"
    "0,0.037,0.01,0,8,2048,all_reduce,4\n"
)
AIC_GEMM = (
    "framework,version,device,op_name,kernel_source,gemm_dtype,m,n,k,latency\n"
    "VLLM,0.14.0,NVIDIA A100-SXM4-80GB,gemm,vllm_default,bfloat16,64,128,256,0.011\n"
    "VLLM,0.14.0,NVIDIA A100-SXM4-80GB,gemm,vllm_default,int4_wo,64,128,256,0.011\n"
)
AIC_ATTENTION = (
    "framework,version,device,op_name,kernel_source,batch_size,isl,num_heads,num_key_value_heads,head_dim,beam_width,"
    "attn_dtype,kv_cache_dtype,step,latency\n"
    "VLLM,0.14.0,NVIDIA A100-SXM4-80GB,generation_attention,flash,32,1,64,8,128,1,bfloat16,bfloat16,15,0.02\n"
    "VLLM,0.14.0,NVIDIA A100-SXM4-80GB,context_attention,flash,2,512,64,0,128,1,bfloat16,bfloat16,0,0.3\n"
    "VLLM,0.14.0,NVIDIA A100-SXM4-80GB,context_attention,flash,2,512,64,8,128,1,bfloat16,fp8,0,0.3\n"
)
AIC_NCCL = (
    "framework,version,device,op_name,kernel_source,nccl_dtype,num_gpus,message_size,latency\n"
    "TRTLLM,2.27.3,NVIDIA A100-SXM4-80GB,alltoall,NCCL,half,4,1024,0.02\n"
)
NEUSIGHT = (
    "OPName,Latency,Device,Kernel Name,B,M,N,K\n"
    "linear,0.5,Tesla T4,some_sgemm,1,1024,256,4096\n"
    "softmax,0.5,Tesla T4,some_kernel,1,1024,256,0\n"
)


BF16 = "c10::BFloat16"


def operator(
    name: str,
    number: int,
    ts: float,
    dur: float,
    dims: Any = (),
    *,
    kind: str = BF16,
    values: Any = (),
    strides: Any = (),
) -> dict[str, Any]:
    arguments = {
        "External id": number, "Input Dims": dims, "Input type": [kind if shape else "Scalar" for shape in dims],
        "Concrete Inputs": list(values), "Input Strides": strides,
    }  # fmt: skip
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, "args": arguments}


def kernel(name: str, number: int, dur: float, **arguments: Any) -> dict[str, Any]:
    event = {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 1e6, "dur": dur}
    return event | {"args": {"External id": number} | arguments}


ATTENTION = [[2, 16, 128, 64], [2, 4, 128, 64], [2, 4, 128, 64], [], []]
EVENTS = [
    operator("aten::linear", 1, 0, 50, [[512, 1024], [4096, 1024]]),
    operator("aten::mm", 2, 10, 20, [[512, 1024], [1024, 4096]], strides=[[1024, 1], [1, 1024]]),
    kernel("sm90_xmma_gemm_bf16bf16", 2, 100),
    kernel("splitk_reduce", 2, 10),
    operator("aten::mm", 3, 100, 20, [[512, 1024], [1024, 4096]], strides=[[1024, 1], [1, 1024]]),
    kernel("sm90_xmma_gemm_bf16bf16", 3, 130),
    operator("aten::mm", 4, 200, 20, [[4096, 512], [512, 1024]], strides=[[1, 4096], [1024, 1]]),
    kernel("sm90_xmma_gemm_bf16bf16", 4, 90),
    operator("aten::_scaled_dot_product_flash_attention", 5, 300, 90, ATTENTION, values=["", "", "", "0.", "True"]),
    operator("aten::_flash_attention_forward", 6, 310, 50, [[2, 128, 16, 64]]),
    kernel("flash_fwd_kernel", 6, 40),
    operator("aten::cross_entropy_loss", 7, 400, 90, [[512, 32000], [512]]),
    operator("aten::log_softmax", 8, 410, 10, [[512, 32000]]),
    operator("aten::_log_softmax", 9, 412, 5, [[512, 32000]]),
    kernel("softmax_warp_forward", 9, 30),
    operator("aten::nll_loss_nd", 10, 430, 10, [[512, 32000]]),
    kernel("nll_loss_forward", 10, 5),
    operator("aten::sort", 11, 600, 10, [[512, 32000]]),
    kernel("radix_sort", 11, 5),
    kernel("ncclDevKernel_AllGather", 99, 200, **{
        "Collective name": "_allgather_base", "In msg nelems": 1024, "Out msg nelems": 8192, "Group size": 8,
        "dtype": "BFloat16",
    }),
    kernel("ncclDevKernel_AllGather", 98, 150, **{
        "Collective name": "_allgather_base", "In msg nelems": 1024, "Out msg nelems": 8192, "Group size": 8,
        "dtype": "BFloat16",
    }),
    {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "ts": 1, "dur": 50,
     "args": {"bytes": 1 << 20}},
    {"ph": "i", "name": "an instant"},
]  # fmt: skip
