"""Names of images, checked before anything is sent: an agent hands them to ``docker run``."""

from __future__ import annotations

from docker_image import reference

from ._errors import ClearmlClientError

__all__ = ["check_image", "is_image"]

_LONGEST = 600


def is_image(image: str) -> bool:
    """Tell whether a text is one image reference, by the grammar of Docker's own parser."""
    # The parser's patterns end in $, which also matches before a last line feed.
    if not image or not image.isprintable() or " " in image or len(image) > _LONGEST:
        return False
    try:
        image.encode("ascii")
        reference.Reference.parse_normalized_named(image)
    except Exception:  # whatever the parser stumbles over is not an image
        return False
    return True


def check_image(where: str, image: str) -> str:
    """Return an image's name.

    Raises:
        ClearmlClientError: It is not one image reference.
    """
    if not isinstance(image, str) or not is_image(image):
        shown = repr(image)
        raise ClearmlClientError(
            "{} is {}, which is not the name of one image; write it in lower case, without spaces or options, "
            "for example 'registry.example.com/team/train:1.0'".format(
                where, shown if len(shown) < 200 else shown[:200] + "..."
            )
        )
    return image
