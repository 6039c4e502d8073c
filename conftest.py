"""The tests' main script, for ZenML: it takes that script's folder for the sources'."""

import sys

# A worker of pytest-xdist has none. The file must be one that can be run: processes that tests spawn run it first.
if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = __file__
