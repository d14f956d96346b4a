"""The words of ``docs/expert-plans.md``; figures in them are of the day they were written."""

INTRODUCTION = """# Plans that NVIDIA tuned

Written by `make expert-plans`; do not edit. Megatron-Bridge publishes presets of performance recipes: a plan for every
model, GPU and format, tuned by the GPUs' own maker. Nobody measured most of them in public, but each is a claim: the
framework takes it, it fits, and its authors knew none that is much faster. {rows} of them
(`planner/validate/data/expert_plans.csv`, each under its address) were typed before any was priced, but for one column,
`tensor_overlap`, which was added after a trial and before anything was written down. What was said *first* was written
once, with its commit (`expert_plans_first.csv`); causes were mended afterwards, from the code of the frameworks, and
nothing is fitted on any of them.

Each is asked twice: its plan as `planner estimate` prices one whose parts are given, and the same model, GPUs, batch,
format and stack as `planner plan` answers it, which may recompute named modules where the recipe does. *Live* means to
fit and to run out of memory in less than a fifth of runs. *Rank* is the place of the expert's plan among all that are
ranked. Eight presets move activations of some layers to the host, which the planner says of all layers or of none: they
count as accepted or not, and not among the {said} whose memory and step are judged. Kimi K2 is trained with Muon, which
the planner has not: asked with an optimizer of as many moments. Presets of Nemotron-H are left out: no layer of its
kind was priced when these were typed; so are those of MXFP8 on H100, which has no such units.
"""
FOUND = """## What the errors were

- **Refused wrongly.** Llama-3.1-405B on 16 stages of 8 chunks counts embedding and head as a layer each, so that the
  first chunk is the embedding alone, and the last the head. Megatron-Core builds that (`num_layers_to_build >= 0`); the
  rule wanted a layer in every chunk. A second rule counted the layers between two fixed ends where there is no stage
  between them (Qwen3-Next on two stages). Both are mended, and exports lay such chunks out.
- **NVFP4** was ranked with tensor-parallel traffic under products. Transformer Engine refuses that ("Unsupported
  quantizer for Userbuffers"), and the recipes turn it off. Not ranked any more: the ratios of three presets fall from
  1.21, 1.35 and 1.36 to 1.17, 1.22 and 1.21.
- **FP8 weights on Blackwell** were taken for 2 bytes, as on Hopper, where a transposed copy is needed. Blackwell's
  units take any layout, and weights that live in 8 bits are 1 byte: Llama-3.1-405B on 256 GB200 fits, as NVIDIA's
  published run does.
- **Four that do not fit.** Llama-3.1-405B on 128 B300 (three presets, 345 to 405 GiB of 268) and in bf16 on 256 GB200
  (194 of 184) are in none of NVIDIA's tables of measured runs (its performance summaries of 25.09 to 26.08). On B300
  tensor parallelism 2 with eight chunks keeps the activations of all eight micro-batches, 2 GB a layer in bf16 without
  recomputation: 250 GiB by arithmetic, beside 130 GiB of weights, gradients and states.
- **At risk.** Of those that fit, nine are told to die in 20 to 40 % of runs, among them MXFP8 of Llama-3-70B on four
  stages, Qwen3 in bf16 with large micro-batches on B300 and GB300, and Qwen3-235B in bf16 on H100. Experts fill GPUs to
  the brim; in all, seven deaths are told among 143 plans that fit. One of the nine, adapters on GB200, NVIDIA has since
  split over two stages.
- **Faster plans are told** mostly for mixtures with micro-batches of one sequence. In eager code the host then takes as
  long as the kernels, so larger micro-batches win, and experts within a node where the recipe sends tokens across the
  network (gpt-oss, Kimi K2, DeepSeek-V3 and Qwen3 on H100 and B200). NVIDIA moved the same way in several (below).
  Whether full recomputation with micro-batches of eight sequences and no expert parallelism at all, which is what is
  told of Qwen3-235B on H100 and B200, is 1.2 to 1.5 times as fast, nobody has published.
- **Gathered in 16 bits.** Transformer Engine gathers tensor-parallel inputs in the format of the products, which is
  priced now; stacks were fitted again since, and attention's prices are other ones than at first.
- **Left.** NVFP4 of large dense models: recomputation that NVIDIA dropped in its next version is a part of it in two
  presets. Captured attention and routing without DeepEP's kernels (gpt-oss on GB300) are no stack here. That a 1F1B
  which hides the exchange gains a tenth on B300, where NVIDIA turned it off, rests on a share that is assumed.
  Qwen3-Next's sequence length is that of one version of its script; another has 8,192.
"""
REVISED = """## What NVIDIA changed later

Presets change between releases while model, GPUs and batch stay (`planner/validate/data/expert_revisions.csv`; the last
release before whole iterations were captured). A change is advice, too: is the later plan faster here? Figures are the
earlier plan's step over the later's, both on the stack of the later, so that layouts are compared with layouts; risks
are those of running out of memory. They were written first in `expert_revisions_first.csv`.
"""
