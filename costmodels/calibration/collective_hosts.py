"""All-reduces of hosts whose cards meet over PCIe, from published runs of nccl-tests, and which of them are fitted.

GeForce cards have no peer access: NCCL passes their messages through host memory, where the sender writes and the
receiver reads. A patched driver (tinygrad/open-gpu-kernel-modules and its forks) gives it to them, so that one page
shows one host with and without.

Fitted is that host (two sockets, eight cards on PCIe 4, no switch), the one log with all its sizes that names its
processors, memory and topology. Everything else judges: other generations of PCIe, fewer cards, switches, virtual
machines and a host that is badly set up. The choice is by what a log states; their bandwidths, and how these compare
with the rate of a line, had been read by then.

Times are the out-of-place ones; where a log prints bus bandwidths only, they follow from the size.

Addresses: https://blog.chlc.cc/p/rtx4090-gpudirect-p2p-unlocked; on GitHub marconetto/azadventures at 232ad39
(chapter18/README.md), Anthony-Hoo/Anthony-Hoo.github.io at 37e805e
(en/posts/AutoDL_Multi-GPU_Interconnection_Test.md), tinygrad/open-gpu-kernel-modules at 815bf45 (README.md) and its
issues 17 and 36, NVIDIA/nccl issue 1639, NVIDIA/nccl-tests issue 307. Of smolix/d2l-neu and aikitoria's table the
address was not recorded.
"""

from dataclasses import dataclass

ONE_HOST = "blog.chlc.cc, RTX4090 GPUDirect P2P Unlocked (2 x EPYC 7542)"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLog:
    """All-reduces of one group of cards on one host.

    Attributes:
        source: Where they were published, and the host if a name does not say.
        link: Catalogue name of what joins the cards.
        ranks: Cards that take part.
        times_us: Size in bytes and microseconds, one pair a row.
    """

    source: str
    link: str
    ranks: int
    times_us: tuple[tuple[float, float], ...]


def _at_rates(ranks: int, *rates: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Sizes and times of all-reduces of which the bus bandwidth in GB/s is printed."""
    return tuple((size, 2 * (ranks - 1) / ranks * size / gb_per_s / 1e3) for size, gb_per_s in rates)


FITTED = (
    HostLog(
        source=f"{ONE_HOST}, driver of the vendor",
        link="pcie4-no-p2p",
        ranks=8,
        times_us=(
            (2.0**10, 44.04), (2.0**12, 43.18), (2.0**14, 43.10), (2.0**15, 44.18), (2.0**16, 45.66),
            (2.0**17, 67.27), (2.0**18, 124.8), (2.0**19, 196.9), (2.0**20, 222.8), (2.0**21, 373.4),
            (2.0**22, 580.8), (2.0**23, 1041.8), (2.0**24, 1972.8), (2.0**25, 3905.6), (2.0**26, 7907.1),
            (2.0**27, 16253.0),
        ),
    ),
    HostLog(
        source=f"{ONE_HOST}, patched driver",
        link="pcie4",
        ranks=8,
        times_us=(
            (2.0**10, 41.70), (2.0**12, 42.35), (2.0**14, 43.19), (2.0**15, 42.17), (2.0**16, 47.58),
            (2.0**17, 72.03), (2.0**18, 119.7), (2.0**19, 166.6), (2.0**20, 216.1), (2.0**21, 321.5),
            (2.0**22, 478.7), (2.0**23, 798.6), (2.0**24, 1472.8), (2.0**25, 2870.3), (2.0**26, 5705.0),
            (2.0**27, 11382.0),
        ),
    ),
)  # fmt: skip
JUDGED = (
    # ---- with peer access ------------------------------------------------------------------------------
    HostLog(
        source="tinygrad/open-gpu-kernel-modules README (6 x RTX 4090, one socket)",
        link="pcie4",
        ranks=6,
        times_us=((2.0**25, 2275.1),),
    ),
    HostLog(
        source="tinygrad/open-gpu-kernel-modules issue 17 (5 x RTX 4090, one socket)",
        link="pcie4",
        ranks=5,
        times_us=((2.0**25, 2174.8),),
    ),
    HostLog(
        source="tinygrad/open-gpu-kernel-modules issue 36 (4 x RTX 4090, EPYC 7773X)",
        link="pcie4",
        ranks=4,
        times_us=((2.0**28, 15654.0), (2.0**29, 31194.0), (2.0**30, 62077.0)),
    ),
    HostLog(
        source="aikitoria/open-gpu-kernel-modules README (8 x RTX 5090, 2 x EPYC 9575F)",
        link="pcie5",
        ranks=8,
        times_us=(
            (2.0**10, 24.66), (2.0**14, 38.06), (2.0**16, 40.96), (2.0**18, 45.87), (2.0**20, 74.74),
            (2.0**22, 176.93), (2.0**24, 646.48), (2.0**26, 2585.56), (2.0**27, 5355.16),
        ),
    ),
    # ---- through host memory ---------------------------------------------------------------------------
    HostLog(
        source="NVIDIA/nccl issue 1639 (RTX 5090, 2 x Xeon 8480+)",
        link="pcie5-no-p2p",
        ranks=8,
        times_us=_at_rates(8, (2.0**32, 28.0)),
    ),
    HostLog(
        source="NVIDIA/nccl issue 1639 (RTX 5090, 2 x Xeon 8480+)",
        link="pcie5-no-p2p",
        ranks=4,
        times_us=_at_rates(4, (2.0**32, 35.0)),
    ),
    HostLog(
        source="marconetto/azadventures chapter 18 (2 x V100 PCIe in a virtual machine, NCCL_P2P_LEVEL=NVL)",
        link="pcie3-no-p2p",
        ranks=2,
        times_us=(
            (2.0**10, 11.58), (2.0**14, 15.94), (2.0**16, 34.72), (2.0**18, 71.13), (2.0**20, 187.0),
            (2.0**22, 690.1), (2.0**24, 2506.6), (2.0**26, 9966.8), (2.0**30, 159411.0),
        ),
    ),
    # Two cards behind one switch: both write and read over its one link to the processor.
    HostLog(
        source="Anthony-Hoo.github.io, AutoDL (2 x RTX 2080 Ti behind one switch)",
        link="pcie3-no-p2p-half",
        ranks=2,
        times_us=(
            (2.0**10, 12.10), (2.0**14, 17.11), (2.0**16, 40.10), (2.0**18, 86.04), (2.0**20, 279.5),
            (2.0**22, 1065.1), (2.0**24, 4209.7), (2.0**26, 16801.0), (2.0**30, 268588.0),
        ),
    ),
    # NCCL's log of the topology: "PCI/0-4b000" at 24 GB/s holds four cards, one like it the other four. The figure is
    # from a note that quotes the issue (smolix/d2l-neu, investigation of NCCL on 4 x RTX 4090).
    HostLog(
        source="NVIDIA/nccl-tests issue 307 (8 x RTX 4090 behind two switches)",
        link="pcie4-no-p2p-quarter",
        ranks=8,
        times_us=_at_rates(8, (2.0**30, 5.0)),
    ),
    # One NUMA domain of a 32-core EPYC and an IOMMU that translates; its copy engines reach 20 GB/s.
    HostLog(
        source="smolix/d2l-neu, investigation of NCCL (4 x RTX 4090, EPYC 7502, NPS1, IOMMU on)",
        link="pcie4-no-p2p",
        ranks=4,
        times_us=_at_rates(4, (2.0**25, 2.13), (2.0**28, 2.17)),
    ),
    HostLog(
        source="smolix/d2l-neu, investigation of NCCL (4 x RTX 4090, EPYC 7502, NPS1, IOMMU on)",
        link="pcie4-no-p2p",
        ranks=2,
        times_us=_at_rates(2, (2.0**25, 2.22), (2.0**28, 2.24)),
    ),
)  # fmt: skip
