"""From caches to training: the dataset that serves tokens in place of frames, and the seam into `lerobot-train`."""
