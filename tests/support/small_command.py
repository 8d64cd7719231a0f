"""``tpdm`` with the embedded model of ``tests.support.small_world``, where another program starts the processes."""

from tests.support.small_world import small_world
from tpdm.cli import main

if __name__ == "__main__":
    with small_world():
        main()
