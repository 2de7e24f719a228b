"""Several measurements make one: shards, on one machine or a Ray cluster; models added and removed."""
