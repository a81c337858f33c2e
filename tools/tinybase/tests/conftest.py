"""The tool's tests keep the rules of the product's: one thread, no network, no traces."""

from tests.conftest import guard, pytest_pyfunc_call

__all__ = ["guard", "pytest_pyfunc_call"]
