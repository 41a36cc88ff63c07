"""QD7: the images of training data."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.data_rows import rows_found
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.registry import Check, check


@check("QD713", needs=["data"], since="0.2")
def images_that_are_not_there(facts: Facts) -> Iterator[Finding]:
    """Rows that name image files which do not exist, or lie outside the folder of the data, or on the network.

    A trainer meets them hours later in a worker process, or drops the row, or trains it as text. Paths are taken from the
    folder of the data file, or from `--images`. Paths that leave that folder by `..` are refused, as are whole paths in
    data that comes from the Hub; whole paths in a file of your own are taken as they are. Nothing is downloaded.

    Fix: `--images FOLDER`, or the missing files.

    Source: the file system.
    """
    yield from rows_found(
        facts,
        ("image missing",),
        "{of} name image files that are not there. The first, {first}. Say where the images lie with --images FOLDER, or "
        "fetch what is missing",
        "error",
        "Name the folder of the images with --images",
    )
    yield from rows_found(
        facts,
        ("image outside", "image address"),
        "{of} name images that are not opened. The first, {first}",
        "error",
        "Put the images into the folder of the data, and name them by their path there",
    )


@check("QD714", needs=["data"], since="0.2")
def images_that_are_damaged(facts: Facts) -> Iterator[Finding]:
    """Image files that are no images, or end too early: a web page, a Git LFS pointer, half a JPEG.

    Pillow raises on the first in the middle of training (`cannot identify image file`), and half a JPEG is filled up with
    grey by programs that allow it. A JPEG is held to its end mark, other kinds to their checksums; pixels are not decoded.

    Fix: fetch the files again, or take the rows out.

    Source: Pillow's `verify`, and the end mark of JPEG (ITU T.81).
    """
    yield from rows_found(
        facts,
        ("image broken",),
        "{of} have an image that cannot be used. The first, {first}. Fetch these files again, or take the rows out",
        "error",
        "Fetch the damaged images again",
    )


@check("QD715", needs=["data"], since="0.2")
def images_that_are_huge(facts: Facts) -> Iterator[Finding]:
    """Images of more than 50 million pixels.

    Each is decoded to 150 MB and more in every worker and epoch, and the processor shrinks it all the same (LLaVA to
    336 x 336). For Qwen-VL, whose images keep their size, one such image can take more tokens than the whole context.

    Fix: shrink the files once, before training.

    Source: three bytes a pixel; `min_pixels` and `max_pixels` of Qwen-VL's processor.
    """
    yield from rows_found(
        facts,
        ("image huge",),
        "{of} have an image of more than 50 million pixels, which is decoded anew in every epoch. The first, {first}. "
        "Shrink the files before training",
        "warning",
        "Shrink the images once, before training",
    )


@check("QD716", needs=["data"], since="0.2")
def placeholders_that_do_not_match(facts: Facts) -> Iterator[Finding]:
    """Another number of `<image>` in the text of a row than of images in the row.

    The forward then stops with `Image features and image tokens do not match`, the commonest error of vision-language
    training in the trackers, and it stops at that row, not before.

    A row with images and no `<image>` at all is not counted: its images are put first, and QD718 says so. A warning for
    text that holds `<image>` in a row of a format without images: a text model takes it for text.

    Fix: one `<image>` for each image, in their order.

    Source: transformers `modeling_llava.py`; LLaMA-Factory issue 5968, Qwen3-VL issue 556.
    """
    yield from rows_found(
        facts,
        ("placeholders",),
        "{of} have another number of <image> than of images. The first, {first}. Write one <image> for each image",
        "error",
        "Write one <image> for each image",
    )
    yield from rows_found(
        facts,
        ("placeholder without image",),
        "{of} hold <image> in their text and no image ({where}). A vision model stops on them; take <image> out, or name "
        "the image",
        "warning",
        "Take <image> out of the text, or name the image",
    )


@check("QD718", needs=["data"], since="0.2")
def images_without_a_place(facts: Facts) -> Iterator[Finding]:
    """Rows with images whose text says nowhere where they belong: they are put before the first question.

    That is what most data means, and what the image folder and VQA formats ask for (there it is not told). In
    conversations it is told, because a placeholder may have been lost on the way.

    Information.

    Fix: write `<image>` where the image belongs.

    Source: LLaVA's own data puts `<image>` into the first question.
    """
    yield from rows_found(
        facts,
        ("image put first",),
        "{of} have images and no <image> in their text ({where}); the images are put before the first question. Write "
        "<image> where they belong if that is wrong",
        "info",
        "Write <image> where the image belongs",
    )


CHECKS: tuple[Check, ...] = (
    images_that_are_not_there,
    images_that_are_damaged,
    images_that_are_huge,
    placeholders_that_do_not_match,
    images_without_a_place,
)
