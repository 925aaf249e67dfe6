"""Options of the commands that load a model themselves."""

from enum import StrEnum
from typing import Annotated

import typer


class DtypeName(StrEnum):
    """The dtypes that a model runs in. `auto` chooses by the device and the checkpoint."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1 ...")]
Dtype = Annotated[DtypeName, typer.Option(help="The model's dtype; auto is float32 on a CPU.")]
