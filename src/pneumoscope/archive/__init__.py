"""Scoring an archive with Ray Data: in shards, on one machine or on a cluster, resumed where it stopped."""
