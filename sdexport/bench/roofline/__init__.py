"""The roofline: the machine's peak rates, the work of each stage, and the share reached."""
