"""Start and bounds of every fitted parameter of the kernel price list, and what is fitted along."""

from costmodels.calibration.robust import Range

RELEVANT_S = 20e-6  # training kernels are longer; shorter rows weigh less and are not judged by
FLOOR_S = 3e-6  # of a kernel, where the rows hold launch overhead only: as A100, H100 and B200 show elsewhere

GEMM = {
    "floor_s": Range(start=4e-6, low=5e-7, high=3e-5),
    "max_efficiency": Range(start=0.8, low=0.2, high=1.1),
    "k_half": Range(start=150, low=1, high=2000),
    "tile_exponent": Range(start=0.15, low=0.0, high=0.6),
    "wave_quantisation": Range(start=0.3, low=0.0, high=1.0),
    "memory_efficiency": Range(start=0.8, low=0.2, high=1.1),
    "cache_speed": Range(start=2.0, low=1.0, high=6.0),
    "cache_share": Range(start=0.7, low=0.2, high=2.0),
    "sharpness": Range(start=3.0, low=1.0, high=8.0),
}
GROUPED = GEMM | {
    "max_efficiency": Range(start=0.8, low=0.2, high=0.9),
    "k_half": Range(start=150, low=1, high=1000),
}
# Of products in narrow formats: what quantises their input along.
QUANTISE = {
    "quantise_floor_s": Range(start=5e-6, low=1e-7, high=3e-5),
    "quantise_rate": Range(start=4e9, low=2e8, high=1e11),
    "quantise_bytes": Range(start=5.0, low=0.0, high=10.0),
}
# Of products whose weights are known to stay in the cache or not: its rate, bytes per second of a multiprocessor.
REPLAY = {"cache_rate": Range(start=3e10, low=2e9, high=2e11)}
# Of single products in narrow formats: bytes per second at which operands stream into a multiprocessor.
STREAM = {"stream_rate": Range(start=8e10, low=1e10, high=1e12)}
ATTENTION = {
    "floor_s": Range(start=6e-6, low=5e-7, high=5e-5),
    "efficiency_64": Range(start=0.5, low=0.05, high=0.95),
    "efficiency_128": Range(start=0.6, low=0.05, high=0.95),
    "efficiency_256": Range(start=0.55, low=0.05, high=0.95),
    "kv_half": Range(start=150, low=1, high=3000),
    "wave_quantisation": Range(start=0.5, low=0.0, high=1.0),
    "memory_efficiency": Range(start=0.7, low=0.2, high=1.1),
    "sharpness": Range(start=2.0, low=1.0, high=8.0),
}
MEMORY = {
    "floor_s": Range(start=3e-6, low=5e-7, high=6e-5),
    "memory_efficiency": Range(start=0.8, low=0.1, high=1.1),
}
BY_OP = {
    "gemm": GEMM,
    "grouped_gemm": GROUPED,
    "attention_forward": ATTENTION,
    "attention_backward": ATTENTION,
    "memory": MEMORY,
}
# Work that a row's time holds and the price of the call does not: the launch by an eager host, an inference
# engine's cache update, the permutation round an expert layer.
NUISANCES = ("host_s", "extra_passes")
HOST = Range(start=2e-5, low=2e-6, high=5.7e-5)  # 12-57 us are reported
EXTRA = Range(start=1.0, low=0.0, high=10.0)
GLUE_EFFICIENCY = 0.8  # of the memory bandwidth, for traffic that is timed along but priced elsewhere
