"""The embedded default: a small world of coloured shapes with its own text-to-image pipeline, reward and judge."""
