"""
The sidecar: the one process that holds the model.

    __main__   reads the command line                      settings   what an operator can choose
    server     sockets, health, reflection, drain          service    nv_embed.v1 over gRPC
    scheduler  requests to batches, two threads            engines/   batches of token ids to pooled vectors
    models     which models, by which names, from where    cards      what a model's directory says of itself
    registry   what is known of models beyond their files  tokenising text to token ids, truncation
    pooling    hidden states to one vector                 chunking   a long text to pieces

Only this package knows torch and transformers, and only `engines/` imports them.
"""
