"""The services of the contract, thin over the engine, the catalog and the policies."""
