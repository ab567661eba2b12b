"""`python -m mi_prun`: the command, for launchers that want a module, such as torchrun."""

from mi_prun.cli import main

main()
