"""The one label value with a meaning of its own."""

IGNORE = 255  # a pixel that no loss and no metric counts: void, unknown or padding
