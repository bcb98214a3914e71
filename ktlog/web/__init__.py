"""The HTTP side of a log: PKD's API, the ActivityPub inbox, and the C2SP files."""
