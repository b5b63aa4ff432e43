"""The database: tables, jobs, deliveries, migrations."""
