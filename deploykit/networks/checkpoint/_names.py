"""What a pickle may name without being refused; everything else it may name but not call."""

from __future__ import annotations

DANGEROUS = frozenset(
    (
        "asyncio",
        "bdb",
        "builtins",
        "cloudpickle",
        "code",
        "codeop",
        "commands",
        "ctypes",
        "dill",
        "http",
        "imp",
        "importlib",
        "marshal",
        "multiprocessing",
        "nt",
        "os",
        "pdb",
        "pickle",
        "pip",
        "pkgutil",
        "posix",
        "pty",
        "pydoc",
        "runpy",
        "shutil",
        "signal",
        "smtplib",
        "socket",
        "subprocess",
        "sys",
        "tempfile",
        "timeit",
        "urllib",
        "webbrowser",
        "winreg",
        "zipimport",
    )
)
"""Packages that no checkpoint has a reason to name: a reference alone is refused."""
PLAIN_BUILTINS = frozenset(
    (
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
        "type",
    )
)
"""The types among the built-ins; the rest (eval, getattr, open ...) is refused."""
UNUSED = frozenset(
    (
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.object",
        "builtins.range",
        "builtins.slice",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "datetime.timezone",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "torch.Generator",
        "torch.device",
        "torch.dtype",
        "torch.serialization._get_layout",
    )
)
"""Calls whose results are of no use here, and which therefore leave only their name."""
