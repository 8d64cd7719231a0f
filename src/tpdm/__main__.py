"""``python -m tpdm``: the command as a module, which is what ``torchrun -m`` and ``accelerate launch -m`` start."""

from tpdm.cli import main

main()
