"""Imagined out-of-distribution images for OpenOOD, and the proof of what they are worth."""

__version__ = "0.1.0"


def register() -> None:
    """Adds our trainers, preprocessor and networks to OpenOOD's factories; doing it twice changes nothing."""
    from openood_dream.openood import register

    register()


def unregister() -> None:
    """Takes back what register() did."""
    from openood_dream.openood import unregister

    unregister()
