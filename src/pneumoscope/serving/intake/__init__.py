"""How images arrive: listener, poller, receipt, storage commitment."""
