"""How applications use the reader, as user code: docs/adapters.md explains each, tests/integration/test_adapters.py runs it."""
