"""Tables of published runs: read, understood and turned into rows that can be scored."""
