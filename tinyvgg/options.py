"""Options that several commands have: each is declared once, and means the same everywhere."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

BACKENDS = ("auto", "dali", "torch", "resident")
Backend = Literal["auto", "dali", "torch", "resident"]
Amp = Literal["auto", "off", "bf16", "fp16"]

PackedOption = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="PACKED", help="Folder that 'tinyvgg pack' wrote."),
]
BackendOption = Annotated[
    Backend,
    tyro.conf.arg(
        help="Loader: auto, dali (NVIDIA DALI), torch (mapped shards) or resident (the split in "
        "device memory)."
    ),
]
DeviceOption = Annotated[
    str,
    tyro.conf.arg(
        help="auto takes CUDA or another accelerator where there is one; else cpu, cuda, cuda:1, …"
    ),
]
AmpOption = Annotated[
    Amp,
    tyro.conf.arg(
        help="Autocast to bf16 or fp16, or off; auto: as in the run that is resumed or "
        "evaluated; in a new run the fastest that the device supports."
    ),
]
TimeoutOption = Annotated[
    float,
    tyro.conf.arg(
        help="Seconds after which a rank that says nothing is taken for lost; only where several "
        "processes work together."
    ),
]
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # off, and no flag turns it off again
JsonOption = Annotated[
    Switch, tyro.conf.arg(help="Print one JSON document, and nothing else, to stdout.")
]
