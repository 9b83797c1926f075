"""What neurons do over a corpus: how often they fire, and which share of an update is theirs."""
