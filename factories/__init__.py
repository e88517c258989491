"""Ready compositions, every value spelled out: read them, copy them, change them."""
