"""The shortcut card: does the network look at the lungs? Parts removed and added, maps, probes, properties."""
