"""Which images a bundle does not answer about, and why: those unlike the ones it learned from."""
