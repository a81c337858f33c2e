"""Read one LoRA file: metadata and layers from its header, tensors on demand.

Only `tensor` needs torch, so a file is judged before anything heavy is loaded; numpy comes with
the first file, so a command that reads none does without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.lora.keys import ALPHA, ModuleShape, count_and_names, keys_of, modules_of, refusals_of
from optbench.storage.safetensors_header import TORCH_NAMES, read_header

if TYPE_CHECKING:
    from torch import Tensor

# The bits that are all set where a number is NaN or infinite, in unsigned integers of its width;
# numpy knows neither bfloat16 nor 8-bit floats.
_EXPONENTS: Final = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}
_NUMPY_KINDS: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BOOL": "?",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
}


class SafetensorsFile:
    """An open safetensors file; numbers are read when they are asked for.

    The file is mapped into memory: what replaces it later does not change what is read here.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            DamagedFileError: If the file is absent, cut short or no safetensors file.
        """
        import numpy as np

        self.path: Path = path
        try:
            header = read_header(path)
            unknown = sorted({entry.dtype for entry in header.tensors.values()} - {*TORCH_NAMES})
            if unknown:
                raise ValueError(f"tensors in {', '.join(unknown)}")  # noqa: TRY301 - one refusal
            self._bytes: Any = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            kind = f"{type(error).__name__}: " if isinstance(error, OSError) else ""
            raise DamagedFileError(
                Problem(
                    str(path),
                    f"{kind}{error}",
                    "a whole safetensors file",
                    "check the path, or copy the file again; one that was cut short cannot be "
                    "repaired",
                )
            ) from error
        self.metadata: dict[str, str] = dict(header.metadata)
        self.data_start: int = header.data_start
        self.entries = header.tensors
        self.shapes: dict[str, tuple[int, ...]] = header.shapes

    def tensor(self, key: str) -> Tensor:
        """Return one tensor in the dtype of the file, in memory of its own."""
        import torch

        entry = self.entries[key]
        raw = torch.empty(entry.num_bytes, dtype=torch.uint8)
        raw.numpy()[:] = self._raw(key)
        dtype: torch.dtype = getattr(torch, TORCH_NAMES[entry.dtype])
        return raw.view(dtype).view(entry.shape)

    def number(self, key: str) -> float:
        """Return the first number of a tensor, exactly."""
        import numpy as np

        dtype, raw = self.entries[key].dtype, self._raw(key)
        if dtype in _NUMPY_KINDS:
            return float(raw.view(_NUMPY_KINDS[dtype])[0])
        bits = int(raw.view(_EXPONENTS[dtype][0])[0])
        if dtype == "BF16":
            return float(np.uint32(bits << 16).view(np.float32))
        if dtype == "F8_E5M2":
            return float(np.uint16(bits << 8).view(np.float16))
        sign, exponent, fraction = -1.0 if bits & 0x80 else 1.0, bits >> 3 & 0xF, bits & 0x7
        if exponent == 0:
            return sign * fraction / 8 * 2.0**-6
        return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)

    def data(self) -> memoryview:
        """Return the bytes of all tensors, which is what kohya's `sshs_model_hash` is made of."""
        return memoryview(self._bytes[self.data_start :])

    def check_finite(self) -> None:
        """Read every tensor once.

        Raises:
            DamagedFileError: If any holds NaN or infinity; names them.
        """
        broken = [key for key in self.entries if not self._is_finite(key)]
        if broken:
            raise DamagedFileError(
                Problem(
                    str(self.path),
                    f"NaN or infinity in {count_and_names(broken, len(self.entries))}",
                    "finite numbers only",
                    "use an earlier epoch's file; this one was saved after its training diverged",
                )
            )

    def _is_finite(self, key: str) -> bool:
        dtype = self.entries[key].dtype
        if dtype not in _EXPONENTS:
            return True  # integers
        kind, mask = _EXPONENTS[dtype]
        bits = self._raw(key).view(kind)
        return not bool(((bits & mask) == mask).any())

    def _raw(self, key: str) -> Any:
        entry = self.entries[key]
        return self._bytes[entry.start : entry.start + entry.num_bytes]


class LoraFile(SafetensorsFile):
    """An open file of plain LoRA layers: `modules` by name, and the keys of all other tensors."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            DamagedFileError: If the file is absent, cut short or no safetensors file.
            ConfigError: If it holds another kind of adapter, or layers that do not fit together.
        """
        super().__init__(path)
        if problems := refusals_of(self.shapes, where=str(path)):
            raise ConfigError(*problems)
        self.modules: dict[str, ModuleShape] = modules_of(self.shapes)
        of_layers = {key for name in self.modules for key in keys_of(name)}
        self.others: tuple[str, ...] = tuple(key for key in self.shapes if key not in of_layers)

    def alpha(self, name: str) -> float:
        """Return one layer's alpha; of a file without alphas it is the dim, as readers agree."""
        module = self.modules[name]
        return self.number(name + ALPHA) if module.has_alpha else float(module.dim)


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors, in the dtype of the file, and its metadata.

    Raises:
        DamagedFileError: If the file is absent, cut short or no safetensors file, or if a tensor
            holds NaN or infinity.
    """
    file = SafetensorsFile(path)
    file.check_finite()
    return {key: file.tensor(key) for key in file.entries}, file.metadata
