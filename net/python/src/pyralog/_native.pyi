# The library for C. Its declarations come from its sources when the wheel is built.
from typing import Any

ffi: Any
lib: Any
