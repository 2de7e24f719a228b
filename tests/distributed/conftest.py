from tests.support.zoos import expected, zoo

__all__ = ["expected", "zoo"]
