"""The models of this machine, kept: fetched, added, verified, removed. Only whole ones are ever seen."""
