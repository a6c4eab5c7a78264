"""What can go wrong in a distillation; the message names the item and the way out."""


class DistillError(Exception):
    """The run cannot go on as asked."""


class UnreadableError(Exception):
    """One image of a source cannot be read. It is listed, and counted against `allow_skipped`."""
