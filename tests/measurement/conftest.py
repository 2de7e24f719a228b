from tests.support.zoo_fixtures import expected, folder, measured, zoo

__all__ = ["expected", "folder", "measured", "zoo"]
