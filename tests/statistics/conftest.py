from tests.support.zoo_fixtures import expected, folder, measured, shards, zoo

__all__ = ["expected", "folder", "measured", "shards", "zoo"]
