"""Several images on one page, with a line of text under each."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 6  # pixels around each image
TEXT_SIZE = 13
BACKGROUND, TEXT_COLOR = (255, 255, 255), (40, 40, 40)


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int = 8) -> Image.Image:
    """One page of images, row by row, each as high as the first and with its label below.

    Args:
        images: at least one.
        labels: as many.
        columns: images in a row.
    """
    height = images[0].height
    cells = [image.resize((round(image.width * height / image.height), height)) for image in images]
    columns = min(columns, len(cells))
    cell_width, cell_height = max(cell.width for cell in cells) + MARGIN, height + TEXT_SIZE + 2 * MARGIN
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for index, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        left, top = MARGIN + index % columns * cell_width, MARGIN + index // columns * cell_height
        sheet.paste(cell, (left, top))
        draw.text((left, top + height + MARGIN / 2), label, fill=TEXT_COLOR, font=font)
    return sheet
