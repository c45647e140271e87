-- Every query's vector, made once.

CREATE TEMPORARY TABLE IF NOT EXISTS nv_embed_question (
    collection text,
    id text,
    embedding vector NOT NULL,
    PRIMARY KEY (collection, id)
)
