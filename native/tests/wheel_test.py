"""What an installed wheel shows without PyTorch: it holds the packaged recipes, and the library, which loads."""

import ctypes
import importlib.util
from pathlib import Path

SUFFIXES = (".so", ".dylib", ".dll")

spec = importlib.util.find_spec("qpeft")  # finds it without importing it, and with it PyTorch
assert spec is not None
assert spec.origin is not None
package = Path(spec.origin).parent
assert list(package.glob("recipes/*.yaml")), "the packaged recipes are missing"

libraries = [path for path in package.glob("simulators/_native/*") if path.suffix in SUFFIXES]
assert len(libraries) == 1, f"not one native library but {libraries}"
abi = ctypes.CDLL(str(libraries[0])).qpeft_native_abi()
assert abi >= 1
print(f"{libraries[0].name}: interface {abi}")
