from tests.support.zoo_fixtures import expected, zoo

__all__ = ["expected", "zoo"]
