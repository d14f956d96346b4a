"""Price lists that answers rest on, and what users measured of kernels and links beside them."""
