"""The words of ``docs/serving-runs.md``."""

from collections.abc import Mapping

INTRODUCTION = """# Serving against published measurements

Written by `make serving-report`; do not edit. {rows} published measurements of serving, and {others} of quantised
checkpoints, by {publishers} publishers (`planner/validate/data/serving_published.csv` and `serving_quantised.csv`, with
their addresses and what was assumed) were looked up, checked and committed before any of them was priced, and so was
how they are read (`planner/validate/serving/prices.py`). The first prices, *blind*, were then written once, with their
commit (`serving_first.csv`): {figures} figures of {priced} measurements. Nothing is fitted on any of them. Not priced:
{left}.

Requests at a rate are the steady state that `planner serving` answers with, and so were those at a constant concurrency
when first priced; now these are a run of as many requests as were sent, where that is published. One batch, and the
throughput of requests that are all there from the start, are a call of generation
([calls.md](calls.md#generation)). When tokens of the latter come was first priced when runs were known, as one. A
deployment's layout, replicas and engine are as published; settings of the engine are its own defaults.
"""

QUANTISED_WORDS = """## Quantised checkpoints

Looked up when such checkpoints had prices, with rows of 16 bits beside them where the page has both. Blind prices are
of commit `71ba4d1`. Since then products of 4-bit weights under vLLM and SGLang are bounded by how fast Marlin unpacks
them, a rate read off its own published kernel times (`costmodels.kernels.roofline.UNPACKED_PER_SM_S`), and tokens of a
run are means over its requests; engines sum over the links of a domain by kernels of their own.
"""
LATER_WORDS = """## Looked up later

{rows} further measurements by {publishers} publishers (`serving_later.csv`), half of them on AMD's GPUs and most on
engines of 2025 and 2026, typed when the errors above were known and committed before any of them was priced. Blind
prices are of commit `c203fd1`.
"""
PAIRS = """How many times as fast fewer bits are as 16 on the same GPUs under the same load, which errors of a server's
own cancel out of:
"""

FIGURES: Mapping[str, str] = {
    "tpot": "Time per output token",
    "ttft": "Time to the first token",
    "latency": "Latency of a request or a batch",
    "tokens": "Output tokens per second",
}

FOUND = """## What the errors were

Written after the first look at them.

- **Of those looked up later**, the throughput of Llama 70B and 405B in 8 bits under TensorRT-LLM 0.16 on H100s and
  H200s is within 12 %, of 70B on one MI355X 8 % too high in FP8 and 25 in MXFP4, which had no price before; of 8B and
  31B on an MI300X within 22 up to 32 requests at once. Mixtures of experts in 8 bits on MI300X are priced up to twice
  too fast, and worse with hundreds of requests at once (MiniMax-M2.7, Qwen3-Coder-480B, Qwen3-30B); GLM-4.6 and
  Qwen3-235B on B200 under SGLang of 2025 within a third. Tensor parallelism over two nodes of GH200s on Slingshot
  takes 1.8 times its price. At 85 % of a measured capacity (Systalyze) time per token is priced 1.7 to 7.5 times too
  long: close to saturation a little less capacity is much more waiting. Filed as defects: 405B on B200 under
  TensorRT-LLM 0.20 (2.6 times its price), Qwen3-32B on an H100 NVL (3.5), DeepSeek-R1 on an early V1 of vLLM.
- **Weights in 4 bits that kernels unpack** (Marlin under vLLM, pairs of RedHatAI, sakogan, FrankXu0908, bereketlemma):
  beside 16 bits on the same GPU they were priced 10 % off in how much faster they are, and are 6 %. One request on an
  H100 was priced 42 % too fast, which is 5 to 11 % now. Not described: AWQ's own kernel of before Marlin (half as fast
  as 16 bits: Nebius, ChengcanWang, cssnoeasy), SGLang's GPTQ experts on an H20 (QwenLM: a quarter of 16 bits),
  DeepSeek under vLLM of early 2025 (dzhsurf).
- **Eager mode** in 4 bits on an A100 (cssnoeasy) was priced with graphs, 42 to 108 % too fast. How long vLLM's host
  takes for a kernel is known from another publisher's timing since: 26 % too slow to 20 % too fast, and where 16 bits
  keep the device busy 8 % too slow to 3 % too fast, but for 16 prompts of 2,048 that share a small cache.
- **NVFP4 under TensorRT-LLM** on B200 and RTX PRO 6000: 27 % below to 44 % above NVIDIA's throughputs. Kimi K2.5 under
  vLLM on B200s (InferenceX) took, for 4 requests, half the time priced in NVFP4 and 60 % of it in 4-bit integers. Part
  was that experts were priced on Triton's kernels, where engines run TensorRT-LLM's generated ones in few bits on
  Blackwell; with these it takes 54 %.
- **gpt-oss** fits one H100, as published; its first prices at 4 requests at once are within 5 % (gpustack).
- **Near saturation** (Nebius, 10 requests a second on one L40 for 20 s): a steady state that its run does not reach is
  priced three to four times too slow.
- **Means per token in a burst** are means over requests: short answers end while hundreds of prompts are read. Priced
  so since, they take up to twice all time over all tokens; gpustack's thousand requests were 5 to 85 % too fast and
  are 2 to 84 %.
- **A server that is nearly idle** gives the first token within 10 ms of its price: one request at a time on H100,
  A100 and RTX 4090 (tenstorrent), one GPU at low rates (io.net, SGLang). gpustack's 64 ms of vLLM for 233 tokens of
  Qwen3-8B on an H100, where its SGLang takes 28 and 15 are priced, is a server's way to the engine and back, which is
  left out.
- **Starts.** Load generators send as many requests at once as may run. Prompts then queue for seconds, and a mean
  over a few hundred requests holds them, which first prices, of a steady state, did not know. Runs with their start and
  end do: DanBlanaru's first token of 15.7 s was 88 % and is 11 % too short, dstack's were 96 and are 72 %,
  mushfiqrahman.dev's 53 and 37 %. dstack's engines read prompts before they go on generating, and equal lengths come
  back together, so that every wave queues: from 4 to 128 at once its 15 first tokens rise as priced, at three to four
  times the price (once eight), as these engines read the prompts of DeepSeek-R1 that much slower in early 2025. Answers
  of mushfiqrahman.dev, 100 tokens on average and 128 at most, must often end at the most, and so come back together
  too; here they spread.
- **Requests all sent at once** (gpustack, dstack, zhyncs, Lambda): 53 figures on when their tokens come were first
  priced as runs, after all else on this page. First tokens are 29 to 42 % too short, dstack's 75 %; gpustack's tokens
  took 39 % less than it publishes, though its throughputs are right on average. Part of that was a mean (above). The
  rest is not known: its servers may take the thousand requests in more slowly than its engines read them.
- **First tokens that are worse now.** Engines that read first make no tokens in the step of a prompt, so that SGLang's
  and vLLM's of 2024 take a step less than first priced: sgl-project's were 42 % and are 54 % too short. On io.net they
  count the prompts that their step reads besides: 37 and 38 %.
- **Ten steps a schedule.** vLLM 0.6.0, as SGLang's and Lambda's comparisons ran it, makes ten steps before it looks
  at new requests: first tokens wait for them (0.1 s instead of 0.04 s), and less host time is spent per step than is
  priced.
- **MI300X under vLLM of 2024** decodes 1.5 to 2.4 times slower than kernels timed in 2025 and later say (Argonne,
  dstack), the more so the more GPUs share a layer: its ROCm build of then has no description here.
- **Lengths that end by themselves.** Where a publisher prints the most that a request may generate, first prices had
  not read it and took up to 2,048; prices of now do, and databasemart's, 46 % too few tokens at first, are 34 % too
  many: how lengths spread below a cap of 600 is not published. Medians are all that SGLang's comparison prints: first
  prices of its latencies were means of answers that differ in length, 37 % off; prices of now are medians, 15 % off.
- **GPUs without peer-to-peer traffic.** First tokens on several RTX 4090 (io.net) take 0.1 to 0.35 s where 0.07 are
  priced, and their tokens come faster than priced: its pages do not say how the GPUs are joined.
- **Prompts of large mixtures of experts.** Qwen3-235B on eight H100s reads prompts 1.8 times as fast as priced
  (gpustack).
- **Eight bits.** TensorRT-LLM 1.0 and later publishes Llama of 8B, 70B and 405B with weights and caches in 8 bits on
  H100 and H200: the first prices of 35 throughputs lay between 23 % below and 9 % above them. AMD's own latencies of
  one request, with its container of late 2025, were priced 63 % too long. Every linear layer was charged the 9 to 11 us
  that the timed ones take to look through their whole input, where engines convert it in one kernel of 1.4 to 2.7, or
  along with other work. Priced so, which none of these figures had a part in, the 35 lie between 21 % below and 12 %
  above, 6 % off on average instead of 9; AMD's latencies are 32 % too long, DeepSeek-R1's under SGLang of 2026
  (SemiAnalysis) 9 % off instead of 25. What was priced right or too fast is worse: Llama-3.1-405B on eight MI300X
  (Oracle, vLLM of 2024) from 3 to 11 %, dstack's time per token from 46 to 50 %, NIM's of Llama-3.3-70B from 19 to
  20 %, that of Qwen3-8B under SGLang (gpustack) from 2 to 19 %.
- **Data-parallel attention** was no layout here at first: rows that publish one (TensorRT-LLM's DEP4 and DEP8) were
  priced with tensors and experts cut over all GPUs, and gave up to four times the tokens. As published they lie
  between 11 % below and 72 % above: Qwen3-235B -3 to +29 %, DeepSeek-R1 +11 to +60 %, Llama 4 Maverick -11 to +72 %.
  DeepSeek's needed another mend: TensorRT-LLM's timed kernels for many queries per key stood for its latent attention,
  which has others. SGLang's rows of that layout (dstack, February 2025) had no price before.
- **TensorRT-LLM 1.0** lists mixtures of experts under TP8, with an option for data-parallel attention that stands
  where it may not act. Judged as TP8, ten rows are 59 % below to 60 % above; as data parallel over eight they would be
  4 % below to 55 % above, so that it probably did.
- **DeepSeek-R1 of February and March 2025** (dstack) takes about twice its price on MI300X and H200, as engines had
  just begun to serve it; SGLang of 2026 on H200 (SemiAnalysis) takes 8 % less.
"""
