"""Published simulators, rebuilt rule by rule."""
