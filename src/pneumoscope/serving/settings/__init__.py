"""The configuration of the gateway: one TOML file, its neighbours, its secrets."""
