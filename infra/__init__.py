"""Everything around the product: local stack, demo, test harness."""
