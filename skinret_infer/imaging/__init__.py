"""From any image source to RGB pixels."""
