"""The services of the contract: thin layers over the engine, the catalog and the policies."""
