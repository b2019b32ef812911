"""How trials run on Ray: the cluster, Tune's trials and Train's runs, the adapter pool, schedulers and searchers."""
