"""Which compressor, and how much: settings of a model exported, judged on one set of data and timed in one run."""
