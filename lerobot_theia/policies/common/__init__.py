"""What both policies share: the frozen encoder, its place in checkpoints, and token heads."""
