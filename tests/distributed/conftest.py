from tests.statistics.conftest import expected, zoo

__all__ = ["expected", "zoo"]
