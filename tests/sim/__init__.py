"""The production code in a played world: network, broker, deaths and clocks follow from one seed."""
