"""Communication: collectives and transfers, priced by the links they cross."""
