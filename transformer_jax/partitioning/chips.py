"""Published facts of accelerators: the memory and the peaks of one chip.

Numbers are of a whole chip and dense (no structured sparsity). The rate of links is that of all
links of a chip together, in one direction: most vendors print the sum of both directions. The
memory of a GPU is what its driver reports, where XLA describes it; of the V100 with 32 GB and the
L4 it is the vendor's number:
https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs
"""

import dataclasses

GB, GIB, TERA = 1e9, 2.0**30, 1e12
TPU_DOCS = 'https://docs.cloud.google.com/tpu/docs'
TPU_V2_V3 = 'https://doi.org/10.1145/3360307 (Jouppi et al. 2020, table 3)'
NVIDIA = 'https://www.nvidia.com/en-us/data-center'


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
        name: as in --topology.
        kinds: what `jax.Device.device_kind` says, one text or several.
        memory_bytes: HBM of the chip.
        memory_rate: bytes per second between HBM and cores.
        bfloat16: the peak of matrix products of bfloat16, in FLOP/s.
        float32: the peak of float32 arrays at JAX's default precision, in FLOP/s: a TPU multiplies
            them in one pass of bfloat16, a GPU in TF32 where it has it.
        link_rate: bytes per second that the chip can send to others of its slice or host.
        source: where the numbers are published.
        devices: how many devices JAX sees in a chip; they share memory and peaks equally.
    """

    name: str
    kinds: tuple[str, ...]
    memory_bytes: float
    memory_rate: float
    bfloat16: float
    float32: float
    link_rate: float
    source: str
    devices: int = 1

    def peak_flops(self, dtype: str) -> float:
        """Return the peak of one device in FLOP/s for 'bfloat16' or 'float32' activations."""
        return {'bfloat16': self.bfloat16, 'float32': self.float32}[dtype] / self.devices

    @property
    def device_memory(self) -> float:
        """Bytes of HBM of one device."""
        return self.memory_bytes / self.devices

    @property
    def device_memory_rate(self) -> float:
        """Bytes per second between the HBM and the cores of one device."""
        return self.memory_rate / self.devices

    @property
    def device_link_rate(self) -> float:
        """Bytes per second that one device can send."""
        return self.link_rate / self.devices


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip of a device; None for a CPU and for what CHIPS does not have.

    Args:
        device_kind: `jax.Device.device_kind`.
    """
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


# JAX shows a v4 or v5p chip, which has two cores, as one device (megacore); v2, v3 and v7 as two.
_ROWS = (
    Chip(
        name='v2',
        kinds=('TPU v2',),
        memory_bytes=16 * GIB,
        memory_rate=700 * GB,
        bfloat16=46 * TERA,
        float32=46 * TERA,
        link_rate=4 * 62 * GB,  # 4 links of 496 Gbit/s
        source=TPU_V2_V3,
        devices=2,
    ),
    Chip(
        name='v3',
        kinds=('TPU v3',),
        memory_bytes=32 * GIB,
        memory_rate=900 * GB,
        bfloat16=123 * TERA,
        float32=123 * TERA,
        link_rate=4 * 82 * GB,  # 4 links of 656 Gbit/s
        source=f'{TPU_DOCS}/v3; links: {TPU_V2_V3}',
        devices=2,
    ),
    Chip(
        name='v4',
        kinds=('TPU v4',),
        memory_bytes=32 * GIB,
        memory_rate=1200 * GB,
        bfloat16=275 * TERA,
        float32=275 * TERA,
        link_rate=6 * 50 * GB,
        source=f'{TPU_DOCS}/v4; links: https://doi.org/10.1145/3579371.3589350, table 4',
    ),
    Chip(
        name='v5e',
        kinds=('TPU v5 lite', 'TPU v5e'),
        memory_bytes=16 * GIB,
        memory_rate=819 * GB,
        bfloat16=197 * TERA,
        float32=197 * TERA,
        link_rate=200 * GB,
        source=f'{TPU_DOCS}/v5e',
    ),
    Chip(
        name='v5p',
        kinds=('TPU v5', 'TPU v5p'),
        memory_bytes=95 * GIB,
        memory_rate=2765 * GB,
        bfloat16=459 * TERA,
        float32=459 * TERA,
        link_rate=600 * GB,
        source=f'{TPU_DOCS}/v5p',
    ),
    Chip(
        name='v6e',
        kinds=('TPU v6 lite', 'TPU v6e'),
        memory_bytes=32 * GIB,
        memory_rate=1638 * GB,
        bfloat16=918 * TERA,
        float32=918 * TERA,
        link_rate=400 * GB,
        source=f'{TPU_DOCS}/v6e',
    ),
    Chip(
        name='v7',
        kinds=('TPU7x', 'TPU v7'),
        memory_bytes=192 * GIB,
        memory_rate=7380 * GB,
        bfloat16=2307 * TERA,
        float32=2307 * TERA,
        link_rate=600 * GB,
        source=f'{TPU_DOCS}/tpu7x',
        devices=2,
    ),
    Chip(
        name='v100',
        kinds=('Tesla V100-SXM2-32GB', 'Tesla V100-SXM3-32GB'),
        memory_bytes=32 * GB,
        memory_rate=900 * GB,
        bfloat16=15.7 * TERA,  # No bfloat16 in its tensor cores: computed in float32.
        float32=15.7 * TERA,
        link_rate=150 * GB,
        source=f'{NVIDIA}/v100/',
    ),
    Chip(
        name='v100-16gb',
        kinds=('Tesla V100-SXM2-16GB',),
        memory_bytes=16_935_682_048,
        memory_rate=900 * GB,
        bfloat16=15.7 * TERA,
        float32=15.7 * TERA,
        link_rate=150 * GB,
        source=f'{NVIDIA}/v100/',
    ),
    Chip(
        name='a100',
        kinds=('NVIDIA A100-SXM4-80GB', 'A100-SXM4-80GB'),
        memory_bytes=85_100_068_864,
        memory_rate=2039 * GB,
        bfloat16=312 * TERA,
        float32=156 * TERA,
        link_rate=300 * GB,
        source=f'{NVIDIA}/a100/',
    ),
    Chip(
        name='a100-40gb',
        kinds=('NVIDIA A100-SXM4-40GB', 'A100-SXM4-40GB'),
        memory_bytes=42_331_013_120,
        memory_rate=1555 * GB,
        bfloat16=312 * TERA,
        float32=156 * TERA,
        link_rate=300 * GB,
        source=f'{NVIDIA}/a100/',
    ),
    Chip(
        name='h100',
        kinds=('NVIDIA H100 80GB HBM3',),
        memory_bytes=84_942_979_072,
        memory_rate=3350 * GB,
        bfloat16=989.4 * TERA,
        float32=494.7 * TERA,
        link_rate=450 * GB,
        source=f'{NVIDIA}/h100/',
    ),
    Chip(
        name='h100-pcie',
        kinds=('NVIDIA H100 PCIe',),
        memory_bytes=84_942_979_072,
        memory_rate=2000 * GB,
        bfloat16=756 * TERA,
        float32=378 * TERA,
        link_rate=64 * GB,  # PCIe 5, without bridges
        source=f'{NVIDIA}/h100/',
    ),
    Chip(
        name='h200',
        kinds=('NVIDIA H200',),
        memory_bytes=151_397_597_184,
        memory_rate=4800 * GB,
        bfloat16=989.4 * TERA,
        float32=494.7 * TERA,
        link_rate=450 * GB,
        source=f'{NVIDIA}/h200/',
    ),
    Chip(
        name='b200',
        kinds=('NVIDIA B200',),
        memory_bytes=191_514_411_008,
        memory_rate=8000 * GB,
        bfloat16=2250 * TERA,
        float32=1125 * TERA,
        link_rate=900 * GB,
        source=f'{NVIDIA}/dgx-b200/',
    ),
    Chip(
        name='l4',
        kinds=('NVIDIA L4',),
        memory_bytes=24 * GB,
        memory_rate=300 * GB,
        bfloat16=121 * TERA,
        float32=60 * TERA,
        link_rate=32 * GB,  # PCIe 4
        source=f'{NVIDIA}/l4/',
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ROWS}
