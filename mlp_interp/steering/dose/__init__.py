"""Effect against cost as a direction is turned up."""
