"""What ``docs/unseen.md`` says of every round after the first (``planner.validate.unseen.page``)."""

# Round to what is said of its blind errors, and to what they turned out to be; the first has sections of its own.
LATER_ROUNDS = {
    2: """## Second round

What the first round taught was known when these sources were looked up, and everything it led to was in the packaged
stacks: this round says how accurate prices are now for users nobody has seen. Its {lines} lines are of publishers that
neither the first round nor the tables behind the fits hold, but for long sequences of Hugging Face's, whose comparison
of adapters is behind the fits. They were committed before any of them was priced, at commit `{commit}`; none was left
out for its error. The intervals of the fits alone hold, blind, {pretrain_alone} of steps of pre-training
({pretrain_names} publishers with three figures or more, weighing alike), {tuning_alone} of steps of fine-tuning
({tuning_names}) and {memory_alone} of peaks ({memory_names}). Those packaged then were as wide as the first round's
publishers told ([below](#how-wide-intervals-must-be)), one width for all tasks: they hold {pretrain_packaged},
{tuning_packaged} and {memory_packaged}. Of 15 steps (prime-rl, its RL trainer) the measurement was read again, as its
notes say: their blind errors are of the price of then and the measurement of now.
""",
    3: """## Third round

What both earlier rounds taught was known when these sources were looked up, in November 2026, and everything it led to
was in the packaged stacks. Its {lines} lines are of publishers that neither those rounds nor the tables behind the fits
hold. They were committed before any of them was priced, at commit `{commit}`; none was left out for its error. The
intervals of the fits alone hold, blind, {pretrain_alone} of steps of pre-training ({pretrain_names} publishers with
three figures or more, weighing alike), {tuning_alone} of steps of fine-tuning ({tuning_names}) and {memory_alone} of
peaks ({memory_names}). Those packaged then, as wide as the publishers of both earlier rounds told
([below](#how-wide-intervals-must-be)), hold {pretrain_packaged}, {tuning_packaged} and {memory_packaged}.
""",
    4: """## Fourth round

Looked up later in November 2026, of publishers that no earlier table holds, half of them on GPUs with no earlier line
(MI350X, GB10, B300, GH200). Its {lines} lines were committed before any of them was priced, at commit `{commit}`; none
was left out for its error. The intervals of the fits alone hold, blind, {pretrain_alone} of steps of pre-training
({pretrain_names} publishers with three figures or more, weighing alike), {tuning_alone} of steps of fine-tuning
({tuning_names}) and {memory_alone} of peaks ({memory_names}). Those packaged then, as wide as the publishers of all
three rounds told ([below](#how-wide-intervals-must-be)), hold {pretrain_packaged}, {tuning_packaged} and
{memory_packaged}. Three of its owners keep forks of one project (Lumen, on AMD's GPUs) and count as one publisher.
""",
    5: """## Fifth round

Looked up at the end of November 2026, of publishers that no earlier table holds. Its {lines} lines were committed
before any of them was priced, by the stacks and the code of commit `{commit}`; none was left out for its error. The
intervals of the fits alone hold, blind, {pretrain_alone} of steps of pre-training ({pretrain_names} publishers with
three figures or more, weighing alike), {tuning_alone} of steps of fine-tuning ({tuning_names}) and {memory_alone} of
peaks ({memory_names}). Those packaged then, as wide as the publishers of all four rounds told
([below](#how-wide-intervals-must-be)), hold {pretrain_packaged}, {tuning_packaged} and {memory_packaged}.
""",
    6: """## Sixth round

Looked up on the last days of November 2026, of publishers that no earlier table holds: single GPUs from T4 to B200,
most of them running small models by loops of their own. Its {lines} lines were committed before any of them was
priced, by the stacks and the code of commit `{commit}`; none was left out for its error, four since because the fourth
round holds their publishers. The intervals of the fits alone hold, blind, {pretrain_alone} of steps of pre-training
({pretrain_names} publishers with three figures or more, weighing alike), {tuning_alone} of steps of fine-tuning
({tuning_names}) and {memory_alone} of peaks ({memory_names}). Those packaged then, as wide as the publishers of all
five rounds told ([below](#how-wide-intervals-must-be)), hold {pretrain_packaged}, {tuning_packaged} and
{memory_packaged}.
""",
    7: """## Seventh round

Looked up in the last hours of November 2026: issues and pull requests as much as READMEs, so that many of its runs are
odd ones. Its {lines} lines are of eight publishers that no earlier table holds, and of five that one does, with other
frameworks than theirs there (EasyContext of TinyLlama's author, ColossalAI under PyTorch Lightning,
Pai-Megatron-Patch, the PyTorch baselines of Lightning Thunder, a stranger's runs of transformers). They were committed
before any of them was priced, by the stacks and the code of commit `{commit}`; none was left out for its error. The
intervals of the fits alone hold, blind, {pretrain_alone} of steps of pre-training ({pretrain_names} publishers with
three figures or more, weighing alike), {tuning_alone} of steps of fine-tuning ({tuning_names}) and {memory_alone} of
peaks ({memory_names}). Those packaged then, framework by framework as wide as the publishers of all six rounds told
([below](#how-wide-intervals-must-be)), hold {pretrain_packaged}, {tuning_packaged} and {memory_packaged}.
""",
    8: """## Eighth round

Looked up at the end of November 2026 for AMD's devices first, whose attention had just been rested on AMD's own
figures: Primus and AXLearn on MI300X, torchtitan on Frontier's MI250X, beside Megatron-Bridge on H100, H200, B200 and
B300 and FSDP2 on H100. Four of its seven publishers are in no earlier table; torchtitan's, NVIDIA's and AMD's are, with
other pages. All are steps of pre-training: what was found of fine-tuning states too little. Its {lines} lines were
committed before any of them was priced, at commit `{commit}`; none was left out for its error. The intervals of the
fits alone hold, blind, {pretrain_alone} of steps ({pretrain_names} publishers with three figures or more, weighing
alike) and {memory_alone} of peaks ({memory_names}). Those packaged then, framework by framework as wide as the
publishers of all seven earlier rounds told ([below](#how-wide-intervals-must-be)), hold {pretrain_packaged} and
{memory_packaged}.
""",
    9: """## Ninth round

Looked up on the last day of November 2026, half of it fine-tuning: torchtitan on GB200 and B200, Megatron-Core on
4090s, A100s and 252 boards of Leonardo, NeMo on H100s, Primus on MI355X, loops of their own from one 3090 to eight
B200s, Hugging Face's Trainer, its FSDP and DeepSpeed, adapters on a V100, an A100 and a GB10. Its {lines} lines are of
fourteen publishers that no earlier table holds. They were committed before any was priced, at commit `{commit}`;
none was left out for its error. The intervals of the fits alone hold, blind, {pretrain_alone} of steps of pre-training
({pretrain_names} publishers with three figures or more, weighing alike), {tuning_alone} of steps of fine-tuning
({tuning_names}) and {memory_alone} of peaks ({memory_names}). Those packaged then, framework by framework as wide as
the publishers of all eight earlier rounds told ([below](#how-wide-intervals-must-be)), hold {pretrain_packaged},
{tuning_packaged} and {memory_packaged}.
""",
}

FOUND_LATER = {
    2: """Of the second round, written after the first look at its errors:

- **FSDP on H100.** Steps of PyTorch's FSDP, of Hugging Face's kind or torchtitan's, were priced 7 to 28 % too low on
  H100s (Modalities up to 512 GPUs, OLMo-core, AWS), as IBM's were in the first round, and within 14 % on A100s
  (Modalities up to 128 GPUs where shards stay in a node, ATorch). Our own runs on one H100 are priced right
  ([accuracy.md](accuracy.md)): it is not the kernels by themselves. What runs beside them, transfers that share the
  multiprocessors, is not modelled. Modalities' boards of 64 GB are of these two machines only, and were taken for
  those of 80.
- **Networks that are not stated.** YaFSDP's baseline takes 1.6 to 1.9 times its price at 2,048 tokens a device, where
  transfers are most of a step, and is right within 5 % at 8,192. From 7B to 70B its steps at 2,048 tokens move the
  same 42 to 47 GB/s into a node: two adapters, where a DGX A100 has eight.
- **Full sharding over many small nodes.** Modalities' 2.7B over 256 A100s, four to a node, and over 1,024 H100s takes
  1.6 to 1.7 times its price. Hybrid sharding over as many does not.
- **What was wrong, and is mended.** Paddle's column-parallel layers copy the input that queries, keys and values, or
  gate and up, share: peaks of PaddleNLP's runs were priced 15 % too low on average. Norms of queries and keys
  (OLMo-core) were in the notes, but not read.
- **What is not modelled.** ATorch's FSDP gathers fp32 weights and casts them under autocast: its peaks are up to twice
  their prices. ALiBi goes into PaddleNLP's attention as a mask (Baichuan2-13B).
- **Not explained.** AWS says that it ran torchtitan's configuration of one sequence per device; its peak is that of
  two. torchtitan's Qwen3-30B was priced at more than twice its peak, when half of the layers stood for its selective
  recomputation; as its code has it (see the third round) it is within 4 %, and its step 18 % too long. TRL's
  Qwen3-30B-A3B peaks at 49 GB, less than the 61 that its weights, gradients and moments would take in fp32 over eight
  devices.
- **Fine-tuning is priced too low, and worse than training.** Everybody's own code is slower than what the stacks
  describe, the more so the less a device has to do. PaddleNLP's benchmark of summer 2023 takes 1.2 to 5.6 times its
  price, its pre-training of that autumn is right. It divides the tokens of its data by the time of a whole run, first
  step included; its page speaks of 10,000 samples, its script takes 1,000 unless asked (`train_data_size`). How much
  of a run is start-up is not said. DeepSpeed with Hugging Face's code takes 1.3 to 1.6 times, where optimizer states
  are on the host 2.5 to 2.7. Hugging Face's Llama 4 runs every expert on every token (`Llama4TextMoe`), and was
  priced as if it routed: its steps took 5 to 12 times that (axolotl), and take 1.5 to 3 times the price of all
  experts. Host time explains Qwen's short sequences alone: sequences of the others keep devices busy longer than the
  host needs to issue their work, but for 2,048 tokens per rank of the blog on Ulysses, whose price it raises by a
  third.
- **Whose attention runs.** FlashAttention-3 and cuDNN take half the time of FlashAttention-2 on H100s: sequences of
  65,536 and more were priced 47 to 82 % too high (prime-rl, TRL). A job may say so now (`--attention-library`), and
  their error is 9 %; shorter ones show how much else of prime-rl's is not described. FlashAttention-2 on B200s took
  1.8 to 2.6 times a price that shared in the tensor cores' peak; with the rate of Ampere's instruction, as our timings
  on H100s tell it, prices are between 30 % too low and 6 % too high.
- **Logits.** prime-rl's loss is not compiled: its peaks are 43 to 51 % too low where a dense model's logits are held,
  and within 10 % where they are not (all weights trained, RL).
- **Frozen weights in fp32.** prime-rl and Soup keep the base of adapters in fp32. Those peaks were 10 to 43 % too low;
  a job may say so now (`--frozen-dtype`), and prime-rl's dense models are within 9 %. Soup's of 0.5B, on short samples,
  are priced up to twice too high.
- **Adam on the host.** DeepSpeed's, on 8 and 4 ranks of one node, updates 0.3 to 0.4e9 parameters a second, a tenth
  of what ZeRO-Offload's paper measured. Other publishers' steps with DeepSpeed's offloading, 1.4 to 2.5e9, are within
  reach of what its code does besides Adam, which is priced now; these are not. Launchers that give a rank one thread
  (torchrun's `OMP_NUM_THREADS=1`) explain little of it: one core of an EPYC updated 1e9 a second in a vectorised loop
  of ours, and 0.17e9 without vectors, which DeepSpeed 0.14.2 of the gist does not use (its issue 6363).
- **Logits of newer code.** Peaks of DeepSpeed with Hugging Face's code of 2026 grow by 11 bytes per logit, and were
  priced at 18: transformers copied the shifted logits until 4.48. Newer code is a stack of its own now, with 12. Peaks
  at 65,536 and 98,304 tokens are right within 5 %, shorter ones 22 to 53 % too low, and the run that died at 131,072
  is cleared.
- **Expectations in words.** axolotl's "about 24 GB" names no GPU and no meter; with its 8-bit states under FSDP2, and
  with what it offloads, prices are 15 to 62 % too low.
""",
    3: """Of the third round, written after the first look at its errors:

- **Known before it was priced.** FSDP's stacks had no run in 16 bits on Hopper behind them, and priced it as fast as
  single kernels are; they have what other frameworks' runs tell now, 1.14 times that. IBM's steps are 7 % too low
  instead of 14, OLMo-core's 10 instead of 15, AWS's 12 instead of 16, MareNostrum 5's, whose boards of 64 GB are in the
  catalogue now, 9 instead of 18. Transfers that share the multiprocessors are not what it is: copies by the copy
  engines gain 2 % in PyTorch's pull request 179937, and the gap hardly grows with the number of GPUs.
- **Gradients that wait whole.** KempnerForge reduces gradients with the last micro-batch of a step alone
  (`maybe_no_sync` of its training/grad.py). FSDP2 then keeps whole sums in the format of the reduction, 4 bytes for
  every parameter of a rank, however many ranks shard; its loss sees logits gathered over tensor parallelism. Described,
  its dense peaks are 19 % too low to 3 % too high, not 86 to 13 % too low. Hugging Face's Trainer does so under FSDP1,
  in 16 bits: FastChat's 8 GPUs err by 16 % instead of 46, and Alpaca's five V100s are foreseen to die.
- **Experts dealt out in turn.** Forced balance gives a token's eight experts to one rank, in torchtitan's DeepEP (Nous
  Research) as in Primus: steps were 16 to 20 % too high, and are 6 to 11 % too low. The peaks of Nous Research are not
  explained: they grow by 14.7 GB per sequence of 4,096 where the price has 5.2.
- **Inputs that were not read.** Primus fuses the loss and keeps 16-bit gradients and moments: its peak was 28 % too
  high and is within 2 %. LLM-Shearing asks for eight nodes of two GPUs. ChatGLM3's script always checkpoints.
  ChatGLM2's runs on PyTorch 1.13, op by op, and is within 1 % without checkpoints, where its attention keeps an fp32
  softmax and its cast (DeepSpeed's stacks counted a third of that).
- **Liger** writes the gradients of a gated activation over its inputs, and its norms keep 16 bits
  (`--framework deepspeed-liger`): the two longest sequences of ArcticTraining were 40 and 82 % too high, and are 14 and
  21 %; both are still called dead.
- **What is no measurement of a step.** Pythia-1B's days mean 93 % of an A100's peak: its benchmark reads the host's
  clock and does not wait for the device.
- **Megatron-FSDP** of Qwen3-235B takes half its price, though its gradients go in 16 bits: what the fits say of
  Megatron-Core's data parallelism (42 % hidden) is not what this run shows, which hides nearly all of it.
- **Boards.** Swiss AI's GH200s multiply at some 425 TFLOP/s where 565 are priced, on 16 nodes as on 32. 16-bit products
  on GB200 and GB300 take 20 % less than the factor of other publishers' runs on Blackwell says, 1.46. A T4 is timed by
  DeepBench at 41 TFLOP/s, and held at 24 by its 70 W in products one after the other (NVIDIA's forum): priced so,
  fitcheck's steps are 22 % too low instead of 33. The rest is adapters and heads that PEFT keeps in fp32 and no
  autocast brings down.
- **Full devices.** KempnerForge's 70B on 8 GPUs, 138 of 141 GB allocated, takes 1.7 times its price, Qwen3-32B on GB200
  at 98 % 2.2 times. Retries of the allocator would explain that; other rows at 95 to 97 % are within 15 %.
- **torchtitan's selective recomputation.** Half of the layers stood for it, which keep 41 thousand elements per token
  and layer of Llama 8B. Its rule saves every other product, 28 thousand, and runs all routed experts again: described
  from its code, GB200's peaks err by 11 % instead of 20, Trainy's H200s by 9 % instead of 27. AWS's peaks, already too
  low, are lower still.
- **A program of its own.** LLM.Q (CUDA, C++) stands in as Megatron-Core: without the factors of that for memory-bound
  kernels and Hopper's products its 16-bit rows would be within 8 %.
- **Deaths.** Of ten under Trainer and FSDP two are foreseen. FSDP1 before PyTorch's pull request 101982 kept frozen
  weights gathered to the end of the backward pass. FastChat's README offers four boards of 40 GB for the script that
  died on them; it is priced at 37.9 GiB.
- **Not explained.** SmolLM3's peaks are under half of what its tokens hold as it is said to run. Packed experts of
  KempnerForge are products over all experts, padded to an extent that is not stated. The 300M of Swiss AI takes 3.6
  times its price, four micro-batches a step. JUWELS's 175B on 96 nodes is the best of three runs that differ by a
  third. Finetune_LLAMA's offload takes as long at a batch of 128 as at 768. LMFlow's 70 GB are of a configuration that
  takes 17 elsewhere.
""",
    4: """Of the fourth round, written after the first look at its errors:

- **Read wrongly.** The notes of Baseten's runs had a fused cross-entropy and experts over eight GPUs, which nobody
  read: peaks of models with linear attention at 128K and 256K tokens were 158 % too high and are 7 % too low. No such
  model had been priced against a measurement before.
- **Programs of their own.** Lumen's kernels in 8 bits on MI350X are a third slower than the recipe that stands in for
  them, and its mixtures of experts two to four times. Loops without compiled kernels (MI350X, GB10) wait for their
  host.
  Halo, which is the Trainer in most of what it runs, is faster than its stand-in, whose experts are a loop of 2024: its
  Qwen3-30B-A3B runs grouped products, priced 2.7 to 5.5 times too long.
- **Tensor parallelism in eager code.** Qwen3-32B over eight H100s at 2,048 tokens takes 1.9 times its price under
  DeepSpeed, 3 times under FSDP2 with DTensor, and 7 times under torchtitan. What operations on DTensors take on the
  host, timed with PyTorch 2.13, is charged to torchtitan without compilation now: 3.4 times its price are left. PyTorch
  2.9, which ran, takes 1.3 times that time where layers are recomputed.
- **Micro-batches of one** with experts over eight H200s or B200s took 1.7 times their price under Megatron-Core
  (paragao), those of two and more were within 14 %: launches of many short kernels. What the host takes for a layer
  with experts, 4.2 ms per pass by the tables behind the fits, is hidden under what the device has to do now, where it
  was a fifth of a millisecond on top. H200's are within 20 %; B200's, whose host takes some 3 ms, up to 37 % too high.
- **Selective recomputation that kept nothing.** torchtitan of that December compiled a layer with experts part by part,
  and selective checkpoints of PyTorch do not look into compiled parts: all of a layer ran again, and its input alone
  stayed, where every other product and what the exchanges of tokens bring was priced. Read as full recomputation,
  peaks of Qwen3-30B-A3B that were 156 to 343 % too high are 10 % too low to 5 % too high. Since March 2026 such a layer
  is one graph, and is priced so: PithTrain's baseline of July is 3 % off.
- **What was right.** Unsloth on RTX 5090, H100 and B200 is 10 % off, OpenEuroLLM's 32B on up to 4,096 GH200s 16 %, and
  their bf16 and 8-bit runs, stages and batches come in the order priced; NVFP4 on GB200 is within 10 %.
""",
    5: """Of the fifth round, written after the first look at its errors:

- **Read wrongly.** Notes said that models drop out activations, here and in the fourth round, and nobody read it: with
  the masks, and the passes over them, peaks of MI350X's benchmark that were 15 to 23 % too low are 18 % too low to 9 %
  too high, and its steps err by 19 % instead of 25. LoRA of Llama 70B on B200 runs one layer a chunk, for which the
  table had no column: 19 to 31 % too long, now 3 to 13. Two runs that died on L40S were of two micro-batches.
- **AutoModel's gradients wait whole**, in fp32, for the last micro-batch (`defer_fsdp_grad_sync`, on unless told
  otherwise). Peaks of runs with two were 18 to 47 % too low, and are 11 % too low to 4 % too high; both deaths on L40S
  are foreseen.
- **Packed samples.** Llama 8B on SQuAD packed to 16,384 tokens takes 0.69 to 0.74 of its price on B200, whatever the
  format: attention stays inside samples of a few hundred tokens, and is priced over all of a pack. A job could not say
  then how long its samples are; since `--sample-tokens` it can, and the source does not.
- **Megatron-Core's host.** 40 layers of 1.2B take 0.209 s with 8,192 tokens on one H100 and 0.207 s with 20,480 on
  four, 72 layers of 8.3B on eight 0.329 s: some 4 ms per layer, whatever the device has to do. These steps are 16 to
  27 % too low, those with more tokens per device within 11 %.
- **Experts that all ranks hold.** 64 of them on each of eight H100s cost 81 ms a step more than eight on each; 18 are
  priced. Launches of grouped products and hooks of parameters count by expert on a rank, the price by layer.
- **8-bit weights that nobody shards.** Llama 70B under Megatron's torch FSDP2 on MI325X peaks some 75 GiB above its
  price, on 16 GPUs as on 64: a byte for every parameter. ROCm's Transformer Engine keeps transposed 8-bit weights of
  every layer from one pass to the next unless that is switched off (Primus, `no_fp8_weight_transpose_cache`).
- **What is no measurement of a step.** The timer of LLMs from scratch runs through an evaluation, whose loaders start
  their workers anew, every 5 to 15 steps: prices of steps are 11 to 39 % lower.
- **Loops of their own.** LLMs from scratch takes the loss of 16-bit logits, in half of what plain PyTorch is priced to
  keep: eager peaks are 35 and 56 % too high, compiled ones within 13 %. TinyGPT's softmax is in fp32 under autocast and
  in 16 bits under DeepSpeed, whose stack has the fp32 softmax of Hugging Face's code: 23 % too low, 28 to 40 too high.
- **What was right.** Pipelines of 8.3B, interleaved or not, 10 %, peaks of Megatron-Core 6 %; four formats of NeMo on
  B200 9 %; Llama 7B and 70B and Mixtral on up to 64 MI325X 13 %; 8B on one GB300, B300 or H200 2 %, 16 on GH200.
""",
    6: """Of the sixth round, written after the first look at its errors:

- **Liger under Hugging Face's Trainer** had no description: Qwen3-0.6B on four H100s, H200s or L40S was priced 74 to
  125 % too slow, with norms, rotary embedding and gate of the Trainer's model code, pass by pass. Priced with those
  kernels, as under DeepSpeed (`--framework hf-trainer-liger`), it is within 2 % on all three.
- **Autocast in plain PyTorch.** Loops of one's own run under `torch.autocast` on fp32 weights, and were priced as
  16-bit weights beside a master copy: no casts kept, no fp32 stream, no fp32 softmax. Described so
  (`--framework pytorch-autocast`), peaks of T4s that were 9 to 25 % too low are between 8 % too low and 15 % too high,
  and the fifth round's TinyGPT on A10 is 5 % too low instead of 23; steps on T4s err by 9 % instead of 12. A loop on
  H100 was 2 % off and is 4, 12 where it recomputes; on RTX 4090 48 and 52 % too slow, blind 45.
- **Python of its own.** CS336's course work writes norms, attention and AdamW out in PyTorch, einsum by einsum. In fp32
  its steps are 11 to 42 % too low, the less the longer; under autocast 49 to 65 %: some 2.6 ms per layer of host time
  without the update, on H100 as well, whatever the size, and an update that passes over the weights a dozen times. XL's
  deaths at 40 GB are foreseen at 512 tokens now, not at 256.
- **GeForce boards.** GPT-2 on RTX 5090 is priced 25 to 33 % too slow by two publishers, fine-tuning in the fourth round
  by 10 to 14 %; RTX 4090 7 to 27 % compiled. One of them timed a product at 235 TFLOP/s on the 5090, above the 209.5
  rated, so that it clocked higher. Attention is priced by timings of professional boards alone, whose rate is not
  halved; that theirs are a larger share of it, as products are, would explain part of the rest, and is not measured.
  Not mended: RTX PRO 6000, L40S, L40, A40 and A6000 are within 9 %.
- **Boards of one host.** RTX 6000 Ada takes 1.35 times its price and H100 NVL 1.45 times, more than an H100 PCIe beside
  it: limits of power or clock would explain it, which the page does not print.
- **Compiled, and yet eager's peak.** One loop's compiled peaks, 26 to 39 % too low, are those of its eager runs: the
  source of its loss could not be read. Another's, of the same model, are within 10 %.
- **What was right.** Twelve of fifteen kinds of GPU, from L4 to B200, 19 %, peaks 3 %; eight A100s 8 %, two 4090s 7 %,
  llm.c 5 %; adapters on a GB10 9 %, their peaks 6 %; TinyLlama's peaks on an RTX 3090 4 %.
""",
    7: """Of the seventh round, written after the first look at its errors:

- **What was wrong, and is mended.** PyTorch's DDP reduces gradients in buckets of its own, which hold all of them a
  second time unless it is asked for views (`gradient_as_bucket_view` of torch/nn/parallel/distributed.py): a model of
  190M in fp32 takes 728 MB more on two RTX 3090s than on one, as priced now. Peaks of replicas in the third to sixth
  rounds that were 2 to 15 % too low are within 5 %, Llama-7B's here 2 % too low instead of 18; three that were 2, 5
  and 12 % too high are 12, 13 and 14. No table behind the fits has such a peak.
- **Kernels that were not read.** flash-attn's and xformers' kernels for norms, rotary embedding and gate were in the
  notes of TinyLlama's runs under DeepSpeed, but its stack was Hugging Face's model code. Read as Liger's, whose like
  they are, peaks are 3 % too low to 17 % too high instead of 7 to 51, with buckets smaller than DeepSpeed's defaults.
  Steps are 12 to 59 % too low, where they had been 49 too low to 31 too high: kernels priced too slow hid what is
  priced too fast besides. Llama-7B under ZeRO-2 takes twice its price on eight A100s, which its configuration does not
  explain.
- **Clocks that cost time.** GPT-2 XL over four V100s was timed inside a counter of FLOPs that intercepts every
  operation in Python: 0.75 s for 48 layers, be the batch one or seven. It is priced 41 to 72 % too low, the more the
  less the device has to do. Its peaks, up to 43 % too low, grow by some 48 widths per layer and token where 28 are
  priced: its GELU of seven operations, as in Hugging Face's GPT-2, is one for us.
- **MI300X in the autumn of 2024.** Transformer Engine and compiled PyTorch take 1.4 to 2.5 times their prices on
  MI300X, the same scripts on H200s 0.95 to 1.07 times: it is ROCm's kernels of then, as the issues themselves say.
- **Losses in 16 bits.** Logits that DeepSpeed's fp16 engine hands to a loss of one's own are never fp32. Priced as four
  fp32 copies, GPT-2 XL at 40 sequences takes twice its peak; so do, in part, pipelined stages on MI100s, whose loss
  drops padding besides. Not modelled.
- **Deaths that were not foreseen.** Llama-3-70B in 16 bits over eight H100s is priced 1 GB short of the board.
  Gemma-2-27B is priced 30 GB short: LitGPT works out its capped scores operation by operation.
- **Python of its own**, once more: course work on RTX 3090s takes 2.3 and 2.7 times its price, and has its peaks.
- **Not explained.** NeMo's 3B of 48 layers of 2,048, 25 % too low at every micro-batch, with everything recomputed and
  nothing overlapped; flash-linear-attention's Transformer on an H100 of unprinted form, 31 to 36 %; GPT-2 XL in 8 bits
  on one H100, 26 %; zigzag rings over eight A100s, 25 and 36 % at 64K and 128K tokens, and right at 512K; rings of
  L40S, of an unprinted network; pipelined stages on MI100s, 27 to 61 %.
- **What was right.** 235B of experts on 256 H800s 3 to 19 %, by four plans; torch.compile under FSDP2 4 %, in 8 bits 3
  and 16, on two nodes 11, peaks 9 %; TinyLlama with fused kernels on RTX 3090, A6000 and A100 2 to 7 %, but 27 too
  high on an RTX 4090, 17 and 24 too low where A6000s reduce over PCIe; full fine-tuning of Qwen3.5-9B on eight B200s
  2 %, of Llama-2-7B at 64K tokens 7.
""",
    8: """Of the eighth round, written after the first look at its errors:

- **AMD.** Steps on MI300X are priced within 9 % in the mean: Primus in BF16 and FP8 with models whole on every device
  0 to 12 % too low; AXLearn's 70B in JAX within 5 % where FSDP alone shards it, on one node and on four, 7 too low
  beside tensor parallelism of two and 19 of four. In two stages of 2,048 tokens Primus is 13 and 19 % too low, some of
  which its slow first steps are: Llama's settle 3 % below their mean. torchtitan on 64 dies of Frontier, not compiled,
  is 24 % too low.
- **Weights in 8 bits that were not priced, and are.** Peaks of Primus in FP8 were 13 and 14 % too low. Megatron-Core is
  priced for `--fp8-param-gather`, which Primus leaves off (`fp8_param_gather: false` in its trainer_base.yaml), so that
  Transformer Engine's copies, 2 bytes a weight, are there besides. Priced so (`--framework
  megatron-core-16bit-weights`) they are 2 and 3 % too low, Llama-2-7B's of the fifth round on MI325X 4 instead of 14.
- **And under FSDP2 nobody shards them.** Llama-2-70B and Llama-3.1-70B by Megatron's FSDP2 on MI325X, also of the fifth
  round, were 33 and 44 % too low: copies in one layout (`no_fp8_weight_transpose_cache` of Primus's configuration) of
  all 68 billion weights lie on every device. Priced so (`--framework fsdp-transformer-engine`) 4 and 8 %.
- **Gradients in 16 bits that are not.** NVIDIA's performance recipes reduce gradients in 16 bits, those of its
  libraries in fp32 (`grad_reduce_in_fp32=True` in Megatron-Bridge's `qwen3_8b_pretrain_config` and NeMo's
  `llama31_8b`). Rows of Megatron-Bridge and NeMo that name such a recipe are read so: peaks of Qwen3-8B on H200 and
  B300, 20 and 16 % too low, are 6 and 8, steps within 2. A death on an A10G of the fourth round is foreseen now; its
  other figures there are further off, peaks by 10 % instead of 9, steps by 17 instead of 13.
- **Not what it says.** NeMo's Llama-3.1-8B on eight H100s was printed as two replicas. Its script changes two degrees
  of a recipe whose context parallelism of two stays, so that there is one, and twice the micro-batches. What it printed
  as its peak is allocated between steps; what was reserved is priced 1 % too high. Read so, it still takes 1.6 times
  its price, unexplained: tensor parallelism of four in FP8 without sequence parallelism.
- **Optimizers of one's own.** DANA's 26 steps on four H100s take 2.3 to 7 times their prices. Its update works through
  every tensor in Python, in some sixty passes over fp32 states where fused AdamW makes one (dana_star_mk4.py), on
  tensors that FSDP2 has made distributed ones: some 0.24 s per billion weights of a device and, whatever the size, 0.15
  to 0.3 s. FSDP2 gathers its weights in fp32 besides, and its loss reads the logits once more. Not modelled. Its peaks,
  of three states, were not judged; three of its four deaths were not foreseen, which that state explains in part.
- **Hosts and exchanges.** Qwen3-30B in experts over two and four nodes of H100s takes 1.7 to 2.0 times its price, in
  micro-batches of one sequence or of four: of the 18 ms that a layer takes for one, 8 are priced for the host.
  Qwen3-235B on B300s, whose hosts are newer, is right within 2 % there; which processor a node has is not part of the
  catalogue. With four sequences it is 11 % too low where experts span two nodes, and 43 where they span four, as if
  exchanges over EFA reached 30 GB/s a GPU of 100.
- **Not explained.** Qwen3-32B in torchtitan, not compiled, eight ways tensor-parallel: 37 % too low whatever the batch,
  with peaks within 4 %. DTensor copies what it gathers along the sequence, which would be a sixth of that.
- **What was right.** Qwen3-30B on eight B200s, in MXFP8 and BF16, 5 %; Qwen3-8B on two nodes 1 %.
""",
    9: """Of the ninth round, written after the first look at its errors:

- **A loss that takes the output layer in.** Liger's cuts its tokens into as many chunks as the vocabulary is wider than
  the hidden state, and each of them reads the whole output layer twice and writes its gradient: 56 times 0.5 GB for
  Llama 3.2 1B with 14 sequences of 1,024 tokens. That was not priced, and is (`costmodels/chunked_loss.py`): its step
  on one H100 was 41 % too low and is 32; Qwen3-0.6B's of the sixth round are within 4 % as before; LoRA of Llama-3.1-8B
  on an H100, of the second, was 3 % too low and is 11 too high.
- **One fp32 copy of the logits too many.** DeepSpeed with Hugging Face's models of before transformers 4.49 was priced
  for four fp32 copies and the 16-bit logits, which its code has no use for at once (float(), the shifted copy, the
  log-probabilities; backward these and two gradients): Llama 3 8B, whose vocabulary is wide, peaked up to 31 % above
  what was measured, with everything recomputed, and is within 10 %.
- **What ZeRO-3 keeps without recomputation.** Its peaks with one and two sequences are 26 and 19 % too low: some 13 GiB
  that its weights in 16 bits would take, were they kept for the backward pass once gathered, as they are where
  functional.linear is not DeepSpeed's (zero3_linear_wrap, of zero.Init alone). Not modelled: how a model was loaded is
  not part of a question.
- **Logits of Megatron-Core.** Four runs with a vocabulary of 128,256 beside a hidden state of 512 peak at 0.72 to 0.86
  of their prices, as one fp32 copy would have it that becomes softmax and gradient in place, and as its code has it
  unless the loss is fused (cross_entropy.py). Two are priced, which other runs that do not say whether it was fused
  agree with better (Leonardo's within 1 %, which would be 7 below).
- **Model code of a book.** GPT-2 as "Build a Large Language Model (From Scratch)" writes it, norms, GELU, attention
  and its dropout operation by operation, takes 1.5 to 2.1 times its price, as did the fifth round's. Not modelled.
- **Attention within samples.** mistral-finetune packs samples of some 1,200 tokens, each of which attends to itself
  alone; priced for whole sequences of 8,192 it is 33 % too long, of 15,000 on a V100 7.
- **Not explained.** Llama 3.2 1B in 16 bits on one H100 of 64 GB, 17 to 31 % too low where fp32 is 4 (rates are over
  whole runs of two to six minutes, start-up included); gpt-oss-20b on MI355X, 22 to 28; 64 experts over eight ranks of
  A100s, 59, where over four they are right within 1; padded experts one after the other, 59; a GB10, 17 to 25, as
  others before; HYBRID_SHARD over four machines of 50 Gb/s, 21, where FULL_SHARD is 10 too long.
- **torch.compile under the Trainer** had no description: one and two nodes of it were 24 and 15 % too high. With the
  norms, rotary embeddings, activations and loss that PyTorch's FSDP is priced with when compiled (`--framework
  hf-trainer-compiled`) they are 4 and 10 too low.
- **What was right.** Megatron-Core on 4090s of 24 and 48 GB, one machine and two over 25 Gb/s, 2 to 13 %; torchtitan,
  not compiled, on GB200 and B200 6 to 15 %, its peaks within 3; DDP of Hugging Face's Trainer on A100s 1 to 11 %;
  Leonardo's 252 boards 10 %, their peak within 1; nanoGPT on an A100 in fp32 and compiled 3 and 6.
- **Fits that read the rounds.** Tried on this day and left: the stacks fitted on these tables besides, round one to
  seven, each publisher judged by the others. Steps of pre-training would be 17 % off instead of 19, of fine-tuning 23
  instead of 25, of stacks that stand in 29 instead of 20, those of [accuracy.md](accuracy.md) 13 instead of 8: a run
  that is slow for a reason of its own bends parameters that mean something, collectives by a factor of four. Their
  bias is not one of any framework; it widens intervals instead.
""",
}
