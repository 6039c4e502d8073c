"""Glue to trackers and validators; the library never imports them."""
