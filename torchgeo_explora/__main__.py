"""``python -m torchgeo_explora`` is ``torchgeo-explora``."""

import sys

from torchgeo_explora.cli import main

if __name__ == '__main__':
    sys.exit(main())
