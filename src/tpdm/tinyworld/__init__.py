"""The embedded model: a small world of colored shapes with its own text-to-image pipeline, reward and scorer."""
