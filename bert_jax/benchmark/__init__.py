"""Speed on the devices at hand, ours and the peer's."""
