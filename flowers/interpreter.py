"""The Python that runs a program: it says in one line if it is another one than the packages were installed for.

Uses nothing but the standard library, and what every Python 3 reads.
"""

import sys
from importlib.util import find_spec

OLDEST, NEWEST = (3, 11), (3, 13)
# What any part of a program imports, the lightest first; a test compares it with the code.
PACKAGES = (
    *("click", "rich", "pydantic", "pydantic_core", "yaml", "numpy", "pyarrow", "PIL", "requests", "urllib3"),
    *("jinja2", "markupsafe", "matplotlib", "tensorboardX", "prometheus_client", "python_multipart", "grpc"),
    *("starlette", "fastapi", "fastapi_offline", "uvicorn", "ml_dtypes", "ray", "openvino", "keras", "tensorflow"),
    *("cleanlab", "sklearn", "threadpoolctl"),
)


def complaint() -> str:
    """What is wrong with this Python, in a line; empty if nothing is."""
    found = f"Python {sys.version.split()[0]}"
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if not OLDEST <= tuple(sys.version_info[:2]) <= NEWEST:
        what = f"is {found}, required is Python 3.{OLDEST[1]} to 3.{NEWEST[1]}"
    elif missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        what = f"({found}) lacks packages: {', '.join(missing[:3])}{more}"
    else:
        return ""
    return (
        f"error: {sys.executable} {what}; activate the environment made for it (source .venv/bin/activate), on a "
        f"cluster before `ray start`, or install: {sys.executable} -m pip install -c constraints.txt -e ."
    )


def check_interpreter() -> None:
    """Ends a program that `python -m` is starting with that line and exit code 2, before it imports what is missing."""
    text = complaint() if sys.argv[0] == "-m" else ""  # so it is called until its module has been found
    if text:
        print(text, file=sys.stderr)
        sys.exit(2)
