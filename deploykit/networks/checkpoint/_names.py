"""What a pickle may not even name.

Nothing that a pickle names is ever imported or called, so these lists keep nobody safe: they tell
the user that the file was made to do harm, or that its author pickled more than weights.
"""

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
        "distutils",
        "ensurepip",
        "ftplib",
        "http",
        "imp",
        "importlib",
        "joblib",
        "marshal",
        "multiprocessing",
        "nt",
        "os",
        "pdb",
        "pickle",
        "_pickle",
        "pip",
        "pkgutil",
        "posix",
        "pty",
        "pydoc",
        "runpy",
        "setuptools",
        "shutil",
        "signal",
        "smtplib",
        "socket",
        "subprocess",
        "_posixsubprocess",
        "sys",
        "tempfile",
        "timeit",
        "urllib",
        "venv",
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
        "getattr",
        "int",
        "list",
        "object",
        "range",
        "reversed",
        "set",
        "slice",
        "str",
        "tuple",
        "type",
    )
)
"""The types among the built-ins, and what makes a nested class or a bound method; the rest (eval,
exec, open ...) is refused."""
HARMFUL = frozenset(
    (
        "_io.FileIO",
        "_io.open",
        "_io.open_code",
        "_operator.attrgetter",
        "_operator.itemgetter",
        "_operator.methodcaller",
        "functools.reduce",
        "io.FileIO",
        "io.open",
        "io.open_code",
        "numpy.f2py",
        "numpy.lib.npyio.load",
        "numpy.load",
        "operator.attrgetter",
        "operator.itemgetter",
        "operator.methodcaller",
        "pandas.io",
        "pandas.read_pickle",
        "torch.classes",
        "torch.hub",
        "torch.jit._serialization",
        "torch.jit.load",
        "torch.load",
        "torch.ops",
        "torch.package",
        "torch.serialization.load",
        "torch.utils.cpp_extension",
        "types.CodeType",
        "types.FunctionType",
        "types.MethodType",
    )
)
"""Names, or modules with all that is in them, that load, open or run something."""


def is_harmful(module: str, name: str) -> bool:
    """Return whether nothing good can come of a reference to `module.name`."""
    if module.partition(".")[0] in DANGEROUS:
        return module != "builtins" or name not in PLAIN_BUILTINS
    around = name.split(".")[:-1]
    if any(part in DANGEROUS or part.startswith("__") for part in around):
        return True  # what a module of good repute has imported: torch.os.system
    parts = f"{module}.{name}".split(".")
    return any(".".join(parts[:count]) in HARMFUL for count in range(2, len(parts) + 1))
