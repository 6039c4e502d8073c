"""How artifacts travel through ZenML's artifact store: as the files that they are."""
