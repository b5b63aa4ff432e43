"""Does the network look at the lungs? What it answers where parts are removed or added, and where its maps lie."""
