"""Devices that share measured efficiencies: one chip, or one way of limiting it.

``half-rate`` cards multiply 16-bit numbers with 32-bit sums at half the chip's rate; the catalogue states that
rate, of which they reach far more than the professional cards of the same chip, limited by power, do of theirs.
"""

FAMILIES = {
    "A100-SXM-80GB": "ga100",
    "A100-SXM-40GB": "ga100",
    "A100-PCIe-80GB": "ga100",
    "A100-PCIe-40GB": "ga100",
    "A800-SXM-80GB": "ga100",
    "A30": "ga100",
    "A40": "ga102",
    "RTX-A6000": "ga102",
    "A10": "ga102",
    "RTX-3060-12GB": "half-rate",
    "RTX-3080": "half-rate",
    "RTX-3090": "half-rate",
    "RTX-3090-Ti": "half-rate",
    "A10G": "half-rate",
    "RTX-4060-Ti-16GB": "half-rate",
    "RTX-4080": "half-rate",
    "RTX-4090": "half-rate",
    "RTX-5060-Ti-16GB": "half-rate",
    "RTX-5070-Ti": "half-rate",
    "RTX-5080": "half-rate",
    "RTX-5090": "half-rate",
    "RTX-2080-Ti": "half-rate",
    "L40S": "ad102",
    "RTX-6000-Ada": "ad102",
    "H100-SXM-80GB": "gh100",
    "H100-SXM-64GB": "gh100",
    "H100-SXM-96GB": "gh100",
    "H100-PCIe-80GB": "gh100",
    "H100-NVL-94GB": "gh100",
    "H800-SXM-80GB": "gh100",
    "H20-SXM-96GB": "gh100",
    "H20-SXM-141GB": "gh100",
    "H200-SXM-141GB": "gh100",
    "GH200-96GB": "gh100",
    "B200-SXM-180GB": "gb100",
    "B300-SXM-288GB": "gb100",
    "GB200-186GB": "gb100",
    "GB300-288GB": "gb100",
    "V100-SXM-16GB": "gv100",
    "V100-SXM-32GB": "gv100",
    "V100-PCIe-16GB": "gv100",
    "V100-PCIe-32GB": "gv100",
    "T4": "tu104",
    "MI250-GCD": "aldebaran",
    "MI250X-GCD": "aldebaran",
    "MI210": "aldebaran",
    "MI300X": "gfx942",
    "MI325X": "gfx942",
    "MI308X": "mi308x",  # the same dies with most units off, and so without the power limit that holds MI300X back
    "MI350X": "gfx942",
    "MI355X": "gfx942",
}
# Measured on another architecture than their own.
BORROWED = frozenset(
    {
        "RTX-2080-Ti",
        "RTX-4060-Ti-16GB",
        "RTX-4080",
        "RTX-4090",
        "RTX-5060-Ti-16GB",
        "RTX-5070-Ti",
        "RTX-5080",
        "RTX-5090",
        "MI350X",
        "MI355X",
    }
)
